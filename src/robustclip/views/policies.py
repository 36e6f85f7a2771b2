"""Augmentation policies: named sequences of transforms for `Views`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustclip.attacks.threat import height_and_width
from robustclip.data.images import clamp_through
from robustclip.views.colour import Colour, ColourJitter, GaussianNoise
from robustclip.views.crops import Cutout, Erasing, Rescale, Translation
from robustclip.views.views import Draws, Range, View, check_number
from robustclip.views.warps import Affine, Perspective


@final
@dataclass(frozen=True)
class Pooled:
    """VQGAN-CLIP's default cutout method `latest`: the mean of adaptive average and max pooling of the picture to
    `size`.
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        height_and_width(self.size)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h2 w2"]:
        size = height_and_width(self.size)
        return (F.adaptive_avg_pool2d(images, size) + F.adaptive_max_pool2d(images, size)) / 2


@final
@dataclass(frozen=True)
class RandomSquares:
    """A square of each view, all places alike, resized to `size`: its side is u^power * (largest - smallest) +
    smallest of u = U(0, 1), `largest` being the picture's shorter side, cut to whole pixels. VQGAN-CLIP's method
    `original`; `power` is its cut_pow.

    `smallest` is in pixels, by default the larger side of `size`, as there, and the shorter side of pictures below it.
    Bicubic and antialiased, or `averaged`: by adaptive average pooling (DOODL, whose cut_power is 0.3). Raises
    UsageError for a power that is not above 0 (up to 100) and for a smallest side that is no number of pixels.
    """

    size: int | tuple[int, int]
    power: float = 1.0
    smallest: int | None = None
    averaged: bool = False

    def __post_init__(self) -> None:
        height_and_width(self.size)
        check_number(f"RandomSquares({self.size}, power={{}})", self.power, 1e-3, 100, 1.0)
        if self.smallest is not None:
            check_number(f"RandomSquares({self.size}, smallest={{}})", self.smallest, 1, 2**16, 32)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h2 w2"]:
        size, (height, width) = height_and_width(self.size), images.shape[-2:]
        largest = min(height, width)
        smallest = min(largest, max(size) if self.smallest is None else self.smallest)
        sides = (draws.uniform(0, 1) ** self.power * (largest - smallest) + smallest).long()
        top = (draws.uniform(0, 1) * (height - sides + 1)).long().clamp(max=height - sides)
        left = (draws.uniform(0, 1) * (width - sides + 1)).long().clamp(max=width - sides)
        squares = [
            image[None, :, y : y + side, x : x + side]
            for image, y, x, side in zip(images, top.tolist(), left.tolist(), sides.tolist(), strict=True)
        ]
        if self.averaged:
            return torch.cat([F.adaptive_avg_pool2d(one, size) for one in squares])
        # Each by itself, being of its own size. The release resamples by Lanczos where that makes smaller.
        return torch.cat([F.interpolate(one, size, mode="bicubic", antialias=True) for one in squares])


@final
@dataclass(frozen=True)
class ClampThrough:
    """Clamp to [0, 1]; the gradient passes where it leads back into the range."""

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        return clamp_through(images)


def augmented(translate: tuple[float, float] = (0.1, 0.1)) -> tuple[View, ...]:
    """VQGAN-CLIP's default augmentations `Af Pe Ji Er` in order, with its ranges in kornia's semantics, and noise of a
    random strength per view.

    (0.1, 0.0), down and not across, is what its kornia makes of the 0.1 written there; (0.1, 0.1) is what was meant.
    Raises UsageError for translations outside [0, 1].
    """
    return (
        Affine((-15.0, 15.0), translate, shear=(-5.0, 5.0), p=0.7),
        Perspective(0.7, p=0.7),
        ColourJitter(0.1, 0.1, 0.1, 0.1, p=0.7),
        Erasing((0.1, 0.4), (0.3, 1 / 0.3), p=0.7, shared=True),
        GaussianNoise((0.0, 0.1)),
    )


def inverted(noise: float = 0.1, added: float = 0.0, translate: tuple[float, float] = (0.1, 0.1)) -> tuple[View, ...]:
    """The augmentations of Referee-Can-Play's release (VLMinv, paper-stated kinds: affine, perspective, colours,
    erasing, noise), without crops and flips. `noise` is the largest deviation; each view draws its own below it.
    `added` is that of further noise, the same for all views; the release has 0.2, and none follows at 0.

    Shifts are across and down, as meant; (0.1, 0.0), down only, is what the kornia of the release makes of its 0.1.
    Raises UsageError for a noise below 0 and translations outside [0, 1].
    """
    return (
        Affine((-30.0, 30.0), translate, p=1.0),
        Perspective(0.2, p=0.4),
        ColourJitter(0.1, 0.1, 0.1, 0.1, p=0.5),
        Erasing((0.1, 0.4), (0.3, 1 / 0.3), p=1.0, shared=True),
        GaussianNoise((0.0, noise)),
        *([GaussianNoise(added)] if added else []),
    )


def diffaug(
    brightness: Range = (-0.5, 0.5),
    saturation: Range = (0.0, 2.0),
    contrast: Range = (0.5, 1.5),
    translation: float = 0.125,
    rescale: Range = (0.8, 1.2),
    cutout: float = 0.5,
) -> tuple[View, ...]:
    """DiffAugment's "color,translation,resize,cutout" in this order, with the ranges of CLIPAG's notebook.

    Raises UsageError for what its transforms do.
    """
    colour = Colour(brightness, saturation, contrast)
    return (colour, Translation(translation), Rescale(rescale), Cutout(cutout))


def nudges(
    brightness: Range = (-0.1, 0.1),
    saturation: Range = (0.6, 1.4),
    contrast: Range = (0.8, 1.2),
    degrees: Range = (-15.0, 15.0),
    translation: float = 0.08,
    scale: Range = (0.8, 1.15),
) -> tuple[View, ...]:
    """Small changes of colour and pose that leave a picture whole: nothing is cut out, and its mirror image fills what
    a turn or a shift leaves empty. Ours, for small referees, to which half a picture means little.

    The border's pixels drawn out would each collect the gradient of all that they fill: after 32 steps an edge pixel
    of 35 of 48 pictures was more than 100/255 off its neighbour, and of none with the mirror image.

    Raises UsageError for what its transforms do.
    """
    pose = Affine(degrees, (translation, translation), scale, padding="reflection")
    return (Colour(brightness, saturation, contrast), pose)
