"""Process identity, folder locks, ranks, and handling of SIGINT and SIGTERM."""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from robustclip.errors import Interrupted, UsageError
from robustclip.runs.files import LOCK, naming, read_json

_log = logging.getLogger("robustclip")

CLOCK: Final = 2.0
"""Seconds by which a process's start time may change when the machine's clock is set."""


def this_process() -> dict[str, Any]:
    """What `is_alive` needs to find this process again: host, pid, and when it started (seconds since 1970)."""
    import psutil  # here, so that --help does not wait for it

    return {"host": platform.node(), "pid": os.getpid(), "born": psutil.Process().create_time()}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Whether a process is running; None if unknown (another host)."""
    if process.get("host") != platform.node():
        return None
    import psutil  # here, so that --help does not wait for it

    try:
        running = psutil.Process(int(process["pid"]))
        same = abs(running.create_time() - float(process["born"])) < CLOCK
        return same and running.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (KeyError, TypeError, ValueError, OverflowError, psutil.AccessDenied):
        return None


def lock(folder: Path, *, elsewhere: bool = False) -> None:
    """Make this process the only writer of `folder` (created if missing) until `unlock`.

    The lock is a file with host and pid, linked into place atomically. The lock of a dead process on this host is taken
    over with a warning; that of a process on another host, which may be alive, only with `elsewhere`.

    Raises UsageError if another process holds the lock, RunError if the folder cannot be written.
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
                    f"{folder} is in use by process {owner.get('pid')!r}{where}: write elsewhere, or wait "
                    "until it ends",
                    "in_use",
                    pid=owner.get("pid"),
                )
            if _removed(path, owner) and owner:
                _log.warning(f"{folder} was left locked by process {owner.get('pid')!r}, which is gone: taken over")


def unlock(folder: Path) -> None:
    """Release the lock of `folder` if this process holds it."""
    with suppress(OSError):
        owner = _owner(folder / LOCK)
        if (owner.get("host"), owner.get("pid")) == (platform.node(), os.getpid()):
            (folder / LOCK).unlink()


@contextmanager
def owning(folder: Path | None) -> Iterator[None]:
    """Context manager: hold the lock of `folder` (None: no lock). A new folder that stays empty is removed. Raises as
    `lock`."""
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
    """Create the lock atomically, with its content; False if there is one already."""
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
    """The content of a lock; {} if it is missing or unreadable."""
    try:
        owner = read_json(path)
    except UsageError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _removed(path: Path, owner: dict[str, Any]) -> bool:
    """Remove the lock of a dead process if it is unchanged; of two processes that try, only one succeeds."""
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


SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

GRACE: Final = 30
"""Seconds that a data worker outlives a SIGTERM, so that the current step can be finished and saved. Terminals and
schedulers send signals to all processes of a job at once."""


@dataclass
class Caught:
    """The first signal received, if any."""

    signal: int | None = None


@contextmanager
def terminable() -> Iterator[None]:
    """Context manager: SIGTERM raises KeyboardInterrupt, as SIGINT does.

    In processes forked in the block it keeps its default effect. Does nothing outside the main thread.
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
    """Context manager: KeyboardInterrupt becomes Interrupted with the message `stopped` (what is kept, how to
    resume).
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(number_of(error), stopped) from error


def number_of(error: BaseException) -> int:
    """The signal of a KeyboardInterrupt: SIGTERM if `terminable` raised it, else SIGINT."""
    return int(error.args[0]) if error.args and isinstance(error.args[0], int) else int(signal.SIGINT)


@contextmanager
def catching_signals() -> Iterator[Caught]:
    """Context manager: the first SIGINT or SIGTERM is only recorded; a second one interrupts at once.

    Previous handlers are restored. Processes forked in the block (data workers) ignore Ctrl-C, and end `GRACE` seconds
    after a SIGTERM. Does nothing outside the main thread.
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


@dataclass(frozen=True)
class Place:
    """Rank and world size. `batch_size` always means the total over all processes."""

    rank: int = 0
    world_size: int = 1

    def share(self, batch_size: int) -> int:
        """This process's part of a batch. Raises UsageError if the parts would not be equal."""
        if batch_size < 1:
            message = f"batch_size {batch_size}: give at least 1, e.g. batch_size=128"
            raise UsageError(message, "out_of_range", argument="batch_size", given=batch_size)
        if batch_size % self.world_size:
            less = batch_size // self.world_size * self.world_size
            near = " or ".join(str(size) for size in (less, less + self.world_size) if size)
            raise UsageError(
                f"batch_size {batch_size} is that of all {self.world_size} processes together, which cannot share it "
                f"evenly: use batch_size={near}",
                "not_divisible",
                argument="batch_size",
                given=batch_size,
                near=near,
            )
        return batch_size // self.world_size

    def mine(self, turn: int = 0) -> slice:
        """Slice of a sequence dealt round-robin to the processes, beginning at rank `turn`."""
        return slice((self.rank + turn) % self.world_size, None, self.world_size)


ALONE = Place()
