"""Complete training state for bit-exact resumption."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim import AdamW

from robustclip.errors import RunError, UsageError
from robustclip.referees.base import TwoTower
from robustclip.runs import checkpoint, distributed
from robustclip.runs.devices import chosen_dtype
from robustclip.runs.folder import Run

MEASURED_ON = 32
"""Images of the step that `--dtype measure` times."""


class Remembered(Protocol):
    """A part whose state is plain numbers."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass
class TrainingState:
    """Weights, moments and schedules, and how far the run is: `step` updates, and where in the data.

    Everything random is a function of seed, step and sample, so no generator is among it.
    """

    tower: nn.Module
    averaged: ModelEmaV3
    optimizer: AdamW
    plain: dict[str, Remembered]
    step: int = 0
    position: dict[str, Any] | None = None
    best: float = field(default=-1.0)
    seconds_before: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time that training took, over all its starts."""
        return round(self.seconds_before + time.monotonic() - self.began, 1)

    def state_dict(self) -> dict[str, Any]:
        """The state, every tensor whole; where weights are split over processes, all of them must ask."""
        split = {
            "tower": self.tower.state_dict(),
            "ema": self.averaged.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        numbers = {"data": distributed.listed(self.position), "best": self.best, "seconds": self.seconds}
        return distributed.whole(split) | {name: part.state_dict() for name, part in self.plain.items()} | numbers

    def restore(self, run: Run, device: torch.device) -> None:
        """Load the newest readable checkpoint of the run, and forget what was measured after it. Without one, the run
        begins at its first step."""
        saved = checkpoint.newest(run.checkpoints, device, run.warn)
        if saved is not None:
            self._check_fits(saved, run)
            distributed.load_module(self.tower, saved["tower"])
            distributed.load_module(self.averaged.module, saved["ema"])
            distributed.load_optimizer(self.optimizer, saved["optimizer"])
            for name, part in self.plain.items():
                part.load_state_dict(saved[name])
            self.step, self.best = int(saved["step"]), float(saved["best"])
            self.position = _own_position(saved["data"], run)
            self.seconds_before = float(saved["seconds"])
        run.trim(self.step)

    def _check_fits(self, saved: dict[str, Any], run: Run) -> None:
        own = {name: tuple(value.shape) for name, value in self.tower.state_dict().items()}
        there = {name: tuple(value.shape) for name, value in saved.get("tower", {}).items()}
        if own != there:
            odd = sorted(set(own.items()) ^ set(there.items()))[0][0]
            raise UsageError(
                f"{run.folder} trains another tower than this call (they differ in {odd}): go on with the arguments it "
                "was started with, which --resume takes by itself"
            )

    def save(self, run: Run, keep: int, *, needed: bool) -> None:
        """Write a checkpoint. A write that fails is told, and the run goes on with the ones before, unless it is
        `needed`, because the run ends here: then RunError says from where it can be resumed."""
        self._write(run, needed, partial(checkpoint.save, keep=keep))

    def save_if_best(self, run: Run, accuracy: float) -> None:
        """Keep a checkpoint of the highest accuracy on the probe so far, whatever comes after."""
        if accuracy > self.best:
            self.best = accuracy
            self._write(run, False, checkpoint.save_best)

    def _write(self, run: Run, needed: bool, save: Callable[[Path, int, dict[str, Any]], Path]) -> None:
        state = self.state_dict()
        if not distributed.is_main():
            return
        try:
            save(run.checkpoints, self.step, state)
        except RunError as error:
            if needed:
                raise
            run.warn(str(error))


def _own_position(positions: list[dict[str, Any] | None], run: Run) -> dict[str, Any] | None:
    """This process's place in the data, of those of all that trained together; None where a step tells it."""
    if len(positions) == distributed.count():
        return positions[distributed.rank()]
    if any(positions):
        raise UsageError(
            f"{run.folder} was trained by {len(positions)} processes, each of which has its place in the data, and "
            f"this call has {distributed.count()}: launch as many as before"
        )
    return None


def training_dtype(dtype: str | torch.dtype, run: Run, referee: TwoTower, *, resume: bool) -> torch.dtype:
    """What to compute in, alike in all processes (see `chosen_dtype`); a resumed run keeps what it began in, unless
    another dtype is named.

    Raises UsageError for float16.
    """
    found = run.record.get("notes", {}).get("dtype") if resume else None
    device = referee.device
    pixels = torch.rand(MEASURED_ON, 3, *referee.image_size, device=device, generator=torch.Generator(device))
    chosen = chosen_dtype(dtype, referee.image_tower, pixels, recorded=found and str(found), exact=True)
    if chosen == torch.float16:
        raise UsageError(
            "training in float16 would lose the gradients of the attack, which underflow there: use --dtype bfloat16"
        )
    run.note(dtype=str(chosen).removeprefix("torch."))
    return chosen
