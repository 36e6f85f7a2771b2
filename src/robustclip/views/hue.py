"""Colour jitter with hue rotation, as in VQGAN-CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.views.draws import Draws
from robustclip.views.ranges import check_number

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
    """Each pixel's luma."""
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def turn_hue(images: Float[Tensor, "b 3 h w"], turns: Float[Tensor, "b 1 1"]) -> Float[Tensor, "b 3 h w"]:
    """The same value and saturation (of HSV), and a hue further by `turns` of the circle. Greys have none, and stay."""
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
