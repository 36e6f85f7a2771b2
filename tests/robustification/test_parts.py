"""Schedule, optimiser, average, text features, checkpoints and the overfitting alarm, each against values by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from robustclip.errors import RunError
from robustclip.referees.toy import toy_referee
from robustclip.robustification import checkpoint
from robustclip.robustification.monitor import OverfitAlarm, matching_accuracy
from robustclip.robustification.optimisation import adamw, average, warmup_cosine
from robustclip.robustification.texts import TextFeatures


def test_warmup_is_linear_and_the_cosine_ends_at_zero() -> None:
    optimizer = adamw(nn.Linear(1, 1), lr=1.0, weight_decay=0.0)
    schedule = warmup_cosine(optimizer, warmup=4, steps=12)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[8] == pytest.approx(0.5)
    assert rates[11] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert schedule.get_last_lr()[0] == pytest.approx(0.0)


def test_only_matrices_decay_and_frozen_parameters_are_left_out() -> None:
    tower = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    tower[2].weight.requires_grad_(False)
    decayed, kept = adamw(tower, lr=1.0, weight_decay=0.1).param_groups
    assert [p.shape for p in decayed["params"]] == [tower[0].weight.shape]
    assert decayed["weight_decay"] == 0.1
    assert len(kept["params"]) == 4
    assert kept["weight_decay"] == 0.0


def test_average_warms_up_and_covers_buffers() -> None:
    tower = nn.BatchNorm1d(1)
    averaged = average(tower, decay=0.998)
    nn.init.constant_(tower.weight, 2.0)
    tower.running_mean.fill_(4.0)  # type: ignore[union-attr]
    averaged.update(tower, step=2)  # t = 1: decay t/(9+t) = 0.1: nearly all new
    assert averaged.module.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    assert averaged.module.running_mean.item() == pytest.approx(0.9 * 4)


def test_text_features_embed_each_caption_once(monkeypatch: pytest.MonkeyPatch) -> None:
    referee = toy_referee()
    asked: list[str] = []
    embed = referee.embed_texts
    monkeypatch.setattr(referee, "embed_texts", lambda texts: asked.extend(texts) or embed(texts))
    features = TextFeatures(referee, capacity=2)
    first = features(["a cat", "a dog", "a cat"])
    assert asked == ["a cat", "a dog"]
    torch.testing.assert_close(first, embed(["a cat", "a dog", "a cat"]))
    features(["a cat"])
    features(["a fox"])  # "a dog" was used longest ago, and is dropped
    assert asked == ["a cat", "a dog", "a fox"]
    assert len(features) == 2
    features(["a cat"])
    assert asked == ["a cat", "a dog", "a fox"]
    features(["a dog"])
    assert asked[-1] == "a dog"


def test_more_captions_than_capacity_in_one_batch() -> None:
    assert TextFeatures(toy_referee(), capacity=1)(["a", "b", "c"]).shape[0] == 3


def test_matching_accuracy_counts_equal_ids_as_right() -> None:
    images = torch.eye(3)
    texts = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])  # the first two are exchanged
    assert matching_accuracy(images, texts, torch.tensor([0, 1, 2])) == pytest.approx(1 / 3)
    assert matching_accuracy(images, texts, torch.tensor([5, 5, 2])) == 1.0


def test_alarm_rings_when_only_the_strong_attack_wins() -> None:
    alarm = OverfitAlarm(drop=0.1)
    assert not alarm.observe(weak=0.5, strong=0.4)
    assert not alarm.observe(weak=0.55, strong=0.35)  # within the drop
    assert alarm.observe(weak=0.7, strong=0.1)
    assert not alarm.observe(weak=0.2, strong=0.1)  # both fell: worse training, but no overfitting to the attack


def test_checkpoints_come_back_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, {"tower": {"weight": torch.tensor([float(step)])}}, keep=2)
    kept = checkpoint.checkpoints(tmp_path)
    assert [path.name for path in kept] == ["checkpoint-00000002.pt", "checkpoint-00000010.pt"]
    state = checkpoint.load(kept[-1])
    assert state["step"] == 10
    assert state["tower"]["weight"].item() == 10


def test_a_checkpoint_cut_short_is_named(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"tower": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(RunError, match=r"checkpoint-00000001\.pt is not a readable checkpoint"):
        checkpoint.load(path)


def test_a_checkpoint_that_holds_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-00000001.pt"
    torch.save({"tower": nn.Linear(1, 1)}, path)
    with pytest.raises(RunError, match="not a readable checkpoint"):
        checkpoint.load(path)
