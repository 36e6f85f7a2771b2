"""Ctrl-C and SIGTERM, kept until a moment at which nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

GRACE: Final = 30
"""Seconds that a reader of data lives on after a SIGTERM, so that the step it feeds can be finished and written down.
Terminals and schedulers send their signals to all processes of a job at once."""


@dataclass
class Caught:
    """The signal that came, if one did."""

    signal: int | None = None


@contextmanager
def catching_signals() -> Iterator[Caught]:
    """Within the block the first SIGINT or SIGTERM is only noted; a second one interrupts at once.

    The handlers of before are put back afterwards. Processes forked in the block (readers of data) leave Ctrl-C to this
    one, and end `GRACE` seconds after a SIGTERM. Outside the main thread, where Python handles no signals, nothing is
    caught.
    """
    caught, owner = Caught(), os.getpid()

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if os.getpid() != owner:
            if number == signal.SIGTERM:
                signal.alarm(GRACE)
        elif caught.signal is not None:
            raise KeyboardInterrupt
        else:
            caught.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set outside Python
