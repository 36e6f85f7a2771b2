"""Complete training state for bit-exact resumption."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import SIGTERM
from typing import Any, Protocol

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from robustclip.attacks.gradient import eval_mode
from robustclip.data.loader import redealt
from robustclip.errors import Interrupted, RunError, UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.smoothed import refuse_wrapped
from robustclip.runs import checkpoint, distributed
from robustclip.runs.devices import chosen_dtype
from robustclip.runs.folder import Run
from robustclip.runs.processes import Caught


def adamw(
    tower: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-8
) -> AdamW:
    """AdamW with weight decay on tensors of at least two dimensions only (as open_clip).

    beta2 0.98 is open_clip's for ViT towers; CLIPAG names no optimiser.
    """
    trained = [p for p in tower.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=lr, betas=betas, eps=eps)


def warmup_cosine(optimizer: AdamW, warmup: int, steps: int) -> LambdaLR:
    """Linear warm-up from lr/warmup to lr over `warmup` steps, then cosine decay to 0 at `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)


def average(tower: nn.Module, decay: float) -> ModelEmaV3:
    """Exponential moving average of weights and buffers (timm's); the decay warms up as (1+t)/(10+t) for short runs."""
    # timm's foreach path cannot mix sharded weights with whole buffers.
    fast = not distributed.is_sharded()
    return ModelEmaV3(tower, decay=decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0, foreach=fast)


def ready_to_train(
    tower: nn.Module,
    *,
    frozen_statistics: bool,
    grad_checkpointing: bool,
    accumulate: int,
    channels_last: bool,
    locked_groups: int = 0,
) -> None:
    """Unfreeze a tower, but for its last `locked_groups` (see `lock_last`), and put it in training mode, with BatchNorm
    in eval mode if statistics are frozen.

    Raises UsageError if batch statistics would be those of a part of the batch, and for a tower without activation
    checkpointing or layer groups.
    """
    refuse_wrapped(tower, "inside training", "train the base referee, with noise on its images")
    if has_batch_statistics(tower) and not frozen_statistics and (accumulate > 1 or distributed.count() > 1):
        raise UsageError(
            "the image tower has BatchNorm, whose statistics would be those of a part of the batch, so that neither "
            "loss nor gradients would be those of the whole: use --frozen-statistics (normalise by running "
            "statistics, as in eval mode), or --accumulate 1 and one process",
            "batch_statistics",
        )
    if grad_checkpointing:
        if not hasattr(tower, "set_grad_checkpointing"):
            raise UsageError(
                f"a {type(tower).__name__} cannot checkpoint its activations: leave --grad-checkpointing out, and use "
                "--accumulate 2 (or more) to save memory",
                "no_activation_checkpoints",
            )
        tower.set_grad_checkpointing(True)  # type: ignore[operator]
    nhwc = channels_last and not distributed.is_sharded()  # FSDP shards contiguous weights only
    tower.to(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
    tower.requires_grad_(True).train()
    if locked_groups:
        lock_last(tower, locked_groups)
    if frozen_statistics:
        for module in tower.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def lock_last(tower: nn.Module, groups: int) -> None:
    """Freeze the last layer groups of an open_clip tower: what its `--lock-image-unlocked-groups` leaves trainable.

    Groups are open_clip's, of a ViT the stem, each block, and the projection, or timm's `group_matcher`. BatchNorm's
    statistics follow the data in all groups, unless they are frozen. Raises UsageError for a tower without groups, and
    if none is left to train.
    """
    if not hasattr(tower, "lock"):
        raise UsageError(
            f"a {type(tower).__name__} has no layer groups to lock: leave --locked-groups out, or start from a CLIP of "
            "open_clip",
            "no_layer_groups",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # open_clip imports timm's groups by an old name
        tower.lock(unlocked_groups=groups)  # type: ignore[operator]
    for weight in tower.parameters():
        weight.requires_grad_(not weight.requires_grad)
    if not trained_parameters(tower):
        raise UsageError(
            f"--locked-groups {groups} locks all layer groups of the image tower, and none is left to train: give less",
            "all_groups_locked",
            groups=groups,
        )


def trained_parameters(module: nn.Module) -> int:
    """Number of weights that are not frozen."""
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def has_batch_statistics(tower: nn.Module) -> bool:
    """Whether the tower uses batch statistics in training."""
    return any(isinstance(module, _BatchNorm) for module in tower.modules())


@contextmanager
def inference(tower: nn.Module) -> Iterator[None]:
    """Context manager: `tower` in eval mode without gradients; modes are restored afterwards."""
    with eval_mode(tower), torch.no_grad():
        yield


MEASURED_ON = 32
"""Images of the step that `--dtype measure` times."""


class Stateful(Protocol):
    """A part of the training state without tensors to gather."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass
class TrainingState:
    """Weights, their average if any, optimiser, schedule and data position after `step` updates.

    Random numbers are functions of seed, step and sample, so it holds no generator.
    """

    tower: nn.Module
    averaged: ModelEmaV3 | None
    optimizer: AdamW
    plain: dict[str, Stateful]
    step: int = 0
    position: dict[str, Any] | None = None
    best: float = field(default=-1.0)
    seconds_before: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Training time over all starts."""
        return round(self.seconds_before + time.monotonic() - self.began, 1)

    def state_dict(self) -> dict[str, Any]:
        """The state with whole tensors, of sharded weights in the main process only; a collective call then."""
        split = {"tower": self.tower.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.averaged is not None:
            split["ema"] = self.averaged.module.state_dict()
        numbers = {"data": distributed.listed(self.position), "best": self.best, "seconds": self.seconds}
        return distributed.gathered(split) | {name: part.state_dict() for name, part in self.plain.items()} | numbers

    def restore(self, run: Run, device: torch.device, steps: int) -> None:
        """Load the newest readable checkpoint and drop metrics recorded after it; without one, start at step 0. Rate
        and weight decay stay those of this call, which may differ from those before. Raises UsageError for a
        checkpoint of another tower, of other trained weights, or beyond `steps`."""
        sharded = distributed.is_sharded()  # whole tensors might not fit on its device
        saved = checkpoint.newest(run.checkpoints, "cpu" if sharded else device, run.warn)
        if saved is not None:
            self._check_fits(saved, run, steps)
            distributed.load_module(self.tower, saved["tower"])
            if self.averaged is not None:
                distributed.load_module(self.averaged.module, saved["ema"])
            asked = [
                {key: group[key] for key in ("initial_lr", "weight_decay")} for group in self.optimizer.param_groups
            ]
            distributed.load_optimizer(self.optimizer, saved["optimizer"])
            for name, part in self.plain.items():
                if name in saved:  # warm starts may be new
                    part.load_state_dict(saved[name])
            self._schedule_anew(asked)
            self.step, self.best = int(saved["step"]), float(saved["best"])
            self.position = _own_position(saved["data"], run)
            self.seconds_before = float(saved["seconds"])
        run.trim(self.step)

    def _schedule_anew(self, asked: list[dict[str, float]]) -> None:
        """Give the optimiser's groups these values, and the rate that the schedule makes of them at its step."""
        schedule = self.plain["schedule"]
        assert isinstance(schedule, LambdaLR)
        schedule.base_lrs = [group["initial_lr"] for group in asked]
        for group, own, factor in zip(self.optimizer.param_groups, asked, schedule.lr_lambdas, strict=True):
            group |= own | {"lr": own["initial_lr"] * factor(schedule.last_epoch)}

    def _check_fits(self, saved: dict[str, Any], run: Run, steps: int) -> None:
        own = {name: tuple(value.shape) for name, value in self.tower.state_dict().items()}
        there = {name: tuple(value.shape) for name, value in saved.get("tower", {}).items()}
        if own != there:
            odd = sorted(set(own.items()) ^ set(there.items()))[0][0]
            raise UsageError(
                f"{run.folder} trains another tower than this call (they differ in {odd}): continue it with its own "
                "arguments, which --resume uses by default",
                "other_tower",
            )
        ours, theirs = self.optimizer.param_groups, saved["optimizer"]["param_groups"]
        if [len(group["params"]) for group in ours] != [len(group["params"]) for group in theirs]:
            raise UsageError(
                f"{run.folder} trains other weights of the tower than this call: continue it with its own "
                "--locked-groups, which --resume uses by default",
                "other_weights",
            )
        if saved["step"] > steps:
            raise UsageError(
                f"{run.folder} is at step {saved['step']}, beyond --steps {steps}: give at least as many, or start a "
                "new run",
                "beyond_steps",
                step=saved["step"],
                steps=steps,
            )

    def save(self, run: Run, keep: int, *, needed: bool) -> None:
        """Write a checkpoint. If that fails, warn and continue, or, if it is `needed` because the run ends here, raise
        RunError."""
        self._write(run, needed, partial(checkpoint.save, keep=keep))

    def update(self, loss: Tensor, *, grad_clip: float = math.inf) -> dict[str, float]:
        """Take one optimiser step on the mean of `loss`, a scalar, over all processes; the schedule is the caller's.

        Returns loss and gradient norm before clipping. Raises RunError, before the step, if they are not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(self.tower.parameters())
        grad_norm = clip_grad_norm_(self.tower.parameters(), grad_clip)
        numbers = {"loss": float(distributed.mean(loss)), "grad_norm": float(grad_norm)}
        if not all(map(math.isfinite, numbers.values())):
            raise RunError(
                f"step {self.step + 1}: loss or gradient is not finite ({numbers}): lower --lr, or --dtype float32",
                "not_finite",
            )
        self.optimizer.step()
        self.step += 1
        return numbers

    def end_of_step(self, run: Run, caught: Caught, *, steps: int, every: int, keep: int) -> None:
        """Write a checkpoint if one is due: each `every` updates, after the last, and after a signal in any process.

        Raises Interrupted after a signal, unless the last update is done; RunError if a needed checkpoint fails.
        """
        stopping = distributed.anywhere(caught.signal is not None)
        if self.step % every == 0 or self.step == steps or stopping:
            self.save(run, keep, needed=stopping or self.step == steps)
        if stopping and self.step < steps:
            raise Interrupted(
                caught.signal or SIGTERM,
                f"stopped at step {self.step} of {steps}, after a checkpoint: continue with --resume {run.folder}",
            )

    def save_if_best(self, run: Run, accuracy: float) -> None:
        """Write the best checkpoint if `accuracy` is the highest so far."""
        if accuracy > self.best:
            self.best = accuracy
            self._write(run, False, checkpoint.save_best)

    def _write(self, run: Run, needed: bool, save: Callable[[Path, int, dict[str, Any]], Path]) -> None:
        state = self.state_dict()

        def write() -> None:
            save(run.checkpoints, self.step, state)

        if needed:  # all wait: a launcher may end the main process as soon as another one ends
            distributed.decided(write)
            return
        if not distributed.is_main():
            return
        try:
            write()
        except RunError as error:
            run.warn(str(error))


def _own_position(positions: list[dict[str, Any] | None], run: Run) -> dict[str, Any] | None:
    """This process's position in the data; None if the step determines it."""
    if len(positions) == distributed.count():
        return positions[distributed.rank()]
    if not (found := [position for position in positions if position]):
        return None
    run.warn(
        f"{run.folder} was trained by {len(positions)} processes and continues with {distributed.count()}: what was "
        "left of the epoch is shared by all in another order, and the last samples of each former process come again"
    )
    return redealt(found, distributed.place())


def training_dtype(dtype: str | torch.dtype, run: Run, referee: TwoTower, *, resume: bool) -> torch.dtype:
    """Compute dtype of all processes (see `chosen_dtype`); a resumed run keeps its dtype unless another is named.

    Raises UsageError for float16.
    """
    recorded = run.record.get("notes", {}).get("dtype") if resume else None
    device = referee.device
    pixels = torch.rand(MEASURED_ON, 3, *referee.image_size, device=device, generator=torch.Generator(device))
    chosen = chosen_dtype(dtype, referee.image_tower, pixels, recorded=recorded and str(recorded), exact=True)
    if chosen == torch.float16:
        raise UsageError(
            "training in float16 would lose the gradients of the attack, which underflow there: use --dtype bfloat16",
            "float16",
        )
    run.note(dtype=str(chosen).removeprefix("torch."))
    return chosen
