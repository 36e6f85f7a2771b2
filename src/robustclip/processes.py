"""Which process made something, and whether it lives: a number alone does not tell, since numbers are used again."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any, Final

import psutil

CLOCK: Final = 2.0
"""Seconds by which the start of one process may seem to differ between two looks, when the machine's clock is set."""


def this_process() -> dict[str, Any]:
    """What `is_alive` needs to find this process again: host, pid, and when it started (seconds since 1970)."""
    return {"host": platform.node(), "pid": os.getpid(), "born": psutil.Process().create_time()}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Whether that process still runs; None where that cannot be told, because it ran on another host."""
    if process.get("host") != platform.node():
        return None
    try:
        found = psutil.Process(int(process["pid"]))
        same = abs(found.create_time() - float(process["born"])) < CLOCK
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (KeyError, TypeError, ValueError, psutil.AccessDenied):
        return None
