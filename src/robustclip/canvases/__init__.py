"""Canvases: differentiable image parameterisations that synthesis optimises."""

from __future__ import annotations

from robustclip.canvases.base import Canvas
from robustclip.canvases.latents import ChainStart, Codes, Latents
from robustclip.canvases.pixels import Pixels, Pyramid
from robustclip.canvases.strokes import Strokes
from robustclip.canvases.style import StyleNetwork

__all__ = ["Canvas", "ChainStart", "Codes", "Latents", "Pixels", "Pyramid", "Strokes", "StyleNetwork"]
