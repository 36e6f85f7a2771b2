"""Training loop shared by the generators: progress, metrics in a run folder, resumable state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors.torch import save_file

from robustclip.runs import checkpoint
from robustclip.runs.files import new_folder
from robustclip.runs.folder import Run
from robustclip.runs.terminal import TrainingProgress

WEIGHTS: Final = "diffusion_pytorch_model.safetensors"


def save_model(model: Any, folder: Path, *, half: bool = False) -> None:
    """Write config and weights (`half`: in float16) of a model of diffusers, as its own save_pretrained would.

    Raises UsageError where something has that name.
    """
    with new_folder(folder) as draft:
        write_model(model, draft, half=half)


def write_model(model: Any, folder: Path, *, half: bool = False) -> None:
    """The same into a folder that is there."""
    model.save_config(folder)
    dtype = torch.float16 if half else torch.float32
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


class Trainer(Protocol):
    """Something that learns in steps: `done` of `steps` so far."""

    done: int
    steps: int

    def state(self) -> dict[str, Any]:
        """Training state for resumption."""

    def load(self, state: dict[str, Any], /) -> None:
        """Go on where `state` was taken."""


def go_on(trainer: Trainer, run: Run, device: torch.device) -> None:
    """Load the newest complete state of a resumed run, if any."""
    if (state := checkpoint.newest(run.checkpoints, device, run.warn)) is not None:
        trainer.load(state)
        run.trim(trainer.done)


def fit(
    trainer: Trainer,
    step: Callable[[int], Mapping[str, float]],
    run: Run,
    *,
    images: int,
    save_every: int,
    title: str,
    shown: Sequence[str],
) -> dict[str, float]:
    """Step until all are done; the last numbers. `step(k)` is the k-th, of so many `images`; it advances the trainer.

    Every `save_every` steps, and at the end, the trainer's state is written, whole or not at all.
    """
    numbers: dict[str, float] = {}
    with TrainingProgress(total=trainer.steps, start=trainer.done, title=title) as progress:
        while trainer.done < trainer.steps:
            numbers = dict(step(trainer.done))
            progress.numbers |= {name: numbers[name] for name in shown}
            progress.advance(images=images)
            run.log(trainer.done, **numbers)
            if trainer.done % save_every == 0 or trainer.done == trainer.steps:
                checkpoint.save(run.checkpoints, trainer.done, trainer.state())
    return numbers


def rate(done: int, steps: int, warm_up: int = 100, last: float = 0.05) -> float:
    """The factor of a learning rate: up along a line, in a tenth of the steps at most, and down along half a cosine to
    `last`."""
    return min(1.0, (done + 1) / min(warm_up, max(steps // 10, 1))) * (
        last + (1 - last) * (1 + math.cos(math.pi * done / steps)) / 2
    )


def free(folder: Path) -> Path:
    """Output folder of a model: the named one, or a numbered one if a resumed run has written it."""
    taken = [folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 100))]
    return next(path for path in taken if not path.exists())
