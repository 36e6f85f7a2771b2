"""Brightness, saturation and contrast per view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.views.draws import Draws
from robustclip.views.ranges import Range, check_ends, check_number

Numbers = Float[Tensor, " b"]


@final
@dataclass(frozen=True)
class Brightness:
    """Add U(by), per view, to all values; (-0.5, 0.5) is DiffAugment's. Raises UsageError for an illegal range."""

    by: Range = (-0.5, 0.5)

    def __post_init__(self) -> None:
        check_ends("Brightness({})", self.by)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        return images + draws.uniform(*self.by, 1, 1, 1).to(images)


@final
@dataclass(frozen=True)
class Saturation:
    """Scale colours about each pixel's grey, the mean of its channels, by U(times) per view: 0 is grey. (0, 2) is
    DiffAugment's. Raises UsageError for an illegal range, or one below 0."""

    times: Range = (0.0, 2.0)

    def __post_init__(self) -> None:
        check_ends("Saturation({})", self.times, 0)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        times = draws.uniform(*self.times)
        return recolour(images, torch.zeros_like(times), times, torch.ones_like(times))


@final
@dataclass(frozen=True)
class Contrast:
    """Scale values about the mean of the view (all channels and pixels) by U(times) per view. (0.5, 1.5) is
    DiffAugment's. Raises UsageError for an illegal range, or one below 0."""

    times: Range = (0.5, 1.5)

    def __post_init__(self) -> None:
        check_ends("Contrast({})", self.times, 0)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        times = draws.uniform(*self.times)
        return recolour(images, torch.zeros_like(times), torch.ones_like(times), times)


@final
@dataclass(frozen=True)
class Colour:
    """Brightness, saturation and contrast in this order, with the same draws and at a third of the time; with
    probability 1 - p a view keeps its colours. Narrow ranges make a colour jitter.

    Raises UsageError for what each of the three would, and for a p outside [0, 1].
    """

    brightness: Range = (-0.5, 0.5)
    saturation: Range = (0.0, 2.0)
    contrast: Range = (0.5, 1.5)
    p: float = 1.0

    def __post_init__(self) -> None:
        check_ends("Colour(brightness={})", self.brightness)
        check_ends("Colour(saturation={})", self.saturation, 0)
        check_ends("Colour(contrast={})", self.contrast, 0)
        check_number("Colour(p={})", self.p, 0, 1, 0.5)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        brightness, saturation, contrast = (
            draws.uniform(*ends) for ends in (self.brightness, self.saturation, self.contrast)
        )
        chosen = draws.chance(self.p)
        return recolour(
            images,
            torch.where(chosen, brightness, 0),
            torch.where(chosen, saturation, 1),
            torch.where(chosen, contrast, 1),
        )


def recolour(
    images: Float[Tensor, "b 3 h w"], brightness: Numbers, saturation: Numbers, contrast: Numbers
) -> Float[Tensor, "b 3 h w"]:
    """Add brightness, scale by saturation about each pixel's mean, then by contrast about each image's.

    With m a pixel's mean and M its image's, this is cs x + c(1-s) m + (1-c) M + b: one product of each pixel with a 3x3
    matrix, and one number an image, instead of three passes with their means.
    """
    grey = contrast * (1 - saturation) / 3
    matrices = torch.diag_embed((contrast * saturation)[:, None].expand(-1, 3)) + grey[:, None, None]
    means = images.mean((1, 2, 3))
    offsets = (1 - contrast).to(images) * means + brightness.to(images)
    return torch.baddbmm(offsets[:, None, None], matrices.to(images), images.flatten(2)).view_as(images)
