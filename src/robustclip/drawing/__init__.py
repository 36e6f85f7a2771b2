"""Vector drawings: strokes and filled shapes made of cubic Bezier curves, painted as pixels with gradients; and SVG."""

from __future__ import annotations

from robustclip.drawing.raster import rasterise
from robustclip.drawing.shapes import Drawing, random_strokes

__all__ = ["Drawing", "random_strokes", "rasterise"]
