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
from robustclip.views.geometry import Affine, Cutout, Erasing, Perspective, Rescale, Translation
from robustclip.views.views import Draws, Range, View, check_number


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
    """A random square of each view, uniformly placed, resized to `size`: its side is u^power * (largest - smallest) +
    smallest of u = U(0, 1), `largest` being the picture's shorter side, truncated to pixels. VQGAN-CLIP's method
    `original`; `power` is its cut_pow.

    `smallest` is in pixels, by default the larger side of `size`, at most the picture's shorter side.
    Bicubic and antialiased, or `averaged`: by adaptive average pooling (DOODL, whose cut_power is 0.3). Raises
    UsageError for a power outside (0, 100] and an invalid smallest side.
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
        # Separately, because sizes differ. The release downsamples by Lanczos.
        return torch.cat([F.interpolate(one, size, mode="bicubic", antialias=True) for one in squares])


@final
@dataclass(frozen=True)
class ClampThrough:
    """Clamp to [0, 1]; gradients that lead back into the range pass."""

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        return clamp_through(images)


def augmented(translate: tuple[float, float] = (0.1, 0.1)) -> tuple[View, ...]:
    """VQGAN-CLIP's default augmentations `Af Pe Ji Er` in order, with its ranges in kornia's semantics, and noise of a
    random strength per view.

    The kornia of the release reads its 0.1 as (0.1, 0.0), vertical only; (0.1, 0.1) was intended.
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
    erasing, noise), without crops and flips. `noise` is the maximum deviation of each view's random one;
    `added` that of additional noise, equal for all views (0.2 in the release).

    Shifts are in both directions; the kornia of the release reads its 0.1 as (0.1, 0.0), vertical only.
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

    Raises UsageError as its transforms do.
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
    """Small changes of colour and pose without cropping; reflection fills empty areas. Ours, for small referees, which
    do not recognise parts of pictures.

    With border padding, edge pixels collect the gradient of all pixels that they fill: after 32 steps an edge pixel of
    35 of 48 pictures differed by more than 100/255 from its neighbour; with reflection, of none.

    Raises UsageError as its transforms do.
    """
    pose = Affine(degrees, (translation, translation), scale, padding="reflection")
    return (Colour(brightness, saturation, contrast), pose)
