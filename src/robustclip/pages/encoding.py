"""Encode tensors for HTML: pictures as data URIs, heat maps on a colour scale, amplified differences."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from robustclip.data.images import resize, to_pil
from robustclip.explanation.maps import LEVELS, palette
from robustclip.pages.report import Case, View

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
