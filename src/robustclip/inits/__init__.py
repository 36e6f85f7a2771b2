"""Initial images for synthesis: noise, grey, a picture, or samples of a Gaussian mixture."""

from __future__ import annotations

from robustclip.inits.basic import Init, Pool, best_of, embedder, from_image, grey, noise, raw_embed
from robustclip.inits.mixture import Mixture
from robustclip.inits.mixture_file import load_mixture, save_mixture

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
