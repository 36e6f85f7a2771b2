"""Multimodal adversarial fine-tuning of an image tower on image-text pairs (CLIPAG §3)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from robustclip.attacks.threat import ThreatModel
from robustclip.data.samples import Batch, BatchSource
from robustclip.referees.base import TwoTower, unit
from robustclip.robustification.adversarial import (
    AdversarialGradients,
    AttackNegatives,
    WarmStarts,
    refuse_warm_starts,
)
from robustclip.robustification.energy import NegativeSamples, refuse_unsampled
from robustclip.robustification.losses import Objective, embed_captions, refuse_degenerate
from robustclip.robustification.monitor import (
    BadSteps,
    OverfitAlarm,
    out_of_memory,
    overfit,
    probe_accuracies,
    probe_gradients,
    probe_share,
    similarities,
)
from robustclip.robustification.state import (
    Stateful,
    TrainingState,
    adamw,
    average,
    ready_to_train,
    trained_parameters,
    training_dtype,
    warmup_cosine,
)
from robustclip.runs import distributed
from robustclip.runs.devices import autocast, out_of_memory_as
from robustclip.runs.folder import Run
from robustclip.runs.processes import catching_signals
from robustclip.runs.progress import TrainingProgress

_log = logging.getLogger(__name__)


def report_data(described: dict[str, Any]) -> None:
    """Report the data layout and ignored files before training."""
    for source in described.get("sources", []) if distributed.is_main() else []:
        for line in (source.get("layout"), *source.get("left_out", [])):
            if line:
                _log.info(f"data {source['name']}: {line}")


def train(
    referee: TwoTower,
    data: BatchSource,
    *,
    run: Run,
    objective: Objective,
    threat: ThreatModel | None,
    gradients_by: Callable[..., AdversarialGradients] = AdversarialGradients,
    attack_objective: Objective | None = None,
    steps: int,
    lr: float,
    weight_decay: float,
    warmup: int,
    attack_steps: int = 2,
    step_size: float | None = None,
    attack_momentum: float = 0.0,
    random_start: bool = True,
    warm_start: bool = False,
    sampler: NegativeSamples | None = None,
    clean_weight: float = 0.0,
    grad_clip: float = 1.0,
    ema: float = 0.998,
    accumulate: int = 1,
    attack_negatives: AttackNegatives = "gathered",
    frozen_statistics: bool = False,
    locked_groups: int = 0,
    grad_checkpointing: bool = False,
    dtype: str | torch.dtype = torch.float32,
    channels_last: bool = True,
    compile: bool = False,
    any_size: bool = False,
    probe: Batch | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 500,
    keep: int = 2,
    log_every: int = 10,
    resume: bool = False,
    seed: int = 0,
) -> TwoTower:
    """Fine-tune `referee.image_tower` on adversarial images with a frozen text tower. Returns `referee` with the
    averaged weights, in eval mode.

    For each batch of pairs (CLIPAG Eq. 3): maximise the objective over delta in the threat model, with the tower frozen
    and in eval mode; then minimise it on images + delta, plus `clean_weight` times the objective on clean images. With
    `attack_objective` the attack maximises that instead (TRADES). `threat=None` trains on clean images (controls).

    `referee` is on the training device. `data` yields endless batches, images (B,3,H,W) in [0,1]; with several
    processes, each yields its own share of a batch. `steps` counts updates; `step_size` is
    2.5 eps / attack_steps unless given.

    random_start        start each attack at random in the ball; False: at the image (CLIP-JEM Alg. 1)
    warm_start          start each attack from the sample's last perturbation; single process only
    sampler             of the negative samples that CLIP-JEM's objective reads (`energy.jem`)
    gradients_by        class that computes an update's gradients, for attacks other than PGD (tools/half_the_cost.py)
    accumulate          number of parts that a process's share is split into; attack and update still use the negatives
                        of the whole batch (see `adversarial`), at the cost of one more forward pass per step.
    attack_negatives    "local": the attack uses the negatives of its own part and process only.
    frozen_statistics   BatchNorm normalises by running statistics, as in eval mode.
    locked_groups       number of last layer groups of the tower that stay frozen (`state.lock_last`).
    grad_checkpointing  store block inputs only and recompute activations.
    dtype               bfloat16: autocast; float64: everything in float64, for tests of exactness; "auto" and
                        "measure" as in `pick_dtype`. A resumed run keeps its dtype.
    any_size            pass images at the size of the data, which may differ between batches; an L2 eps is scaled to
                        the same RMS change. Otherwise images are resized by the referee's preprocess.
    keep                number of recent checkpoints to keep, besides the best one on the probe.

    Every `evaluate_every` updates (0: never) the accuracy on `probe` is measured and its input gradients drawn;
    `OverfitAlarm` warns in the run's log. Processes share the probe, and attack it in parts of the training's size.
    Writes checkpoints and metrics to `run`; `resume` starts from its newest readable checkpoint, and on the same
    machine the result is bit-equal to that of an uninterrupted run.

    A step with a non-finite loss or gradient is skipped and logged with the samples that caused it. Raises RunError
    after ten in a row, naming the last good checkpoint, and with the code `out_of_memory` where the device has too
    little; UsageError for incompatible settings; Interrupted, after a checkpoint, on SIGINT or SIGTERM.
    """
    if warm_start:
        refuse_warm_starts(distributed.count())
    device = referee.device
    dtype = training_dtype(dtype, run, referee, resume=resume)
    run.note(steps=steps)
    report_data(data.describe())
    if dtype == torch.float64:
        referee.double()
    attack_objective = attack_objective or objective
    refuse_unsampled(objective, attack_objective, sampler)
    reads_texts = objective.reads_texts or attack_objective.reads_texts
    reads_original = bool({"original", "original_here"} & (objective.reads | attack_objective.reads))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    tower = referee.image_tower
    ready_to_train(
        tower,
        frozen_statistics=frozen_statistics,
        grad_checkpointing=grad_checkpointing,
        accumulate=accumulate,
        channels_last=channels_last,
        locked_groups=locked_groups,
    )
    run.note(trained_parameters=trained_parameters(tower))
    averaged = average(tower, ema)
    untrained = deepcopy(tower).requires_grad_(False).eval() if reads_original else tower
    if distributed.is_sharded():
        referee.image_tower = deepcopy(tower)  # unsharded, receives the weights at the end
        distributed.shard(tower)
        distributed.shard(averaged.module)
    forward = torch.compile(tower) if compile else tower
    prepare = referee.preprocess.normalise if any_size else referee.preprocess

    def encode(images: Tensor) -> Tensor:
        with autocast(device, dtype):
            embeddings: Tensor = forward(prepare(images))
            return embeddings

    def embed(images: Tensor) -> Tensor:
        return unit(encode(images))

    def encode_untrained(images: Tensor) -> Tensor:
        with autocast(device, dtype):
            embeddings: Tensor = untrained(prepare(images))
            return embeddings

    exact = torch.promote_types(dtype, torch.float32)

    def placed(batch: Batch) -> Batch:
        moved = batch.to(device, memory_format)
        return replace(moved, images=moved.images.to(exact))

    def features(captions: list[str]) -> Tensor:
        return embed_captions(referee, captions).to(exact)

    warm = WarmStarts() if warm_start else None
    gradients = gradients_by(
        tower=tower,
        embed=encode,
        objective=objective,
        threat=threat,
        attack_objective=attack_objective,
        original=encode_untrained if reads_original else None,
        attack_steps=attack_steps,
        step_size=step_size,
        random_start=random_start,
        warm=warm,
        sampler=sampler,
        momentum=attack_momentum,
        clean_weight=clean_weight,
        accumulate=accumulate,
        attack_negatives=attack_negatives,
        any_size=any_size,
        seed=seed,
    )
    optimizer = adamw(tower, lr, weight_decay)
    schedule = warmup_cosine(optimizer, warmup, steps)
    alarm, bad = OverfitAlarm(), BadSteps()
    plain: dict[str, Stateful] = {"schedule": schedule, "alarm": alarm, "bad": bad}
    state = TrainingState(tower, averaged, optimizer, plain if warm is None else plain | {"warm": warm})
    if resume:
        state.restore(run, device, steps)
    first, no_texts = state.step, torch.empty(0, device=device)
    if probe is not None:
        probe = placed(probe_share(probe))
        probe_texts = features(probe.captions)
    share = 0

    with (
        out_of_memory_as(lambda: out_of_memory(run, state.step + 1, share, accumulate)),
        TrainingProgress(total=steps, start=state.step, silent=not distributed.is_main()) as progress,
        catching_signals() as caught,
    ):
        batches = progress.fed(data.batches(state.step, state.position))
        for step, batch in zip(range(state.step, steps), batches, strict=False):
            position, share = batch.position, len(batch)
            batch = placed(batch)
            done = step + 1
            logs = done % log_every == 0 or done == steps
            texts = features(batch.captions) if reads_texts or logs else no_texts
            if step == first and reads_texts:
                ids, all_texts = distributed.everyone(batch.positives), distributed.everyone(texts)
                refuse_degenerate(objective, ids, all_texts)
                size = -(-len(batch) // accumulate)
                part = (len(batch) % size or size) if attack_negatives == "local" else None  # the smallest
                refuse_degenerate(attack_objective, ids, all_texts, part=part if threat is not None else None)

            statistics = [buffer.clone() for buffer in tower.buffers()]
            optimizer.zero_grad(set_to_none=True)
            images, loss = gradients(step, batch, texts)
            grad_norm = clip_grad_norm_(tower.parameters(), grad_clip)
            if distributed.anywhere(not math.isfinite(loss.item() + float(distributed.whole(grad_norm)))):
                optimizer.zero_grad(set_to_none=True)  # the optimiser skips parameters without gradients
                for buffer, before in zip(tower.buffers(), statistics, strict=True):
                    buffer.copy_(before)
                if reported := bad.count(done, loss.item(), batch, embed, tower, run.checkpoints):
                    run.warn(reported)
            else:
                bad.in_a_row = 0
            rate = float(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            averaged.update(tower, step=step)
            state.step, state.position = done, position

            progress.advance(images=len(images) * distributed.count(), loss=loss.item())
            if logs:
                similar = similarities(embed, tower, batch.images, images, texts)
                progress.show(**similar)
                numbers = {"loss": loss.item(), **similar, "lr": rate}
                numbers["grad_norm"] = float(distributed.whole(grad_norm))
                run.log(done, **numbers, images_per_second=progress.images_per_second, data_wait=progress.data_wait)
            if probe is not None and evaluate_every and (done % evaluate_every == 0 or done == steps):
                accuracies = probe_accuracies(
                    embed,
                    tower,
                    probe_texts,
                    probe,
                    scale=referee.logit_scale,
                    threat=threat,
                    attack_steps=attack_steps,
                    accumulate=-(-len(probe) // -(-share // accumulate)),  # in parts of the training's size
                    seed=seed,
                )
                run.log(done, **accuracies)
                run.log_image(done, "gradients", probe_gradients(embed, tower, probe_texts, probe))
                if threat is not None and alarm.observe(accuracies["weak_accuracy"], accuracies["strong_accuracy"]):
                    run.warn(overfit(done, attack_steps, accuracies))
                state.save_if_best(run, accuracies.get("strong_accuracy", accuracies["clean_accuracy"]))
            state.end_of_step(run, caught, steps=steps, every=checkpoint_every, keep=keep)

    referee.image_tower.load_state_dict(distributed.whole(averaged.module.state_dict()))
    referee.image_tower.requires_grad_(False).eval()
    if skipped := distributed.summed(data.faults):
        run.warn("skipped samples: " + ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common()))
    described = data.describe()
    if odd := distributed.summed(described.get("odd_samples", {})):
        described["odd_samples"] = dict(odd)
        run.warn("odd samples: " + ", ".join(f"{count:,} {kind}" for kind, count in odd.items()))
    run.note(seconds=state.seconds, data=described, skipped_samples=dict(skipped), skipped_steps=bad.total)
    return referee
