"""Which process made something, whether it lives (a pid alone does not tell, since pids are used again), and which one
may write to a folder."""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil

from robustclip.errors import UsageError
from robustclip.runs.files import LOCK, naming, read_json

_log = logging.getLogger("robustclip")

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
    except (KeyError, TypeError, ValueError, OverflowError, psutil.AccessDenied):
        return None


def lock(folder: Path, *, elsewhere: bool = False) -> None:
    """Make this process the only one that writes to `folder`, which is made where missing, until `unlock`.

    The lock is a file with host and pid, linked into place, so that of several processes one gets it. That of a process
    on this host that is gone is taken over, which is said; that of a process on another host, of which it cannot be
    told whether it lives, only with `elsewhere`.

    Raises UsageError where another run or process has the folder, RunError where it cannot be written to.
    """
    path = folder / LOCK
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while not _made(path):
            owner = _owner(path)
            alive = is_alive(owner) if owner else False
            if alive or (alive is None and not elsewhere):
                where = "" if alive else f" on {owner.get('host')!r}"
                raise UsageError(
                    f"{folder} is in use by process {owner.get('pid')!r}{where}: write elsewhere, or wait until it ends"
                )
            if _removed(path, owner) and owner:
                _log.warning(f"{folder} was left locked by process {owner.get('pid')!r}, which is gone: taken over")


def unlock(folder: Path) -> None:
    """Let others write to `folder` again, if it is this process that may."""
    with suppress(OSError):
        owner = _owner(folder / LOCK)
        if (owner.get("host"), owner.get("pid")) == (platform.node(), os.getpid()):
            (folder / LOCK).unlink()


@contextmanager
def owning(folder: Path | None) -> Iterator[None]:
    """Within the block no other process that asks may write to `folder`; None is no folder. A folder in which nothing
    was written is removed. Raises as `lock`."""
    if folder is None:
        yield
        return
    new = not folder.exists()
    lock(folder)
    try:
        yield
    finally:
        unlock(folder)
        if new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _made(path: Path) -> bool:
    """Whether the lock could be made, which it can where there is none. It appears with its content, or not at all."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.write_text(json.dumps(this_process()), encoding="utf-8")
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: exclusive creation, a moment before the content
            with path.open("x", encoding="utf-8") as file:
                file.write(draft.read_text(encoding="utf-8"))
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def _owner(path: Path) -> dict[str, Any]:
    """What a lock says; {} where it is gone or says nothing that can be read."""
    try:
        found = read_json(path)
    except UsageError:
        return {}
    return found if isinstance(found, dict) else {}


def _removed(path: Path, owner: dict[str, Any]) -> bool:
    """Remove the lock of a process that is gone, if it still is that one: two that find it take turns, and the second
    finds the lock of the first."""
    try:
        import fcntl

        with path.open("rb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()) or _owner(path) != owner:
                return False
            path.unlink()
    except FileNotFoundError:
        return False
    return True
