"""Differentiable vector graphics: strokes and filled Bezier shapes, a torch rasteriser, SVG reading and writing."""

from __future__ import annotations

from robustclip.drawing.raster import rasterise
from robustclip.drawing.shapes import Drawing, random_strokes

__all__ = ["Drawing", "random_strokes", "rasterise"]
