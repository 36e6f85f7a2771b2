"""Brightness, saturation and contrast per view."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.views.views import Draws, Range, check_ends, check_number

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


LUMA: Final = (0.299, 0.587, 0.114)  # of grey, ITU-R BT.601


@final
@dataclass(frozen=True)
class ColourJitter:
    """Scale each view's brightness, its contrast about its mean grey, and its saturation about each pixel's grey, each
    by U(1 - x, 1 + x), then turn its hue by U(-hue, hue) of the circle; with probability 1 - p a view keeps its
    colours. Values are cut to [0,1] before, between and after, as in kornia's and torchvision's ColorJitter.

    VQGAN-CLIP: 0.1 four times, p 0.7. Ours: always in this order, where kornia shuffles the four in each call.
    Raises UsageError for amounts outside [0, 1], a hue outside [0, 0.5], a p outside [0, 1].
    """

    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.1
    p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            check_number(f"ColourJitter({name}={{}})", getattr(self, name), 0, 1, 0.1)
        check_number("ColourJitter(hue={})", self.hue, 0, 0.5, 0.1)
        check_number("ColourJitter(p={})", self.p, 0, 1, 0.7)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        brightness, contrast, saturation = (
            draws.uniform(1 - by, 1 + by, 1, 1, 1).to(images)
            for by in (self.brightness, self.contrast, self.saturation)
        )
        turns = draws.uniform(-self.hue, self.hue, 1, 1).to(images)
        chosen = draws.chance(self.p)[:, None, None, None]
        jittered = (images.clamp(0, 1) * brightness).clamp(0, 1)
        jittered = torch.lerp(grey(jittered).mean((2, 3), keepdim=True), jittered, contrast).clamp(0, 1)
        jittered = torch.lerp(grey(jittered), jittered, saturation).clamp(0, 1)
        return torch.where(chosen, turn_hue(jittered, turns).clamp(0, 1), images)


def grey(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Luma of each pixel."""
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def turn_hue(images: Float[Tensor, "b 3 h w"], turns: Float[Tensor, "b 1 1"]) -> Float[Tensor, "b 3 h w"]:
    """Rotate the hue (HSV) by `turns` of the circle, keeping value and saturation; greys are unchanged."""
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    divisor = torch.where(chroma > 0, chroma, 1)
    # In sixths of the circle: 0 is red, 2 green, 4 blue.
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    places = (hue + 6 * turns)[:, None] + images.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    away = torch.remainder(places, 6)
    return value[:, None] - chroma[:, None] * torch.minimum(away, 4 - away).clamp(0, 1)


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
    """Clamp values to [low, high]; clamped values get no gradient. Raises UsageError unless low < high."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            message = f"Clamp({self.low}, {self.high}) leaves nothing: give low below high, as in Clamp(0, 1)"
            raise UsageError(message, "not_a_range", call=f"Clamp({self.low}, {self.high})")

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        return torch.clamp(images, self.low, self.high)
