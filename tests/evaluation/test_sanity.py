"""Faults planted in embedded referees, and the same referees without fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.cli import app
from robustclip.errors import RunError, UsageError
from robustclip.evaluation import sanity
from robustclip.evaluation.sanity import check
from robustclip.referees.base import TextTower, TwoTower
from robustclip.referees.folder import save_referee
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.registry import load_referee

ACTIVATIONS = {"SiLU": "GELU", "QuickGELU": "GELU", "GELU": "QuickGELU"}
"""Planted activations, and what the tower was trained with."""


class Permuted(nn.Module):
    """A tower whose components come in another order."""

    def __init__(self, tower: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.tower, self.order = tower, order

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels)[:, self.order]


class Tail(nn.Module):
    """A tower with a hidden layer whose units lie around -4, where one of GELU and QuickGELU is 35 times the other: the
    tower's embedding, to first order, with the activation `name`."""

    def __init__(self, tower: nn.Module, name: str) -> None:
        super().__init__()
        self.tower, self.act = tower, sanity.ACTIVATIONS[name]()
        middle = torch.tensor(-4.0, requires_grad=True)
        value = self.act(middle)
        self.value, self.slope = value.item(), torch.autograd.grad(value, middle)[0].item()

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = F.normalize(self.tower(pixels)) / 2 - 4
        return 2 * (self.act(hidden) - self.value) / self.slope


class Constant(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return torch.ones(len(pixels), 384)


class Rotated(TextTower):
    """The texts of another space: the same ones, turned by a random rotation."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower, self.width = tower, tower.width
        draw = torch.randn(self.width, self.width, generator=torch.Generator().manual_seed(0))
        self.turn = torch.linalg.qr(draw).Q

    def forward(self, texts: list[str]) -> Tensor:
        return self.tower(texts) @ self.turn


def of(referee: TwoTower, **towers: Any) -> TwoTower:
    parts = {name: getattr(referee, name) for name in ("image_tower", "text_tower", "preprocess")} | towers
    return TwoTower(**parts, card=referee.card, logit_scale=referee.logit_scale).eval()


def unnormalised(referee: TwoTower) -> Preprocess:
    return Preprocess.from_config(referee.preprocess.config() | {"mean": [0.0] * 3, "std": [1.0] * 3})


def planted(fault: str) -> TwoTower:
    if fault in ACTIVATIONS:
        referee = load_referee("emoji-vit-vanilla-long")  # of GELU
        if fault != "SiLU":
            referee = of(referee, image_tower=Tail(referee.image_tower, ACTIVATIONS[fault]))
        with sanity._activated(referee, fault):
            parts = list(sanity._places(referee))
        for parent, name, child in parts:
            setattr(parent, name, child)
        return referee
    referee = load_referee("emoji-robust")
    order = torch.randperm(384, generator=torch.Generator().manual_seed(1))
    return {
        "nothing": lambda: referee,
        "normalisation": lambda: of(referee, preprocess=unnormalised(referee)),
        "permuted head": lambda: of(referee, image_tower=Permuted(referee.image_tower, order)),
        "text tower": lambda: of(referee, text_tower=Rotated(referee.text_tower)),
        "image tower": lambda: of(referee, image_tower=Constant()),
    }[fault]()


@pytest.mark.parametrize(
    "fault",
    [
        *("nothing", "SiLU", "QuickGELU", "normalisation", "image tower"),
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("GELU", "permuted head", "text tower")),
    ],
)
def test_a_planted_fault_is_told_with_its_cause(fault: str) -> None:
    referee = planted(fault)
    before = [type(module) for module in referee.modules()], referee.preprocess.config()
    found = check(referee)
    assert ([type(module) for module in referee.modules()], referee.preprocess.config()) == before
    assert found.cause == {"nothing": None, **dict.fromkeys(ACTIVATIONS, "activation")}.get(fault, fault)
    assert bool(found.advice) == (fault != "nothing")
    assert found.accuracy.n == 200
    if fault in ACTIVATIONS:
        assert f"activation {ACTIVATIONS[fault]} " in found.advice
    if fault == "normalisation":
        assert "CLIP's" in found.advice
        assert found.settings["normalisation CLIP's"].low > found.accuracy.value
    if fault in ("permuted head", "text tower", "image tower"):
        assert found.accuracy.low <= 2 * found.chance


def test_mcnemar_by_hand() -> None:
    """10 gained and none lost: 1/1024 is below 0.001; 9 and none is not."""
    gained = torch.arange(12) < 10
    none = torch.zeros(12, dtype=torch.bool)
    assert sanity._significant(gained, none)
    assert not sanity._significant(torch.arange(12) < 9, none)
    assert not sanity._significant(none, gained)


def test_data_without_labels_or_with_few_images(tmp_path: Path) -> None:
    referee = load_referee("emoji-robust")
    for data in ("emoji/scenes", "emoji/unseen-styles"):
        with pytest.raises(UsageError, check=lambda error: error.code == "not_labelled"):
            check(referee, data=data, limit=20)


def test_the_command_ends_with_the_fault(tmp_path: Path) -> None:
    referee = load_referee("emoji-robust")
    referee = of(referee, preprocess=unnormalised(referee))
    referee.card = replace(referee.card, preprocess=referee.preprocess.config())
    save_referee(referee, tmp_path / "mine")
    done = CliRunner().invoke(app, ["referees", "verify", str(tmp_path / "mine"), "--sanity"])
    assert isinstance(done.exception, RunError)
    assert "loaded wrong, likely the normalisation" in str(done.exception)
    assert "as loaded" in done.stdout
