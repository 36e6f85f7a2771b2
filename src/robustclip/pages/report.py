"""Data classes of a report.

    from robustclip.pages.report import encode
    from robustclip.pages.rendering import write_report

    cases = (encode(case) for case in ...)         # small pictures without tensors
    write_report("report.html", Report(...), cases)

A report is a deterministic function of these data: equal data give equal bytes.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from robustclip.data.images import resize, to_pil
from robustclip.evaluation.intervals import Interval
from robustclip.explanation.looks import CLEAN
from robustclip.explanation.maps import LEVELS, palette

Better = Literal["higher", "lower", ""]
Unit = Literal["percent", "number"]


@dataclass(frozen=True)
class About:
    """A referee in the report's footer: its card, and a hash of its weights as `fingerprint`.

    `note` is shown beside its name, e.g. why it has no maps.
    """

    name: str
    method: str = ""
    layer: str = ""
    fingerprint: str = ""
    card: Mapping[str, Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class Version:
    """One referee's results on one version of an image: maps (H,W) and pictures (3,H,W) in [0,1], of the image's size.

    None (or NaN) means missing. `image` is that after an attack on this referee.
    """

    score: float | None
    map: Float[Tensor, "H W"] | None = None
    gradient: Float[Tensor, "3 H W"] | None = None
    image: Float[Tensor, "3 H W"] | None = None


@dataclass(frozen=True)
class View:
    """One referee's results on one case by version: "clean", "attacked", "noisy" (`explanation.looks`).

    `why` gives the reason of a missing map. `numbers` can be sorted by; a bool is shown as yes or no.
    """

    referee: str
    versions: Mapping[str, Version] = field(default_factory=dict)
    numbers: Mapping[str, float | bool | None] = field(default_factory=dict)
    why: str = ""

    def score(self, version: str) -> float | None:
        """The score of a version; None if missing."""
        return self.versions[version].score if version in self.versions else None


@dataclass(frozen=True)
class Case:
    """An image and a text with every referee's view. `other` is the text that the attack pulled towards.

    `box` (top, left, bottom, right; half-open pixels) is that of the text's object, if known. `noisy` is the control
    of all referees: the image with noise of the attack's norm.
    """

    id: str
    image: Float[Tensor, "3 H W"]
    text: str
    views: list[View]
    other: str = ""
    box: tuple[int, int, int, int] | None = None
    noisy: Float[Tensor, "3 H W"] | None = None


@dataclass(frozen=True)
class Line:
    """A line of the table: one metric on one kind of images ("clean", "l2:1.5@20", "random l2:1.5"), by referee.

    `better` is the better direction, to mark the best; "" for a metric without one.
    """

    metric: str
    images: str
    numbers: Mapping[str, Interval]
    better: Better = ""
    unit: Unit = "number"


@dataclass(frozen=True)
class Report:
    """A report without its cases.

    `setting` is listed in the footer: method, threat model with its size, objective, steps, seeds, versions. `notes`
    precede the pictures; `left_out` has a line per unreadable image. `headline` is the main finding in words with its
    numbers, `command` the call that makes the report again.
    """

    title: str
    referees: list[About]
    summary: list[Line] = field(default_factory=list)
    setting: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    headline: str = ""
    command: str = ""
    explanations: Mapping[str, str] = field(default_factory=dict)
    """Definitions of the metrics by name, shown under the table."""


LONGEST: Final = 320  # maximal pixels of a stored picture's longer side
LONGEST_MAP: Final = 64  # the same for maps, which are smooth
SMALL: Final = 96  # pixels up to which a picture is stored losslessly
AMPLIFIED_WITHIN: Final = 0.995  # share of a change's values that do not saturate when shown


@dataclass(frozen=True)
class Seen:
    """A `View` for a page: its scores and numbers, and data: URIs by column name."""

    view: View
    pictures: Mapping[str, str]


@dataclass(frozen=True)
class Encoded:
    """A case without tensors: the image's URI, height and width, and the amplification of the shown changes."""

    case: Case
    image: str
    noisy: str
    size: tuple[int, int]
    amplification: int
    seen: tuple[Seen, ...]

    @property
    def weight(self) -> int:
        """Number of characters of its pictures."""
        return len(self.image) + len(self.noisy) + sum(len(uri) for seen in self.seen for uri in seen.pictures.values())


