"""Canvases: what is optimised until it looks right. They know images, not texts, referees or views."""

from __future__ import annotations

from robustclip.canvases.base import Canvas
from robustclip.canvases.pixels import Pixels
from robustclip.canvases.pyramid import Pyramid

__all__ = ["Canvas", "Pixels", "Pyramid"]
