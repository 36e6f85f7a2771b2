"""Image-text data: embedded splits, composed scenes, and sources of training batches. Names load when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustclip.data import images
    from robustclip.data.emoji import LabelledImages, load_split
    from robustclip.data.samples import Batch
    from robustclip.data.scenes import compose_scenes

_HOME_OF = {"Batch": "samples", "LabelledImages": "emoji", "compose_scenes": "scenes", "load_split": "emoji"}

__all__ = ["Batch", "LabelledImages", "compose_scenes", "images", "load_split"]


def __getattr__(name: str) -> Any:
    if name == "images":
        return import_module(f"{__name__}.images")
    if name in _HOME_OF:
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