def encode(case: Case) -> Encoded:
    """Encode a case for a page: a few hundred KB at most.

    Pictures keep their aspect ratio; those of at most 96 pixels are lossless. An attack's change is shown as
    0.5 + amplification x change, with one factor for all referees of a case.
    """
    shown = [version for view in case.views for version in view.versions.values()]
    factor = amplification(version.image - case.image for version in shown if version.image is not None)
    seen = []
    for view in case.views:
        pictures = {}
        for name, version in view.versions.items():
            prefix = "" if name == CLEAN else f"{name}_"
            if version.map is not None:
                pictures[f"{prefix}map"] = map_uri(version.map)
            if version.image is not None:
                pictures[name] = picture_uri(version.image)
                # Amplify before resizing, which would average the change away.
                pictures["change"] = picture_uri(0.5 + factor * (version.image - case.image), exact=False)
            if version.gradient is not None:
                pictures[f"{prefix}gradient"] = picture_uri(version.gradient, exact=False)
        scores = {name: Version(version.score) for name, version in view.versions.items()}
        seen.append(Seen(replace(view, versions=scores), pictures))
    height, width = case.image.shape[-2:]
    return Encoded(
        Case(case.id, torch.empty(3, 0, 0), case.text, [], case.other, case.box),
        picture_uri(case.image),
        "" if case.noisy is None else picture_uri(case.noisy),
        (height, width),
        factor,
        tuple(seen),
    )


def amplification(changes: Iterable[Float[Tensor, "3 h w"]]) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... with which (nearly) all values of all changes stay within +-0.5."""
    sizes = [float(np.quantile(change.detach().abs().float().cpu().numpy(), AMPLIFIED_WITHIN)) for change in changes]
    largest = max(sizes, default=0.0)
    if not 0 < largest < math.inf:
        return 1
    steps = [digit * 10**power for power in range(4) for digit in (1, 2, 5)]
    return max(step for step in steps if step == 1 or step * largest <= 0.5)


def picture_uri(picture: Float[Tensor, "3 h w"], *, exact: bool = True) -> str:
    """A picture as a data: URI: small ones lossless, unless `exact` is False; larger ones resized, as lossy WebP."""
    height, width = picture.shape[-2:]
    drawn = to_pil(_shrunk(picture, LONGEST))
    file = BytesIO()
    if exact and max(height, width) <= SMALL:
        drawn.save(file, "WEBP", lossless=True, quality=50, method=2)  # more effort: 8 times as slow for 5%
    else:
        drawn.save(file, "WEBP", quality=85, method=4)
    return _uri("webp", file)


def map_uri(heat: Float[Tensor, "h w"]) -> str:
    """A map in [0,1] as a data: URI in the colours of `SCALE`."""
    small = _shrunk(heat.detach().float().nan_to_num(0)[None], LONGEST_MAP)[0].clamp(0, 1)
    levels = (small * (LEVELS - 1)).round().to(torch.uint8).cpu().numpy()
    drawn = Image.fromarray(levels)
    drawn.putpalette(palette())
    file = BytesIO()
    drawn.save(file, "PNG", optimize=True)
    return _uri("png", file)


def _shrunk(picture: Float[Tensor, "c h w"], longest: int) -> Float[Tensor, "c h2 w2"]:
    height, width = picture.shape[-2:]
    factor = longest / max(height, width)
    if factor >= 1:
        return picture
    size = max(1, round(height * factor)), max(1, round(width * factor))
    return resize(picture[None], size)[0]


def _uri(kind: str, file: BytesIO) -> str:
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode('ascii')}"
