"""Live preview of pictures in a notebook; a no-op without IPython."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from jaxtyping import Float
from torch import Tensor

from robustclip.data.images import to_pil
from robustclip.synthesis.contact import overview

EVERY: Final = 1.0
"""Seconds between pictures."""


def in_notebook() -> bool:
    """Whether this runs in a notebook's kernel. IPython is looked at only where someone else has loaded it."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


class Live:
    """One picture in the cell's output, replaced every second; nothing outside a notebook."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.last = 0.0
        self.is_on = in_notebook()

    def show(self, images: Float[Tensor, "p 3 h w"], *, now: bool = False) -> None:
        """Show a batch, unless the last time was a moment ago."""
        if not self.is_on or (not now and time.monotonic() - self.last < EVERY):
            return
        from IPython.display import display  # optional: where a notebook runs, it is there

        picture = to_pil(overview(images))
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)
        self.last = time.monotonic()
