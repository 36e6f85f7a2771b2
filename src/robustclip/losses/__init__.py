"""Losses of synthesis: from views of pictures to one number per view."""

from __future__ import annotations

from robustclip.losses.content import LatentPrior, TotalVariation
from robustclip.losses.distillation import Distillation
from robustclip.losses.perceptual import PerceptualDistance, Triplets
from robustclip.losses.scores import Pairing
from robustclip.losses.similarity import Cosine, Pairs, Spherical, Target, aligned, procrustes

__all__ = [
    "Cosine",
    "Distillation",
    "LatentPrior",
    "Pairing",
    "Pairs",
    "PerceptualDistance",
    "Spherical",
    "Target",
    "TotalVariation",
    "Triplets",
    "aligned",
    "procrustes",
]
