"""Training checkpoints in one file, read without unpickling code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from robustclip.errors import RunError
from robustclip.runs.distributed import is_main
from robustclip.runs.files import atomic_write, reason, remove_drafts

NAME: Final = "checkpoint-{step:08d}.pt"
BEST: Final = "best-{step:08d}.pt"

DAMAGE: Final = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, IndexError, KeyError, ValueError)
"""What torch and zipfile raise for a file that is cut short or holds anything else."""


class Unreadable(RunError):
    """A file that no second look will make a checkpoint."""


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` (tensors, numbers, strings, containers of them) after `step` updates; keep the newest `keep`.

    Those of later steps go too: `newest` has passed over them. Nothing is removed before the new one is written whole.
    Raises RunError where it cannot be written, naming the last good one.
    """
    path = _write(folder / NAME.format(step=step), step, state)
    found = checkpoints(folder)
    behind = found[: found.index(path) + 1]
    for other in found:
        if other not in behind[-keep:]:
            other.unlink(missing_ok=True)
    return path


def save_best(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the best so far, in place of the one before. `save` never removes it. Raises like `save`."""
    path = _write(folder / BEST.format(step=step), step, state)
    for other in _named(folder, BEST):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def newest(folder: Path, device: str | torch.device, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest readable checkpoint, including the best one; None if there is none.

    Each newer one that cannot be read is told to `warn`. Half-written drafts are removed. Raises RunError where there
    are checkpoints and none is readable, and where the disk fails, which says nothing of the file.
    """
    if is_main():
        remove_drafts(folder)
    found = sorted([*_named(folder, BEST), *checkpoints(folder)], key=step_of)  # of one step, the best one first
    for path in reversed(found):
        try:
            return load(path, device)
        except Unreadable as error:
            warn(f"{error}; going on from the one before it")
    if found:
        raise RunError(f"none of the {len(found)} checkpoints in {folder} is readable: remove them to begin again")
    return None


def best(folder: Path) -> Path | None:
    """The checkpoint with the highest accuracy on the probe, if one was kept."""
    found = _named(folder, BEST)
    return found[-1] if found else None


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint with weights_only, its checksums compared. Raises Unreadable for a file that is cut short,
    damaged, or holds anything else, and RunError where the disk does not let it be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not look at its checksums
        if damaged is not None:
            raise Unreadable(f"{path} is not a readable checkpoint ({damaged} is damaged)")
        state = torch.load(path, map_location=device, weights_only=True)
        if not (isinstance(state, dict) and isinstance(state.get("step"), int)):
            raise Unreadable(f"{path} is not a readable checkpoint (it holds no training state)")
    except (Unreadable, torch.OutOfMemoryError):
        raise
    except OSError as error:
        raise RunError(f"{path} could not be read ({error.strerror or error})") from error
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"{path} is not a readable checkpoint ({reason})") from error
    return state


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first, without the best one."""
    return _named(folder, NAME)


def step_of(path: Path) -> int:
    """After how many updates a checkpoint was written."""
    return int(path.stem.rpartition("-")[2])


def _named(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(name.replace("{step:08d}", "[0-9]" * 8)))


def _write(path: Path, step: int, state: dict[str, Any]) -> Path:
    try:
        with atomic_write(path) as file:
            torch.save(state | {"step": step}, file)
    except RunError as error:
        found = checkpoints(path.parent) or _named(path.parent, BEST)
        kept = f"the last good one is {found[-1]}" if found else "no checkpoint had been written yet"
        raise RunError(
            f"{path} could not be written ({reason(error)}): {kept}; make room, e.g. with "
            f"robustclip runs clean, then go on with --resume {path.parent.parent}"
        ) from error
    return path
