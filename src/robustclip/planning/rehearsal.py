"""Time one training step on this machine, with random weights and images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from robustclip.attacks.threat import ThreatModel
from robustclip.data.samples import Batch
from robustclip.planning.flops import TowerFlops, of_step
from robustclip.planning.imagined import Blueprint
from robustclip.planning.settings import Settings
from robustclip.referees.base import unit
from robustclip.referees.openclip import build_image_tower
from robustclip.referees.preprocess import Preprocess
from robustclip.robustification.adversarial import AdversarialGradients
from robustclip.robustification.losses import Objective, clip, text_bank
from robustclip.robustification.state import adamw, average, ready_to_train
from robustclip.runs.devices import autocast, chosen_dtype, pick_device
from robustclip.runs.rng import generator

BUDGET = 1.5e12  # FLOPs of a rehearsed step: seconds on a CPU core
REPEATS = 3


@dataclass(frozen=True)
class Rehearsal:
    """What was measured: FLOP/s of the passes through the tower, and the seconds of an update besides."""

    device: str
    dtype: str
    images: int
    flops_per_second: float
    seconds_per_update: float
    memory: float
    """Bytes of the device, or of the machine."""


def rehearse(settings: Settings, design: Blueprint, tower: TowerFlops, count: int, bank: int) -> Rehearsal:
    """Measure a step of up to a process's part of a batch, smaller where that would take minutes.

    Raises UsageError for a device that is not here and for settings that the tower cannot be trained with.
    """
    device = pick_device(settings.device)
    model = build_image_tower(design.model_cfg).to(device)
    pixels = torch.rand(8, 3, *design.size, device=device, generator=torch.Generator(device))
    dtype = chosen_dtype(settings.dtype, model, pixels)
    one = replace(settings, batch_size=1, accumulate=1, evaluate_every=0)
    affordable = int(BUDGET / of_step(one, tower, design, 1, bank).total)
    rehearsed = replace(one, batch_size=max(2, min(settings.part(count), affordable)))
    ready_to_train(
        model,
        frozen_statistics=settings.frozen_statistics,
        grad_checkpointing=settings.grad_checkpointing,
        accumulate=1,
        channels_last=settings.channels_last,
    )
    preprocess = Preprocess(design.size).to(device)
    gradients = AdversarialGradients(
        tower=model,
        embed=lambda images: unit(_cast(model, preprocess(images), dtype)),
        objective=_objective(settings, design.width, bank, device),
        threat=ThreatModel("l2", 1.0, design.size) if settings.attack_steps else None,
        attack_steps=settings.attack_steps,
        clean_weight=settings.clean_weight,
        attack_negatives="gathered",
    )
    batch, texts = _noise(rehearsed.batch_size, design, device, channels_last=settings.channels_last)
    optimizer, averaged = adamw(model, 1e-5, 0.0), average(model, 0.99)

    def passes() -> None:
        optimizer.zero_grad(set_to_none=True)
        gradients(0, batch, texts)

    def update() -> None:
        optimizer.step()
        averaged.update(model, step=0)

    seconds = _fastest(passes, device)
    counted = of_step(rehearsed, tower, design, 1, bank)
    return Rehearsal(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        dtype=str(dtype).removeprefix("torch."),
        images=rehearsed.batch_size,
        flops_per_second=(counted.total - counted.captions - counted.watching) / seconds,
        seconds_per_update=_fastest(update, device),
        memory=_memory(device),
    )


def _cast(model: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with autocast(images.device, dtype):
        embeddings: torch.Tensor = model(images)
    return embeddings


def _objective(settings: Settings, width: int, bank: int, device: torch.device) -> Objective:
    if settings.coupled:
        return clip(100.0)
    texts = torch.randn(bank, width, generator=generator(0, "bank")).to(device)
    return text_bank(100.0, F.normalize(texts, dim=1), torch.arange(bank, device=device))


def _noise(size: int, design: Blueprint, device: torch.device, *, channels_last: bool) -> tuple[Batch, torch.Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.rand(size, 3, *design.size, generator=generator(0, "pixels"))
    texts = F.normalize(torch.randn(size, design.width, generator=generator(0, "texts")), dim=1)
    names = [str(number) for number in range(size)]
    return Batch(images, names, torch.arange(size), names).to(device, layout), texts.to(device)


def _fastest(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few repetitions, after one that does not count."""

    def seconds() -> float:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    seconds()
    return min(seconds() for _ in range(REPEATS))


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(psutil.virtual_memory().total)
