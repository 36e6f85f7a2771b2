"""Losses of synthesis: from views of pictures to one number per view."""

from __future__ import annotations

from robustclip.losses.distillation import Distillation
from robustclip.losses.pairing import Pairing
from robustclip.losses.priors import LatentPrior, TotalVariation
from robustclip.losses.similarity import Cosine, Spherical, Target

__all__ = ["Cosine", "Distillation", "LatentPrior", "Pairing", "Spherical", "Target", "TotalVariation"]
