"""The kinds of fault, so that every command can say whose it is, and the end that is none."""

from __future__ import annotations


class UsageError(ValueError):
    """A fault of the call (exit code 2): the message says what came, what would do, and the call that works."""


class RunError(RuntimeError):
    """A fault of the run (exit code 1): the call was good, something it met on the way was not."""


class Interrupted(Exception):
    """The run was told to stop by a signal, and has kept what it had (exit code 128 + signal)."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal
