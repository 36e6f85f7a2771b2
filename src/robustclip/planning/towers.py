"""Towers of a plan: on fake tensors, to count a step of a large tower without weights, and real, to time a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from robustclip.attacks.threat import ThreatModel, height_and_width
from robustclip.data.samples import Batch
from robustclip.errors import UsageError
from robustclip.planning.settings import Settings
from robustclip.referees import registry
from robustclip.referees.base import unit
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.folder import CONFIG
from robustclip.referees.openclip import (
    bare_text_tower,
    build_image_tower,
    builtin_config,
    has_sentence_encoder,
    tag_quick_gelu,
    tags,
)
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.sentence import SentenceEncoder
from robustclip.robustification.adversarial import AdversarialGradients
from robustclip.robustification.energy import NegativeSamples, jem
from robustclip.robustification.losses import Objective, clip, text_bank
from robustclip.robustification.state import adamw, average, ready_to_train
from robustclip.runs.devices import autocast, chosen_dtype, pick_device
from robustclip.runs.files import expand_home, read_json
from robustclip.runs.rng import generator

BUDGET = 1.5e12  # maximal FLOPs of a rehearsed step: seconds on a CPU core
REPEATS = 3


@dataclass(frozen=True)
class Blueprint:
    """A CLIP without weights: its open_clip config, and its image size (h, w) in pixels."""

    name: str
    model_cfg: Mapping[str, Any]
    size: tuple[int, int]

    @property
    def width(self) -> int:
        """Dimension of an embedding."""
        return int(self.model_cfg["embed_dim"])


@dataclass(frozen=True)
class Imagined:
    """The towers of a blueprint on fake tensors; use them inside `with imagined.mode:`. The text tower is real if it is
    the sentence encoder, and None if its config would have to be fetched."""

    image_tower: nn.Module
    text_tower: nn.Module | None
    context_length: int
    mode: FakeTensorMode = field(default_factory=FakeTensorMode)


def blueprint(start: str, architecture: str | None = None) -> Blueprint:
    """Blueprint of `load_referee(start)`, without its weights.

    Raises UsageError for a name that needs a network or a file's weights, with an alternative.
    """
    if architecture is not None:
        return _of_config(start, builtin_config(architecture))
    entry = registry.find(start)
    folder = expand_home(start.removeprefix("local-dir:")) if entry is None else entry.existing_folder()
    if (folder / CARD_FILE).is_file():
        card = Card.load(folder)
        if card.family != "open_clip":
            raise UsageError(
                f"{start} is a referee of the family {card.family}, which plans do not support: {_INSTEAD}"
            )
        return Blueprint(start, card.architecture, height_and_width(tuple(card.preprocess["size"])))
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        model_cfg = config.get("model_cfg") if isinstance(config, dict) else None
        if not (isinstance(model_cfg, dict) and isinstance(model_cfg.get("vision_cfg"), dict)):
            message = f"{folder / CONFIG} is not a config of open_clip: it has no model_cfg with a vision_cfg"
            raise UsageError(message, "not_open_clip")
        return _of_config(start, model_cfg, (config.get("preprocess_cfg") or {}).get("size"))
    architecture, _, tag = start.partition(":")
    if tag and architecture not in ("hf-hub", "timm", "local-dir"):
        model_cfg = builtin_config(architecture)
        if tag_quick_gelu(architecture, tag) is None:
            known = [name for name in tags() if name.startswith(f"{architecture}:")]
            message = f"open_clip has no weights {start}; it has {', '.join(known) or 'none of that kind'}"
            raise UsageError(message, "unknown_weights", start=start)
        return _of_config(start, model_cfg)
    message = f"the architecture of {start} is unknown without fetching or opening it: {_INSTEAD}"
    raise UsageError(message, "unknown_architecture", start=start)


_INSTEAD = (
    "give --start ARCHITECTURE:TAG of the same architecture (e.g. ViT-B-32:openai), an embedded or exported "
    "referee, or --architecture NAME if the recipe has that flag"
)


def imagine(design: Blueprint, prepare: Callable[[nn.Module], None]) -> Imagined:
    """Build both towers of a blueprint on fake tensors; `prepare` makes the image tower ready to train.

    Raises UsageError for a config that open_clip refuses.
    """
    mode = FakeTensorMode()
    image_tower = without_memory(lambda: build_image_tower(design.model_cfg), mode, prepare)
    text_cfg = design.model_cfg.get("text_cfg", {})
    if has_sentence_encoder(design.model_cfg):
        text_tower: nn.Module | None = _sentence_encoder()
    elif "hf_model_name" in text_cfg or not text_cfg:
        text_tower = None
    else:
        text_tower = without_memory(lambda: bare_text_tower(design.model_cfg), mode)
    return Imagined(image_tower, text_tower, int(text_cfg.get("context_length", 77)), mode)


def make_ready(tower: nn.Module, settings: Settings, count: int, *, channels_last: bool = False) -> None:
    """Make a tower ready to train by `count` processes. Raises UsageError as the trainer would."""
    ready_to_train(
        tower,
        frozen_statistics=settings.frozen_statistics,
        grad_checkpointing=settings.grad_checkpointing,
        accumulate=max(settings.accumulate, min(2, count)),  # several processes have the restrictions of parts
        channels_last=channels_last,
        locked_groups=settings.locked_groups,
    )


def has_grouped_convolutions(tower: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in tower.modules())


@cache
def _sentence_encoder() -> SentenceEncoder:
    """The sentence encoder, shared by all plans; never modified."""
    return SentenceEncoder()


def without_memory(
    build: Callable[[], nn.Module], mode: FakeTensorMode, prepare: Callable[[nn.Module], None] = lambda _: None
) -> nn.Module:
    """Module of `build`, changed by `prepare`, on fake CPU tensors. It is built on the meta device first, as fake
    tensors refuse constructors that read values back from CPU tensors."""
    with torch.device("meta"):
        module = build()
        prepare(module)
    with mode:
        for child in module.modules():
            for name, weight in child.named_parameters(recurse=False):
                setattr(child, name, nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad))
            for name, buffer in child.named_buffers(recurse=False):
                setattr(child, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return module


def _of_config(name: str, model_cfg: Mapping[str, Any], size: Any = None) -> Blueprint:
    size = size or model_cfg["vision_cfg"].get("image_size", 224)
    return Blueprint(name, model_cfg, height_and_width(size if isinstance(size, int) else tuple(size)))


@dataclass(frozen=True)
class Rehearsal:
    """Measured FLOP/s of the passes through the tower, and seconds of the rest of an update."""

    device: str
    dtype: str
    images: int
    flops_per_second: float
    seconds_per_update: float
    memory: float
    """Bytes of the device, or of the machine."""


def rehearse(
    settings: Settings, design: Blueprint, count: int, bank: int, flops_of: Callable[[Settings], float]
) -> Rehearsal:
    """Time a step on a process's part of a batch, or a smaller one if that would take minutes. `flops_of` gives the
    FLOPs of attack and update of a step with these settings.

    Raises UsageError for a missing device and for settings that the tower cannot be trained with.
    """
    device = pick_device(settings.device)
    model = build_image_tower(design.model_cfg).to(device)
    pixels = torch.rand(8, 3, *design.size, device=device, generator=torch.Generator(device))
    dtype = chosen_dtype(settings.dtype, model, pixels)
    simple = "clip" if settings.coupled else "text-bank"  # as `_objective`, without passes on clean images
    one = replace(settings, batch_size=1, accumulate=1, evaluate_every=0, objective=simple, anchor=0.0)
    affordable = int(BUDGET / flops_of(one))
    rehearsed = replace(one, batch_size=max(2, min(settings.part(count), affordable)))
    make_ready(model, replace(settings, accumulate=1), 1, channels_last=settings.channels_last)
    preprocess = Preprocess(design.size).to(device)
    base = _objective(settings, design.width, bank, device)
    gradients = AdversarialGradients(
        tower=model,
        embed=lambda images: unit(_cast(model, preprocess(images), dtype)),
        objective=jem(base, 100.0, settings.energy),
        attack_objective=base,
        sampler=NegativeSamples(100.0, settings.sampling_steps),
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
    return Rehearsal(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        dtype=str(dtype).removeprefix("torch."),
        images=rehearsed.batch_size,
        flops_per_second=flops_of(rehearsed) / seconds,
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
    """Minimal seconds of a few repetitions, after a warm-up."""

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
