"""Canvases: differentiable image parameterisations that synthesis optimises."""

from __future__ import annotations

from robustclip.canvases.base import Canvas
from robustclip.canvases.chains import ChainStart
from robustclip.canvases.codes import Codes
from robustclip.canvases.latents import Latents
from robustclip.canvases.pixels import Pixels
from robustclip.canvases.pyramid import Pyramid
from robustclip.canvases.strokes import Strokes
from robustclip.canvases.style import StyleNetwork

__all__ = ["Canvas", "ChainStart", "Codes", "Latents", "Pixels", "Pyramid", "Strokes", "StyleNetwork"]
