"""Multimodal adversarial fine-tuning: image-text pairs in, an image tower with readable gradients out (CLIPAG §3)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from robustclip.attacks.gradient import pgd
from robustclip.data.batch import Batch, BatchSource
from robustclip.devices import autocast
from robustclip.errors import RunError, UsageError
from robustclip.progress import TrainingProgress
from robustclip.referees.base import TwoTower
from robustclip.rng import generator
from robustclip.robustification import checkpoint
from robustclip.robustification.losses import Objective
from robustclip.robustification.monitor import OverfitAlarm, probe_accuracies
from robustclip.robustification.optimisation import adamw, average, warmup_cosine
from robustclip.robustification.texts import TextFeatures
from robustclip.runs import Run
from robustclip.threat import ThreatModel

Embed = Callable[[Tensor], Tensor]


class Stateful(Protocol):
    """What a checkpoint holds: towers, optimisers, schedules."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def train(
    referee: TwoTower,
    data: BatchSource,
    *,
    run: Run,
    objective: Objective,
    threat: ThreatModel | None,
    steps: int,
    lr: float,
    weight_decay: float,
    warmup: int,
    attack_steps: int = 2,
    step_size: float | None = None,
    clean_weight: float = 0.0,
    grad_clip: float = 1.0,
    ema: float = 0.998,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    compile: bool = False,
    text_cache: int = 200_000,
    probe: Batch | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 500,
    log_every: int = 10,
    resume: bool = False,
    seed: int = 0,
) -> TwoTower:
    """Fine-tune `referee.image_tower` in place on adversarial images; the text tower stays frozen. Returns `referee`,
    its tower holding the averaged weights, in eval mode.

    For each batch of pairs (CLIPAG Eq. 3): find delta in the threat model that maximises the objective, the tower in
    eval mode and its weights frozen; then descend the same objective on images + delta, plus `clean_weight` times the
    objective on the clean images. `threat=None` trains on clean images, which is how the controls are made.

    `referee` is on the device to train on, and computes in `dtype` under autocast. `data` yields batches without end,
    images (B,3,H,W) in [0,1]. `steps` counts updates; `step_size` is 2.5 eps / attack_steps unless given. Every
    `evaluate_every` updates (0: never) the accuracy on `probe` is measured; `OverfitAlarm` speaks through the run's
    log. Writes checkpoints and metrics to `run`; with `resume` the newest checkpoint there is where it starts.

    Raises RunError when the loss is not finite, naming the last good checkpoint; UsageError when the threat model does
    not fit the images.
    """
    device, tower = referee.device, referee.image_tower
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    tower.to(memory_format=memory_format)
    tower.requires_grad_(True).train()
    forward: nn.Module = torch.compile(tower) if compile else tower  # type: ignore[assignment]

    def embed(images: Tensor) -> Tensor:
        with autocast(device, dtype):
            features = forward(referee.preprocess(images))
        return F.normalize(features.float(), dim=-1)

    text_features = TextFeatures(referee, text_cache)
    optimizer = adamw(tower, lr, weight_decay)
    schedule = warmup_cosine(optimizer, warmup, steps)
    averaged = average(tower, ema)
    state: dict[str, Stateful] = {"tower": tower, "ema": averaged.module, "optimizer": optimizer, "schedule": schedule}
    start = _restore(state, run, device) if resume else 0
    alarm = OverfitAlarm()
    if probe is not None:
        probe = probe.to(device, memory_format)
        probe_texts = text_features(probe.captions)

    began = time.monotonic()
    with TrainingProgress(total=steps, start=start) as progress:
        for step, batch in enumerate(data.batches(start), start):
            if step == steps:
                break
            batch = batch.to(device, memory_format)
            texts = text_features(batch.captions)

            def loss_of(images: Tensor, texts: Tensor = texts, ids: Tensor = batch.positives) -> Tensor:
                return objective(embed(images), texts, ids)

            images = batch.images
            if threat is not None:
                images = pgd(
                    batch.images,
                    loss_of,
                    threat,
                    steps=attack_steps,
                    step_size=step_size,
                    coupled=objective.coupled,
                    keep="last",
                    module=tower,
                    generator=generator(seed, "attack", step, device=device),
                )
            loss = loss_of(images).mean()
            if clean_weight:
                loss = loss + clean_weight * loss_of(batch.images).mean()

            if not math.isfinite(loss.item()):
                raise RunError(_not_finite(step, loss.item(), run))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            grad_norm = clip_grad_norm_(tower.parameters(), grad_clip)
            optimizer.step()
            schedule.step()
            averaged.update(tower, step=step)

            done = step + 1
            progress.advance(images=len(images), loss=loss.item())
            if done % log_every == 0 or done == steps:
                similarities = _similarities(embed, tower, batch.images, images, texts)
                progress.show(**similarities)
                run.log(
                    done,
                    loss=loss.item(),
                    **similarities,
                    lr=float(schedule.get_last_lr()[0]),
                    grad_norm=float(grad_norm),
                    images_per_second=progress.images_per_second,
                )
            if probe is not None and evaluate_every and (done % evaluate_every == 0 or done == steps):
                accuracies = probe_accuracies(
                    embed,
                    tower,
                    probe_texts,
                    probe,
                    scale=referee.logit_scale,
                    threat=threat,
                    attack_steps=attack_steps,
                    seed=seed,
                )
                run.log(done, **accuracies)
                if threat is not None and alarm.observe(accuracies["weak_accuracy"], accuracies["strong_accuracy"]):
                    run.warn(_overfit(done, attack_steps, accuracies))
            if done % checkpoint_every == 0 or done == steps:
                checkpoint.save(run.checkpoints, done, {name: part.state_dict() for name, part in state.items()})

    tower.load_state_dict(averaged.module.state_dict())
    tower.requires_grad_(False).eval()
    if data.faults:
        run.warn("skipped samples: " + ", ".join(f"{count:,} {kind}" for kind, count in data.faults.most_common()))
    run.note(seconds=round(time.monotonic() - began, 1), data=data.describe(), skipped_samples=dict(data.faults))
    return referee


