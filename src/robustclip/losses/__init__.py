"""Losses of synthesis: views of pictures -> one number a view. They know a referee's methods, not its family."""

from __future__ import annotations

from robustclip.losses.priors import LatentPrior, TotalVariation
from robustclip.losses.similarity import Cosine, Spherical, Target

__all__ = ["Cosine", "LatentPrior", "Spherical", "Target", "TotalVariation"]
