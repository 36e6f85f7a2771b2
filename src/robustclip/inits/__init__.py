"""Initial images for synthesis: noise, grey, a picture, or samples of a Gaussian mixture."""

from __future__ import annotations

from robustclip.inits.basic import Init, from_image, grey, noise
from robustclip.inits.best_of import best_of
from robustclip.inits.mixture import Mixture
from robustclip.inits.mixture_file import load_mixture, save_mixture
from robustclip.inits.pool import Pool, embedder, raw_embed

__all__ = [
    "Init",
    "Mixture",
    "Pool",
    "best_of",
    "embedder",
    "from_image",
    "grey",
    "load_mixture",
    "noise",
    "raw_embed",
    "save_mixture",
]
