"""Resumable trainer and training loop of the small networks: generators, pair readers, scene readers, adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from robustclip.errors import RunError, UsageError
from robustclip.referees.base import TwoTower
from robustclip.runs import checkpoint
from robustclip.runs.devices import autocast
from robustclip.runs.files import new_folder
from robustclip.runs.folder import Run
from robustclip.runs.progress import TrainingProgress

WEIGHTS: Final = "diffusion_pytorch_model.safetensors"


def save_model(model: Any, folder: Path) -> None:
    """Write config and weights of a diffusers model, as its save_pretrained does.

    Raises UsageError if the path exists.
    """
    with new_folder(folder) as draft:
        write_model(model, draft)


def write_model(model: Any, folder: Path, *, half: bool = False) -> None:
    """`save_model` into an existing folder; `half`: weights in float16."""
    model.save_config(folder)
    dtype = torch.float16 if half else torch.float32
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@dataclass(kw_only=True)
class Trainer:
    """Base of trainers: `done` of `steps` updates at a peak rate `lr`, computed in `dtype` under autocast.

    A subclass has `step(...)`, one update that returns its metrics. stateful: attributes with a state dict, the
    trained network first; values: other attributes that a resumed run restores; title, shown: of the progress bar, and
    the metrics in it.
    """

    stateful: ClassVar[tuple[str, ...]] = ("model", "optimiser")
    values: ClassVar[tuple[str, ...]] = ("done",)
    shown: ClassVar[tuple[str, ...]] = ("loss",)
    title = "training"

    steps: int
    lr: float = 1e-3
    dtype: torch.dtype = torch.float32
    done: int = 0
    optimiser: torch.optim.Optimizer = field(init=False)

    def learning_rate(self) -> float:
        """The rate of the next update."""
        return self.lr * rate(self.done, self.steps)

    def update(self, loss: Tensor) -> None:
        """Update the network by the gradient of a loss, clipped to norm 1. Raises RunError, before it, for a loss
        or gradient that is not finite."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(getattr(self, self.stateful[0]).parameters(), 1.0)
        numbers = {"loss": loss.item(), "grad_norm": float(norm)}
        if not all(map(math.isfinite, numbers.values())):
            raise RunError(
                f"step {self.done + 1}: loss or gradient is not finite ({numbers}): lower --lr, or --dtype float32",
                "not_finite",
            )
        self.optimiser.step()

    def state(self) -> dict[str, Any]:
        """Training state for resumption."""
        parts = {name: getattr(self, name).state_dict() for name in self.stateful}
        return parts | {name: getattr(self, name) for name in self.values}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a `state`. Raises UsageError for that of another network."""
        try:
            for name in self.stateful:
                getattr(self, name).load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UsageError(
                "the checkpoint is of another network: go on with the arguments of its run", "other_checkpoint"
            ) from error
        for name in self.values:
            setattr(self, name, state[name])

    def resume(self, run: Run, device: torch.device) -> None:
        """Restore the newest complete checkpoint of a resumed run; nothing in a new run."""
        if (state := checkpoint.newest(run.checkpoints, device, run.warn)) is not None:
            self.load(state)
            run.trim(self.done)

    def fit(
        self, step: Callable[[int], Mapping[str, float]], run: Run, *, images: int, save_every: int
    ) -> dict[str, float]:
        """Train up to `steps` and return the last metrics. `step(k)` is update k on `images` pictures; it calls `step`
        of the trainer. The state is saved every `save_every` updates and after the last. Raises UsageError if more
        than `steps` are done.
        """
        if self.done > self.steps:
            message = f"{run.folder} is at step {self.done}, beyond --steps {self.steps}: give at least as many"
            raise UsageError(message, "beyond_steps", step=self.done, steps=self.steps)
        last = run.metrics()[-1:] if self.done == self.steps else []  # of a run that was finished
        metrics = {name: value for line in last for name, value in line.items() if name not in ("step", "seconds")}
        with TrainingProgress(total=self.steps, start=self.done, title=self.title) as progress:
            while self.done < self.steps:
                metrics = dict(step(self.done))
                progress.numbers |= {name: metrics[name] for name in self.shown}
                progress.advance(images=images)
                run.log(self.done, **metrics)
                if self.done % save_every == 0 or self.done == self.steps:
                    checkpoint.save(run.checkpoints, self.done, self.state())
        return metrics


Features = Callable[[Tensor], Sequence[Tensor]]


def stage_features(referee: TwoTower) -> Features:
    """Images in [0,1] -> the outputs of the first three stages of a referee's timm tower, for `feature_distance`."""
    trunk: Any = referee.image_tower.trunk
    return lambda images: trunk.forward_intermediates(
        referee.preprocess(images), indices=[1, 2, 3], intermediates_only=True
    )


def feature_distance(features: Features, images: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean squared difference of unit-length features at each position, summed over layers (as LPIPS), float32."""
    with autocast(images.device, dtype):
        layers = features(images)
        with torch.no_grad():
            target_layers = features(targets)
    pairs = zip(layers, target_layers, strict=True)
    return torch.stack(
        [(F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean() for a, b in pairs]
    ).sum()


def check_channels(channels: Sequence[int], groups: int, example: str) -> None:
    """Raise UsageError for channels of levels that group norms of `groups` groups cannot divide."""
    if not channels or any(number % groups for number in channels):
        message = f"channels are multiples of {groups}, one for each level, as in {example}: not {list(channels)}"
        raise UsageError(message, "not_divisible", argument="channels", given=list(channels))


def rate(done: int, steps: int, warm_up: int = 100, last: float = 0.05) -> float:
    """Learning rate factor: linear warm-up over at most a tenth of the steps, cosine decay to `last`."""
    return min(1.0, (done + 1) / min(warm_up, max(steps // 10, 1))) * (
        last + (1 - last) * (1 + math.cos(math.pi * done / steps)) / 2
    )


def free(folder: Path) -> Path:
    """The output folder of a model, or a numbered one if a resumed run has written it."""
    taken = [folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 100))]
    return next(path for path in taken if not path.exists())
