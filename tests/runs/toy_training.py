"""A recipe that trains for a second: a small tower with everything that a run must remember (batch statistics, dropout,
an average, a schedule, a probe, readers of data), to be killed by the tests."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import nn

from robustclip.attacks.threat import ThreatModel
from robustclip.data.emoji_batches import EmojiBatches
from robustclip.data.samples import BatchSource
from robustclip.data.sources import open_data
from robustclip.referees.base import TwoTower
from robustclip.referees.toy import toy_referee
from robustclip.robustification.embedded import emoji_probe
from robustclip.robustification.losses import clip
from robustclip.robustification.monitor import save_trained
from robustclip.robustification.trainer import train
from robustclip.runs import distributed
from robustclip.runs.devices import pick_device
from robustclip.runs.folder import ResumeFrom, Run, RunFolder

SIZE = 64


def recipe(
    *,
    data: Literal["drawings", "shards"] = "drawings",
    steps: PositiveInt = 24,
    batch_size: PositiveInt = 16,
    workers: NonNegativeInt = 2,
    evaluate_every: NonNegativeInt = 6,
    checkpoint_every: PositiveInt = 4,
    keep: PositiveInt = 2,
    frozen_statistics: bool = False,
    accumulate: PositiveInt = 1,
    dropout: NonNegativeFloat = 0.1,
    resume: ResumeFrom | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Train a toy."""
    arguments = dict(locals())
    referee = toy_with_memory(seed, dropout).to(pick_device(device))
    drawings = EmojiBatches("judge-heldback", batch_size=batch_size, seed=seed, place=distributed.place())
    source: BatchSource = drawings
    if data == "shards":
        source = open_data(
            "emoji/unseen-train",
            batch_size=batch_size,
            size=SIZE,
            seed=seed,
            workers=workers,
            shuffle_buffer=100,
            place=distributed.place(),
        )
    threat = ThreatModel("l2", 0.1, SIZE)
    run = Run.start(out, resume, recipe="toy", arguments=arguments)
    with run:
        train(
            referee,
            source,
            run=run,
            objective=clip(10.0),
            threat=threat,
            steps=steps,
            lr=5e-3,
            weight_decay=0.05,
            warmup=3,
            ema=0.9,
            dtype=dtype,
            probe=emoji_probe(drawings, size=32),
            evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every,
            keep=keep,
            frozen_statistics=frozen_statistics,
            accumulate=accumulate,
            log_every=1,
            resume=resume is not None,
            seed=seed,
        )
        samples = steps * batch_size
        return save_trained(referee, run, name="toy", threat=threat, started_from=None, samples=samples)


def toy_with_memory(seed: int, dropout: float) -> TwoTower:
    """A toy whose tower keeps batch statistics and drops units, large enough that writing it takes a moment."""
    referee = toy_referee(SIZE, seed=seed)
    first, *rest, last = referee.image_tower
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = [nn.Linear(last.in_features, 256), nn.GELU(), nn.Dropout(dropout), nn.Linear(256, last.out_features)]
    referee.image_tower = nn.Sequential(first, nn.BatchNorm2d(first.out_channels), *rest, *wide)
    return referee
