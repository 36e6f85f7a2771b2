"""Progress of long work on stderr: bars in a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, track

WINDOW: Final = 50  # steps over which speed is averaged, so that ETA follows the machine but not each step
Part = TypeVar("Part")
SLOW_DATA: Final = 0.1  # share of the time above which waiting for data is shown
LINE_EVERY: Final = 15.0  # seconds between lines where there is no terminal

TITLES: Final = {"clean_similarity": "clean sim", "adversarial_similarity": "adv sim"}
"""How numbers are headed where their name is too long for a line."""


class TrainingProgress:
    """A context that shows step, loss, clean and adversarial similarity, images/s (or another `unit`) and ETA.

    `start` is where a resumed run begins. It goes to stderr, so that what a command prints stays clean; of several
    processes that train together, all but one are `silent`.
    """

    def __init__(
        self,
        *,
        total: int,
        start: int = 0,
        title: str = "training",
        unit: str = "images",
        console: Console | None = None,
        silent: bool = False,
    ) -> None:
        self.total = total
        self.step = start
        self.title, self.unit = title, unit
        self.console = console or Console(stderr=True, quiet=silent)
        self.numbers: dict[str, float] = {}
        self.finished_steps: deque[tuple[float, float]] = deque(maxlen=WINDOW + 1)  # (moment, images of the step)
        self.waits: deque[float] = deque(maxlen=WINDOW)  # seconds of each step's wait for data
        self.began: float | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total, completed=start, numbers="")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        self.began = time.monotonic()
        self.finished_steps.append((self.began, 0))
        self.last_line = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def fed(self, batches: Iterator[Part]) -> Iterator[Part]:
        """The same batches; measures how long each was waited for."""
        began = time.monotonic()
        for batch in batches:
            self.waits.append(time.monotonic() - began)
            yield batch
            began = time.monotonic()

    def advance(self, *, images: float, **numbers: float) -> None:
        """One step is done: `images` were seen (where one takes many steps, a share of it), and these numbers are new
        (loss=..., clean_similarity=...)."""
        self.step += 1
        self.finished_steps.append((time.monotonic(), images))
        self.show(**numbers)
        if not self.console.is_terminal and (self.step == self.total or self._line_is_due()):
            self.last_line = time.monotonic()
            self.console.print(
                f"{self.title} {self.step}/{self.total}  {self.describe()}", highlight=False, soft_wrap=True
            )

    def show(self, **numbers: float) -> None:
        """Show new numbers without a step; those shown before stay."""
        self.numbers |= numbers
        self.bar.update(self.task, completed=self.step, numbers=self.describe())

    @property
    def seconds(self) -> float:
        """Time taken by the steps that speed is averaged over."""
        return self.finished_steps[-1][0] - self.finished_steps[0][0]

    @property
    def images_per_second(self) -> float:
        """Averaged over the last steps; 0 before the first."""
        images = sum(images for _, images in list(self.finished_steps)[1:])
        return images / self.seconds if self.seconds > 0 else 0.0

    @property
    def data_wait(self) -> float:
        """Share of the last steps' time that was spent waiting for data."""
        return sum(self.waits) / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds to the last step at the speed of the last ones; None before the second. The first is
        left out: what is made once, e.g. candidates, is made in it."""
        moments = [moment for moment, _ in self.finished_steps]
        if moments and moments[0] == self.began:
            moments = moments[1:]
        if self.step >= self.total:
            return 0.0
        return (self.total - self.step) * (moments[-1] - moments[0]) / (len(moments) - 1) if len(moments) > 1 else None

    def describe(self) -> str:
        """Everything but the step in one line."""
        parts = [f"{TITLES.get(name, name.replace('_', ' '))} {value:.3f}" for name, value in self.numbers.items()]
        speed = self.images_per_second
        parts.append((f"{speed:.1f}" if speed >= 1 or speed == 0 else f"{speed:.2g}") + f" {self.unit}/s")
        if (steps := len(self.finished_steps) - 1) and self.seconds > steps:  # of slow ones, what one takes
            parts.append(f"{self.seconds / steps:.1f} s a step")
        if self.data_wait > SLOW_DATA:
            parts.append(f"{self.data_wait:.0%} waiting for data")
        if self.eta is not None:
            parts.append(f"ETA {clock(self.eta)}")
        return "  ".join(parts)

    def _line_is_due(self) -> bool:
        return time.monotonic() - self.last_line >= LINE_EVERY


def watched(parts: Sequence[Part], line: str = "", title: str = "") -> Iterator[Part]:
    """Iterate over parts with a progress bar and title; without a terminal, a line at first and one every so often;
    silent without a title."""
    console = Console(stderr=True)
    if not line or console.is_terminal:
        yield from track(parts, escape(title or line), console=console, transient=True, disable=not line)
        return
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    began = last_line = time.monotonic()
    for done, part in enumerate(parts):
        now = time.monotonic()
        if done and now - last_line >= LINE_EVERY:
            last_line = now
            left = clock((now - began) / done * (len(parts) - done))
            console.print(f"{line}, {done}/{len(parts)}  ETA {left}", highlight=False, markup=False, soft_wrap=True)
        yield part


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
