"""Canvases: differentiable image parameterisations that synthesis optimises."""

from __future__ import annotations

from robustclip.canvases.base import Canvas
from robustclip.canvases.latents import ChainStart, Codes, Latents
from robustclip.canvases.networks import Implicit, StyleNetwork
from robustclip.canvases.pixels import Pixels, Pyramid
from robustclip.canvases.strokes import Strokes

__all__ = ["Canvas", "ChainStart", "Codes", "Implicit", "Latents", "Pixels", "Pyramid", "Strokes", "StyleNetwork"]
