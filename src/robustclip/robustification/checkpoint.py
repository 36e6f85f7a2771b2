"""The state of a training run in one file, read back without unpickling code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from robustclip.errors import RunError
from robustclip.files import atomic_write

NAME = "checkpoint-{step:08d}.pt"


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` (tensors, numbers, strings, containers of them) after `step` updates; keep the newest `keep`."""
    path = folder / NAME.format(step=step)
    with atomic_write(path) as file:
        torch.save(state | {"step": step}, file)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint with weights_only. Raises RunError for a file that is cut short or holds anything else."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{path} is not a readable checkpoint ({reason}): remove it, and --resume takes the one before"
        ) from error
    return state


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; [] where there is none."""
    return sorted(folder.glob(NAME.replace("{step:08d}", "*")))
