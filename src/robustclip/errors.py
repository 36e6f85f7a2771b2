"""The two kinds of fault, so that every command can say whose it is."""

from __future__ import annotations


class UsageError(ValueError):
    """A fault of the call (exit code 2): the message says what came, what would do, and the call that works."""


class RunError(RuntimeError):
    """A fault of the run (exit code 1): the call was good, something it met on the way was not."""
