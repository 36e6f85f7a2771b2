"""Pixel noise and clamping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.views.draws import Draws
from robustclip.views.ranges import Range, check_ends


@final
@dataclass(frozen=True)
class GaussianNoise:
    """Add N(0, std^2) to each value; `std` is one number, or a range that each view draws its own from (VQGAN+CLIP:
    (0, 0.1)). With `shared`, all views of a picture get the same noise.

    CLIPAG's notebook adds 0.01 to both of its kinds of view: of their own to whole ones, shared to patches.
    Raises UsageError for a std below 0 or an illegal range.
    """

    std: float | Range
    shared: bool = False

    def __post_init__(self) -> None:
        check_ends("GaussianNoise({})", self._ends, 0)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        std = draws.uniform(*self._ends, 1, 1, 1, shared=self.shared)
        noise = draws.normal(*images.shape[1:], shared=self.shared).mul_(std)
        return images + noise.to(images)

    @property
    def _ends(self) -> Range:
        return (self.std, self.std) if isinstance(self.std, int | float) else self.std


@final
@dataclass(frozen=True)
class UniformNoise:
    """Add U(by) to each value; with `shared`, the same to all views of a picture. (0, 0.2) is Direct Ascent
    Synthesis's. Raises UsageError for an illegal range."""

    by: Range = (0.0, 0.2)
    shared: bool = False

    def __post_init__(self) -> None:
        check_ends("UniformNoise({})", self.by)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        return images + draws.uniform(*self.by, *images.shape[1:], shared=self.shared).to(images)


@final
@dataclass(frozen=True)
class Clamp:
    """Cut values to [low, high]; what is cut gets no gradient. Raises UsageError unless low < high."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise UsageError(f"Clamp({self.low}, {self.high}) leaves nothing: give low below high, as in Clamp(0, 1)")

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        return torch.clamp(images, self.low, self.high)
