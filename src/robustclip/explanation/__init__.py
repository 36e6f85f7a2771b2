"""Explanation: class activation maps and input gradients of a referee, clean and under attack."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustclip.explanation.looks import look, negate, numbers
    from robustclip.explanation.maps import Mapper, overlay

_HOME_OF = {
    "Mapper": "maps",
    "look": "looks",
    "negate": "looks",
    "numbers": "looks",
    "overlay": "maps",
}

__all__ = ["Mapper", "look", "negate", "numbers", "overlay"]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
