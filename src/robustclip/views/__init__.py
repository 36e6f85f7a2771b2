"""Differentiable augmentations (views) with one random generator per picture."""

from __future__ import annotations

from robustclip.views.colour import (
    Brightness,
    Clamp,
    Colour,
    ColourJitter,
    Contrast,
    GaussianNoise,
    Saturation,
    UniformNoise,
)
from robustclip.views.geometry import (
    Affine,
    Cutout,
    Erasing,
    Jitter,
    Perspective,
    RandomCrop,
    RandomResizedCrop,
    Rescale,
    Translation,
)
from robustclip.views.policies import ClampThrough, Pooled, RandomSquares, diffaug, nudges
from robustclip.views.views import Draws, View, Views

__all__ = [
    "Affine",
    "Brightness",
    "Clamp",
    "ClampThrough",
    "Colour",
    "ColourJitter",
    "Contrast",
    "Cutout",
    "Draws",
    "Erasing",
    "GaussianNoise",
    "Jitter",
    "Perspective",
    "Pooled",
    "RandomCrop",
    "RandomResizedCrop",
    "RandomSquares",
    "Rescale",
    "Saturation",
    "Translation",
    "UniformNoise",
    "View",
    "Views",
    "diffaug",
    "nudges",
]