def _restore(state: dict[str, Stateful], run: Run, device: torch.device) -> int:
    """Load the newest checkpoint of the run into `state`; the number of updates it holds."""
    found = checkpoint.checkpoints(run.checkpoints)
    if not found:
        raise UsageError(f"nothing to resume in {run.folder}: no checkpoint was written yet; run without --resume")
    saved = checkpoint.load(found[-1], device)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return int(saved["step"])


@torch.no_grad()
def _similarities(
    embed: Embed, tower: nn.Module, clean: Tensor, adversarial: Tensor, texts: Tensor
) -> dict[str, float]:
    """Mean cosine of matching pairs, clean and adversarial, the tower as it judges: in eval mode."""
    tower.eval()
    similarities = {
        "clean_similarity": float((embed(clean) * texts).sum(dim=1).mean()),
        "adversarial_similarity": float((embed(adversarial) * texts).sum(dim=1).mean()),
    }
    tower.train()
    return similarities


def _not_finite(step: int, loss: float, run: Run) -> str:
    found = checkpoint.checkpoints(run.checkpoints)
    last = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been written yet"
    return f"the loss became {loss} at step {step}: {last}; lower --lr, or use --dtype float32, then --resume"


def _overfit(step: int, attack_steps: int, accuracies: dict[str, float]) -> str:
    return (
        f"step {step}: training overfits to its own attack: accuracy on the probe is {accuracies['weak_accuracy']:.1%} "
        f"under PGD-{attack_steps} and {accuracies['strong_accuracy']:.1%} under PGD-20; more --attack-steps or a "
        "smaller --lr would do, and an earlier checkpoint is better than this one"
    )
