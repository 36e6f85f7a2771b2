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

from robustclip.errors import Interrupted

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

GRACE: Final = 30
"""Seconds that a reader of data lives on after a SIGTERM, so that the step it feeds can be finished and written down.
Terminals and schedulers send their signals to all processes of a job at once."""


@dataclass
class Caught:
    """The signal that came, if one did."""

    signal: int | None = None


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM is a KeyboardInterrupt, as SIGINT is: blocks that are open end as they do after Ctrl-C.

    Processes forked in the block die of it, as they would outside. Outside the main thread nothing changes.
    """
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def saying(stopped: str) -> Iterator[None]:
    """A KeyboardInterrupt that leaves the block becomes Interrupted, which says `stopped`: what is kept, and how to go
    on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(number_of(error), stopped) from error


def number_of(error: BaseException) -> int:
    """The signal that a KeyboardInterrupt is of: SIGTERM where `terminable` made it, else SIGINT."""
    return int(error.args[0]) if error.args and isinstance(error.args[0], int) else int(signal.SIGINT)


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
            raise KeyboardInterrupt(number)
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
