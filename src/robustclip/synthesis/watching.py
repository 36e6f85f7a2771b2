"""Progress of synthesis: bar or lines, preview file, notebook or other display."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from robustclip.data.images import to_pil
from robustclip.runs import distributed
from robustclip.runs.progress import TrainingProgress
from robustclip.synthesis.items import Item
from robustclip.synthesis.pictures import OVERVIEW, overview, write_picture

EVERY: Final = 1.0
"""Seconds between pictures."""


def in_notebook() -> bool:
    """Whether this runs in a notebook kernel, without importing IPython."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


Display = Callable[[Image.Image], None]
_display: ContextVar[Display | None] = ContextVar("display", default=None)


@contextmanager
def shown_on(display: Display) -> Iterator[None]:
    """Context manager: runs in the block pass their best pictures so far to `display`, every `EVERY` seconds."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


class Live:
    """One picture, replaced every second: on the display of `shown_on`, or in a notebook's output; else nothing."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.last = 0.0
        self.display = _display.get()
        self.is_on = self.display is not None or in_notebook()

    def show(self, images: Float[Tensor, "p 3 h w"], *, now: bool = False) -> None:
        """Show a batch, at most every `EVERY` seconds."""
        if not self.is_on or (not now and time.monotonic() - self.last < EVERY):
            return
        picture = to_pil(overview(images))
        if self.display is not None:
            self.display(picture)
        elif self.handle is None:
            from IPython.display import display  # optional, present in notebooks

            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)
        self.last = time.monotonic()


PREVIEW_EVERY: Final = 3.0
SHOW_EVERY: Final = 0.2
"""Seconds between updates of numbers, which synchronise the accelerator."""


class Watcher:
    """Watch of a run: a context around its batches, of `total` pictures with `steps` steps each. `check` is called at
    each step and may raise to stop the run. No output but of the main process."""

    def __init__(
        self,
        folder: Path,
        *,
        total: int,
        steps: int,
        batch_size: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.total = total
        self.steps = max(steps, 1)
        self.check = check
        self.done = self.batches = 0
        self.loss: str | None = None
        self.silent = not distributed.is_main()
        batches = math.ceil(total / batch_size)
        self.progress = TrainingProgress(total=batches * self.steps, title="painting", silent=self.silent)
        self.live = Live()

    def __enter__(self) -> Watcher:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)

    def begin(self, batch: Sequence[Item]) -> None:
        """Start a batch."""
        self.batch = batch
        self.best: Tensor | None = None
        self.similarity: Tensor | None = None
        self.last_look = self.last_preview = time.monotonic()
        first, last = self.done + 1, self.done + len(batch)
        which = f"picture {first}" if first == last else f"pictures {first}-{last}"
        self._entitle(f"{which} of {self.total}: step")

    def announce(self, loss: str) -> None:
        """See `robustclip.synthesis.painted.Watch`. Printed once for all batches."""
        if self.loss is None and not self.silent:
            self.progress.console.print(f"minimising {loss}", highlight=False, markup=False, soft_wrap=True)
        self.loss = loss

    def __call__(self, step: int, images: Float[Tensor, "p 3 h w"], numbers: Mapping[str, Float[Tensor, " p"]]) -> None:
        """See `robustclip.synthesis.painted.Watch`."""
        self.check()
        if self.silent:
            return
        images, similarity = images.detach(), numbers["similarity"].detach()
        if self.best is None or self.similarity is None:
            self.best, self.similarity = images.clone(), similarity.clone()
        better = similarity > self.similarity
        self.best = torch.where(better[:, None, None, None], images, self.best)
        self.similarity = torch.where(better, similarity, self.similarity)
        now = time.monotonic()
        if now - self.last_look >= SHOW_EVERY or step >= self.steps:
            self.last_look = now
            shown = {"loss": numbers["loss"].mean().item()} if "loss" in numbers else {}
            shown |= {"similarity": similarity.mean().item(), "best": self.similarity.max().item()}
            self.progress.numbers |= shown
        self.progress.advance(images=len(images) / self.steps)
        if now - self.last_preview >= PREVIEW_EVERY:
            self._preview(step)
            self.last_preview = time.monotonic()
        self.live.show(self.best)

    def end(self) -> None:
        """End a batch, after it was written."""
        self.done += len(self.batch)
        self.batches += 1
        self.progress.step = self.batches * self.steps  # also if it stopped early
        if not self.silent and self.best is not None:
            self.live.show(self.best, now=True)
            if self.done == self.total:
                self._preview(self.steps)

    def _entitle(self, title: str) -> None:
        self.progress.title = title
        self.progress.bar.update(self.progress.task, description=title)

    def _preview(self, step: int) -> None:
        if self.best is None or self.similarity is None:
            return
        facts = {
            "step": step,
            "ids": [item.id for item in self.batch[:OVERVIEW]],
            "best": self.similarity[:OVERVIEW].tolist(),
        }
        with suppress(OSError):  # a missing preview is harmless
            write_picture(self.folder / "preview.png", overview(self.best), facts)
