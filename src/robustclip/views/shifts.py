"""Random integer translations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.attacks.threat import height_and_width
from robustclip.errors import UsageError
from robustclip.views.draws import Draws
from robustclip.views.ranges import check_number


@final
@dataclass(frozen=True)
class Translation:
    """Shift each view by up to `fraction` of its height down or up and of its width left or right, by whole pixels,
    all shifts alike; what comes in is 0. 0.125 is DiffAugment's. Raises UsageError for a fraction outside [0, 1]."""

    fraction: float = 0.125

    def __post_init__(self) -> None:
        check_number("Translation({})", self.fraction, 0, 1, 0.125)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        height, width = images.shape[-2:]
        rows = _moved(draws, height, round_half_up(self.fraction * height))
        columns = _moved(draws, width, round_half_up(self.fraction * width))
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        return pick(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1)) * inside[:, None]


@final
@dataclass(frozen=True)
class Jitter:
    """Roll each view by up to `pixels` down or up and left or right, what leaves on one side coming in on the other,
    then keep the centre of `size` (default: all of it). Direct Ascent Synthesis takes 224 of 336, by 28 or 56.

    Raises UsageError for negative pixels and, when called, for pictures smaller than `size`.
    """

    pixels: int
    size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, int) or self.pixels < 0:
            raise UsageError(
                f"Jitter({self.pixels!r}) is not a number of pixels: 0 or more, as in Jitter(28, size=224)"
            )
        if self.size is not None:
            height_and_width(self.size)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h2 w2"]:
        height, width = images.shape[-2:]
        inner_height, inner_width = (height, width) if self.size is None else height_and_width(self.size)
        if inner_height > height or inner_width > width:
            raise UsageError(
                f"{self} keeps more than pictures of {height}x{width} have: "
                f"use Jitter({self.pixels}, size={min(height, width)}), or pictures larger by the jitter on each side"
            )
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        rows = _moved(draws, height, self.pixels)[:, top : top + inner_height] % height
        columns = _moved(draws, width, self.pixels)[:, left : left + inner_width] % width
        return pick(images, rows, columns)


def pick(
    images: Float[Tensor, "b 3 h w"], rows: Int[Tensor, "b h2"], columns: Int[Tensor, "b w2"]
) -> Float[Tensor, "b 3 h2 w2"]:
    """From each image the given rows and columns. (On a CPU three times as fast as indexing, with its gradient.)"""
    places = (rows[:, :, None] * images.shape[-1] + columns[:, None]).flatten(1)[:, None]
    chosen = images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1))
    return chosen.unflatten(2, (rows.shape[1], columns.shape[1]))


def _moved(draws: Draws, side: int, most: int) -> Int[Tensor, "b side"]:
    """Where each row (or column) of each view comes from when it is moved by up to `most`; may be outside."""
    return torch.arange(side, device=draws.device) - draws.integers(-most, most, 1)


def round_half_up(number: float) -> int:
    """As DiffAugment rounds lengths to whole pixels."""
    return int(number + 0.5)
