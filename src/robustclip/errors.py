"""The kinds of fault, so that every command can say whose it is, and the end that is none."""

from __future__ import annotations

from enum import StrEnum


class UsageError(ValueError):
    """A fault of the call (exit code 2): the message says what came, what would do, and the call that works."""


class RunError(RuntimeError):
    """A fault of the run (exit code 1): the call was good, something it met on the way was not."""


class Interrupted(Exception):
    """The run was told to stop by a signal, and has kept what it had (exit code 128 + signal)."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


class Fault(StrEnum):
    """Why a sample is skipped."""

    NO_IMAGE = "no image"
    NO_FILE = "image file missing"
    EMPTY_IMAGE = "empty image"
    NOT_AN_IMAGE = "not an image"
    DAMAGED_IMAGE = "truncated or damaged image"
    TOO_LARGE = "too many pixels"
    TOO_BIG = "file of more than 64 MiB"
    TOO_DEEP = "more than 8 bits a channel"
    NO_CAPTION = "no caption"
    NOT_UTF8 = "caption not in UTF-8"
    BAD_METADATA = "metadata not a JSON object"
    NOT_A_FILE = "link or device in a shard, or a name without end"
    HIDDEN = "hidden file in a shard"
    BROKEN_SHARD = "broken shard"


class Skip(Exception):
    """This picture cannot be used; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault
