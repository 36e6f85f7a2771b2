"""Data classes of a report.

    from robustclip.pages.report import encode
    from robustclip.pages.rendering import write_report

    cases = (encode(case) for case in ...)         # pictures shrink to what a page needs; the tensors may go
    write_report("report.html", Report(...), cases)

A report is a function of these data alone: the same data give the same bytes.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from robustclip.data.images import resize, to_pil
from robustclip.explanation.maps import LEVELS, palette

Better = Literal["higher", "lower", ""]
Unit = Literal["percent", "number"]


@dataclass(frozen=True)
class About:
    """A referee in the report's footer: its card, and a hash of its weights as `fingerprint`.

    `note` is said beside its name wherever that matters, e.g. why it has no maps.
    """

    name: str
    method: str = ""
    layer: str = ""
    fingerprint: str = ""
    card: Mapping[str, Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class View:
    """How one referee sees one case. Maps are (H,W) in [0,1], pictures (3,H,W) in [0,1], of the case's image's size.

    A map that is None, or a number that is NaN or None, was not made; `why` says why a map is missing. `attacked` is
    the image after an attack on this referee. `numbers` can be sorted by; a bool is told as yes or no.
    """

    referee: str
    score: float | None
    map: Float[Tensor, "H W"] | None = None
    gradient: Float[Tensor, "3 H W"] | None = None
    attacked: Float[Tensor, "3 H W"] | None = None
    attacked_score: float | None = None
    attacked_map: Float[Tensor, "H W"] | None = None
    attacked_gradient: Float[Tensor, "3 H W"] | None = None
    noisy_score: float | None = None
    noisy_map: Float[Tensor, "H W"] | None = None
    numbers: Mapping[str, float | bool | None] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Case:
    """An image and a text, seen by every referee. `other` is what the attack pulled towards: a negation, or a target.

    `box` (top, left, bottom, right; half-open pixels) is where the text's object is known to be. `noisy` is the control
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
class Number:
    """A measured number, its 95% interval, and how many samples it is of."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Line:
    """A line of the table: one metric on one kind of images ("clean", "l2:1.5@20", "random l2:1.5"), by referee.

    `better` says which way is good, so that the best can be marked; "" for a metric that has no good way.
    """

    metric: str
    images: str
    numbers: Mapping[str, Number]
    better: Better = ""
    unit: Unit = "number"


@dataclass(frozen=True)
class Report:
    """All of a report but its cases.

    `setting` is told at the foot, line by line: method, threat model with its size, objective, steps, seeds, versions.
    `notes` are for all to read before the pictures; `left_out` has a line for each image that could not be read.
    """

    title: str
    referees: list[About]
    summary: list[Line] = field(default_factory=list)
    setting: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    explanations: Mapping[str, str] = field(default_factory=dict)
    """What a metric means, in a sentence, by its name: shown under the table."""


LONGEST: Final = 320  # pixels of a stored picture's longer side: a page shows it no larger
LONGEST_MAP: Final = 64  # maps are smooth, and browsers enlarge smoothly
SMALL: Final = 96  # pixels up to which a picture is kept exactly
AMPLIFIED_WITHIN: Final = 0.995  # share of a change's values that stay below white and above black when it is shown


@dataclass(frozen=True)
class Seen:
    """What a page shows of a `View`: data: URIs by the name of their column, and its numbers."""

    view: View
    pictures: Mapping[str, str]


@dataclass(frozen=True)
class Encoded:
    """A case without tensors: the image's own URI, its height and width, and the amplification of all its changes."""

    case: Case
    image: str
    noisy: str
    size: tuple[int, int]
    amplification: int
    seen: tuple[Seen, ...]

    @property
    def weight(self) -> int:
        """Characters that its pictures take on a page."""
        return len(self.image) + len(self.noisy) + sum(len(uri) for seen in self.seen for uri in seen.pictures.values())


def encode(case: Case) -> Encoded:
    """Shrink a case to what a page shows: a few hundred KB at most, whatever the size of its image.

    Pictures keep their aspect; those of at most 96 pixels keep every value. The change that an attack made is shown as
    0.5 + amplification x change, by the same factor for all referees of a case.
    """
    changes = [view.attacked - case.image for view in case.views if view.attacked is not None]
    factor = amplification(changes)
    seen = []
    for view in case.views:
        pictures = {}
        for name, heat in (("map", view.map), ("attacked_map", view.attacked_map), ("noisy_map", view.noisy_map)):
            if heat is not None:
                pictures[name] = map_uri(heat)
        if view.attacked is not None:
            pictures["attacked"] = picture_uri(view.attacked)
            # Shrinking would average the change away, so it is shrunk as it is shown: small, and true in its tones.
            pictures["change"] = picture_uri(0.5 + factor * (view.attacked - case.image), exact=False)
        for name, gradient in (("gradient", view.gradient), ("attacked_gradient", view.attacked_gradient)):
            if gradient is not None:
                pictures[name] = picture_uri(gradient, exact=False)
        seen.append(Seen(_without_tensors(view), pictures))
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
    """The largest of 1, 2, 5, 10, 20, 50, ... by which (nearly) all values of all changes stay within +-0.5."""
    sizes = [float(np.quantile(change.detach().abs().float().cpu().numpy(), AMPLIFIED_WITHIN)) for change in changes]
    largest = max(sizes, default=0.0)
    if not 0 < largest < math.inf:
        return 1
    steps = [digit * 10**power for power in range(4) for digit in (1, 2, 5)]
    return max(step for step in steps if step == 1 or step * largest <= 0.5)


def picture_uri(picture: Float[Tensor, "3 h w"], *, exact: bool = True) -> str:
    """A picture as a data: URI: small ones as they are, unless `exact` is False; larger ones shrunk, as lossy WebP."""
    height, width = picture.shape[-2:]
    drawn = to_pil(_shrunk(picture, LONGEST))
    file = BytesIO()
    if exact and max(height, width) <= SMALL:
        drawn.save(file, "WEBP", lossless=True, quality=50, method=2)  # effort: more takes 8 times as long for 5%
    else:
        drawn.save(file, "WEBP", quality=85, method=4)
    return _uri("webp", file)


def map_uri(heat: Float[Tensor, "h w"]) -> str:
    """A map in [0,1] as a data: URI, in the colours of `SCALE`."""
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


def _without_tensors(view: View) -> View:
    return View(
        view.referee,
        view.score,
        attacked_score=view.attacked_score,
        noisy_score=view.noisy_score,
        numbers=dict(view.numbers),
        why=view.why,
    )


def _uri(kind: str, file: BytesIO) -> str:
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode('ascii')}"
