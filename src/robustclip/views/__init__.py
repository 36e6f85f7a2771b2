"""Differentiable augmentations (views) with one random generator per picture."""

from __future__ import annotations

from robustclip.views.boxes import Cutout, Erasing
from robustclip.views.colour import Brightness, Colour, Contrast, Saturation
from robustclip.views.crops import RandomCrop, RandomResizedCrop, Rescale
from robustclip.views.cutouts import ClampThrough, Pooled, RandomSquares
from robustclip.views.draws import Draws
from robustclip.views.hue import ColourJitter
from robustclip.views.noise import Clamp, GaussianNoise, UniformNoise
from robustclip.views.policies import diffaug, nudges
from robustclip.views.shifts import Jitter, Translation
from robustclip.views.views import View, Views
from robustclip.views.warps import Affine, Perspective

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
