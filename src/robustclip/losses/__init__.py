"""Losses of synthesis: views of pictures -> one number a view. They know a referee's methods, not its family."""

from __future__ import annotations

from robustclip.losses.distillation import Distillation
from robustclip.losses.pairing import Pairing
from robustclip.losses.priors import LatentPrior, TotalVariation
from robustclip.losses.similarity import Cosine, Spherical, Target

__all__ = ["Cosine", "Distillation", "LatentPrior", "Pairing", "Spherical", "Target", "TotalVariation"]
