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
"""Seconds by which the start of one process may seem to differ between two looks, when the machine's clock is set."""


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
    """Context manager: KeyboardInterrupt becomes Interrupted with the message `stopped` (what is kept, how to
    resume).
    """
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


@dataclass(frozen=True)
class Place:
    """Which of the processes that train together this one is. `batch_size` always means the pairs of all of them."""

    rank: int = 0
    world_size: int = 1

    def share(self, batch_size: int) -> int:
        """This process's part of a batch. Raises UsageError where the parts would not be equal."""
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: give at least 1, e.g. batch_size=128")
        if batch_size % self.world_size:
            less = batch_size // self.world_size * self.world_size
            near = " or ".join(str(size) for size in (less, less + self.world_size) if size)
            raise UsageError(
                f"batch_size {batch_size} is that of all {self.world_size} processes together, which cannot share it "
                f"evenly: use batch_size={near}"
            )
        return batch_size // self.world_size

    def mine(self, turn: int = 0) -> slice:
        """Which of a row of things are this process's, when they are dealt out one by one; `turn` moves the dealer."""
        return slice((self.rank + turn) % self.world_size, None, self.world_size)


ALONE = Place()
