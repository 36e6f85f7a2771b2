"""Training checkpoints in one file, read without unpickling code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from robustclip.errors import RunError
from robustclip.runs.distributed import is_main, is_sharded
from robustclip.runs.files import atomic_write, reason, remove_drafts

NAME: Final = "checkpoint-{step:08d}.pt"
BEST: Final = "best-{step:08d}.pt"

DAMAGE: Final = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, IndexError, KeyError, ValueError)
"""What torch and zipfile raise for a truncated or foreign file."""


class Unreadable(RunError):
    """A damaged or foreign file, for which reading again is no use."""


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` (tensors, numbers, strings, containers of them) after `step` updates; keep the newest `keep`.

    Checkpoints of later steps, which `newest` could not read, are removed too; nothing is removed before the new one is
    complete. Raises RunError if it cannot be written, naming the last good one.
    """
    path = _write(folder / NAME.format(step=step), step, state)
    saved = checkpoints(folder)
    kept = saved[: saved.index(path) + 1][-keep:]
    for other in saved:
        if other not in kept:
            other.unlink(missing_ok=True)
    return path


def save_best(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the best checkpoint, replacing the previous one; `save` keeps it. Raises like `save`."""
    path = _write(folder / BEST.format(step=step), step, state)
    for other in _named(folder, BEST):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def newest(folder: Path, device: str | torch.device, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest readable checkpoint, including the best one; None if there is none.

    `warn` is called for each newer one that is unreadable. Half-written drafts are removed. Raises RunError if there
    are checkpoints and none is readable, and if the disk fails.
    """
    if is_main():
        remove_drafts(folder)
    saved = sorted([*_named(folder, BEST), *checkpoints(folder)], key=step_of)  # of one step, the best one first
    for path in reversed(saved):
        try:
            return load(path, device)
        except Unreadable as error:
            warn(f"{error}; resuming from the one before it")
    if saved:
        message = f"none of the {len(saved)} checkpoints in {folder} is readable: remove them to begin again"
        raise RunError(message, "no_checkpoints", folder=folder, count=len(saved))
    return None


def best(folder: Path) -> Path | None:
    """The checkpoint with the highest accuracy on the probe, if one was kept."""
    saved = _named(folder, BEST)
    return saved[-1] if saved else None


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint with weights_only after checking its checksums. Raises Unreadable for a truncated, damaged or
    foreign file, and RunError if the disk fails."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not check the checksums
        if damaged is not None:
            raise Unreadable(
                f"{path} is not a readable checkpoint ({damaged} is damaged)", "not_a_checkpoint", path=path
            )
        # Sharded, each process takes its part from the file's pages, which the processes of a machine share.
        state = torch.load(path, map_location=device, weights_only=True, mmap=is_sharded() or None)
        if not (isinstance(state, dict) and isinstance(state.get("step"), int)):
            raise Unreadable(
                f"{path} is not a readable checkpoint (it contains no training state)", "not_a_checkpoint", path=path
            )
    except (Unreadable, torch.OutOfMemoryError):
        raise
    except OSError as error:
        raise RunError(f"{path} could not be read ({error.strerror or error})", "not_readable", path=path) from error
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"{path} is not a readable checkpoint ({reason})", "not_a_checkpoint", path=path) from error
    return state


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first, without the best one."""
    return _named(folder, NAME)


def step_of(path: Path) -> int:
    """The number of updates of a checkpoint, from its name."""
    return int(path.stem.rpartition("-")[2])


def _named(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(name.replace("{step:08d}", "[0-9]" * 8)))


def _write(path: Path, step: int, state: dict[str, Any]) -> Path:
    try:
        with atomic_write(path) as file:
            torch.save(state | {"step": step}, file)
    except RunError as error:
        saved = checkpoints(path.parent) or _named(path.parent, BEST)
        last = f"the last good one is {saved[-1]}" if saved else "no checkpoint had been written yet"
        raise RunError(
            f"{path} could not be written ({reason(error)}): {last}; make room, e.g. with "
            f"robustclip runs clean, then resume with --resume {path.parent.parent}",
            "not_written",
            path=path,
            last=saved[-1] if saved else None,
        ) from error
    return path
