"""Schedule, optimiser, average, text features and the overfitting alarm, each against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robustclip.data.samples import Batch
from robustclip.referees.toy import toy_referee
from robustclip.robustification.losses import embed_captions
from robustclip.robustification.monitor import OverfitAlarm, matching_accuracy, probe_share
from robustclip.robustification.state import adamw, average, warmup_cosine
from robustclip.runs import distributed
from robustclip.runs.processes import Place


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


def test_each_distinct_caption_of_a_batch_is_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    referee = toy_referee()
    asked: list[str] = []
    embed = referee.embed_texts
    monkeypatch.setattr(referee, "embed_texts", lambda texts: asked.extend(texts) or embed(texts))
    features = embed_captions(referee, ["a cat", "a dog", "a cat"])
    assert asked == ["a cat", "a dog"]
    torch.testing.assert_close(features, embed(["a cat", "a dog", "a cat"]))


@pytest.mark.parametrize(
    ("count", "rows"), [(1, ["01234"]), (2, ["012", "340"]), (3, ["01", "23", "40"]), (7, "0123401")]
)
def test_processes_have_equally_many_rows_of_a_probe(
    count: int, rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = torch.arange(5)
    probe = Batch(numbers[:, None, None, None].expand(5, 3, 2, 2) / 4, list("01234"), numbers, list("01234"))
    for rank, row in enumerate(rows):
        monkeypatch.setattr(distributed, "place", lambda rank=rank: Place(rank, count))
        share = probe_share(probe)
        assert "".join(share.captions) == "".join(share.ids) == row
        assert (4 * share.images[:, 0, 0, 0]).tolist() == share.positives.tolist() == [int(number) for number in row]


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
