"""What detectors find."""

from __future__ import annotations

from typing import NamedTuple

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in shares of the picture."""


class Detection(NamedTuple):
    """A thing found: its name, a score in [0,1], and its box."""

    label: str
    score: float
    box: Box
