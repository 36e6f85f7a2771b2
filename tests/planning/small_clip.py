"""A small CLIP of open_clip's kind, and one real step of the trainer on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from robustclip.attacks.threat import ThreatModel
from robustclip.data.samples import Batch
from robustclip.planning.towers import Blueprint
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.openclip import bare_text_tower, new_referee
from robustclip.referees.sentence import OpenClipText
from robustclip.robustification.energy import NegativeSamples, jem
from robustclip.robustification.losses import Objective, agft, clip, divergence, fare, siglip, text_bank, trades
from robustclip.robustification.trainer import train
from robustclip.runs.folder import Run

SIZE, WIDTH, BANK, ENERGY_STEPS = 32, 16, 24, 3
TEXT = {"context_length": 20, "vocab_size": 256, "width": 32, "heads": 2, "layers": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIZE},
    "deep": {"layers": 6, "width": 64, "head_width": 16, "patch_size": 8, "image_size": SIZE},
    "resnet": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": SIZE},
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear", "image_size": SIZE},
}
TEXTS = unit(torch.randn(BANK, WIDTH))
NAMED = text_bank(10.0, TEXTS, torch.arange(BANK))
OBJECTIVES = {
    "clip": clip(10.0),
    "siglip": siglip(10.0, -1.0),
    "text-bank": NAMED,
    "fare": fare(),
    "agft": agft(10.0, TEXTS),
    "trades": trades(NAMED, 10.0, TEXTS),
    "energetic text-bank": jem(NAMED, 10.0, 0.5),
    "energetic clip": jem(clip(10.0), 10.0, 0.5),
}


def blueprint_of(tower: str) -> Blueprint:
    config = {"embed_dim": WIDTH, "vision_cfg": TOWERS[tower], "text_cfg": TEXT}
    return Blueprint(tower, config, (SIZE, SIZE))


def referee_of(blueprint: Blueprint) -> TwoTower:
    """The blueprint built, with random weights; its captions are of one token each."""

    def tokens(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text), *[0] * (TEXT["context_length"] - 1)] for text in texts])

    text = OpenClipText(bare_text_tower(blueprint.model_cfg), tokens, WIDTH)
    return new_referee(blueprint.model_cfg, {"size": SIZE}, text, 10.0, blueprint.name)


class Noise:
    """Batches of noise with captions that are all different."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.faults: Counter[str] = Counter()

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        while True:
            names = ["x" * (1 + number) for number in range(self.size)]
            yield Batch(torch.rand(self.size, 3, SIZE, SIZE), names, torch.arange(self.size), names)

    def describe(self) -> dict[str, Any]:
        return {"source": "noise"}


def train_on_noise(folder: Path, blueprint: Blueprint, batch: int, objective: Objective, **changes: Any) -> TwoTower:
    """One step of the trainer, which ends with a line of its log."""
    usual: dict[str, Any] = {"threat": ThreatModel("l2", 0.5, SIZE), "lr": 1e-3, "weight_decay": 0.0, "warmup": 1}
    run = Run.create(folder, recipe="test", arguments={})
    if objective.name.startswith("trades"):
        usual["attack_objective"] = divergence(10.0, TEXTS)
    if "samples" in objective.reads:
        usual |= {"attack_objective": OBJECTIVES[objective.name.removesuffix(" and energy")]}
        usual |= {"sampler": NegativeSamples(10.0, ENERGY_STEPS)}
    settings = {**usual, "steps": 1, "channels_last": False, **changes}
    return train(referee_of(blueprint), Noise(batch), run=run, objective=objective, **settings)
