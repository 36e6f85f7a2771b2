"""Random erasing and cutout: blank boxes per view."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustclip.views.draws import Draws
from robustclip.views.ranges import Range, check_ends, check_number
from robustclip.views.shifts import round_half_up


@final
@dataclass(frozen=True)
class Cutout:
    """Blank (to 0) a box of `fraction` of the height and of the width of each view. As in DiffAugment the centre lies
    anywhere in the picture, so the box may hang over its edge. Raises UsageError for a fraction outside [0, 1]."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_number("Cutout({})", self.fraction, 0, 1, 0.5)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        height, width = (round_half_up(self.fraction * side) for side in images.shape[-2:])
        top = draws.integers(0, images.shape[-2] - height % 2) - height // 2
        left = draws.integers(0, images.shape[-1] - width % 2) - width // 2
        return images * ~boxes(images, top, left, top + height, left + width)


@final
@dataclass(frozen=True)
class Erasing:
    """Blank (to 0), with probability p, a box inside each view: its area U(area) of the picture's, its height to its
    width log-uniform in `ratio`, cut to what fits. With `shared`, one draw serves all views of a picture.

    VQGAN+CLIP's and Referee-Can-Play's ranges (area 0.1 to 0.4, ratio 0.3 to 1/0.3, shared); p is 0.7 and 1 there.
    Raises UsageError for illegal ranges, areas outside [0, 1], ratios not above 0, p outside [0, 1].
    """

    area: Range = (0.1, 0.4)
    ratio: Range = (0.3, 1 / 0.3)
    p: float = 1.0
    shared: bool = False

    def __post_init__(self) -> None:
        check_ends("Erasing(area={})", self.area, 0, 1)
        check_ends("Erasing(ratio={})", self.ratio, 0.01, 100)
        check_number("Erasing(p={})", self.p, 0, 1, 0.7)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        sides = images.shape[-2:]
        area = draws.uniform(*self.area, shared=self.shared) * math.prod(sides)
        ratio = draws.log_uniform(*self.ratio, shared=self.shared)
        lengths = ((area * ratio).sqrt(), (area / ratio).sqrt())
        height, width = (length.round().clamp(max=side) for length, side in zip(lengths, sides, strict=True))
        top = (draws.uniform(0, 1, shared=self.shared) * (sides[0] - height + 1)).floor()
        left = (draws.uniform(0, 1, shared=self.shared) * (sides[1] - width + 1)).floor()
        chosen = draws.chance(self.p, shared=self.shared)[:, None, None, None]
        return images * ~(boxes(images, top, left, top + height, left + width) & chosen)


def boxes(
    like: Float[Tensor, "b 3 h w"], top: Tensor, left: Tensor, bottom: Tensor, right: Tensor
) -> Bool[Tensor, "b 1 h w"]:
    """True where a pixel lies in its image's box: rows top to below bottom, columns left to below right, each (B,)."""

    def between(first: Tensor, end: Tensor, side: int) -> Bool[Tensor, "b side"]:
        places: Int[Tensor, " side"] = torch.arange(side, device=like.device)
        return (places >= first[:, None]) & (places < end[:, None])

    return (between(top, bottom, like.shape[-2])[:, :, None] & between(left, right, like.shape[-1])[:, None])[:, None]
