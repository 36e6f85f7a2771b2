"""Canvases: differentiable image parameterisations that synthesis optimises."""

from __future__ import annotations

from robustclip.canvases.base import Canvas
from robustclip.canvases.implicit import Implicit
from robustclip.canvases.latents import ChainStart, Codes, Latents
from robustclip.canvases.pixels import Pixels, Pyramid
from robustclip.canvases.strokes import Strokes
from robustclip.canvases.style import StyleNetwork

__all__ = ["Canvas", "ChainStart", "Codes", "Implicit", "Latents", "Pixels", "Pyramid", "Strokes", "StyleNetwork"]
