"""Damaged pictures: their strengths in order, their constants, the same ones again, and a report of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustclip import evaluate
from robustclip.data import load_split
from robustclip.evaluation.corruptions import BLUR, CONTRAST, CORRUPTIONS, NOISE, STRENGTHS, corrupted
from robustclip.referees.base import TwoTower


@pytest.fixture(scope="module")
def drawings() -> tuple[Tensor, list[str]]:
    split = load_split("emoji", "judge-heldback").subset(list(range(6)))
    return split.images, split.ids


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_greater_strength_changes_more_and_stays_a_picture(kind: str, drawings: tuple[Tensor, list[str]]) -> None:
    images, ids = drawings
    changes = []
    for strength in STRENGTHS:
        damaged = corrupted(images, kind, strength, seed=0, ids=ids)
        assert damaged.shape == images.shape
        assert 0 <= float(damaged.min()) <= float(damaged.max()) <= 1
        changes.append(float((damaged - images).square().mean().sqrt()))
    assert changes == sorted(changes)
    assert changes[0] > 1e-4
    assert changes[-1] > 1.2 * changes[0]


def test_contrast_goes_towards_the_mean_of_each_channel() -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # mean 0.5; other channels are of one value
    damaged = corrupted(image, "contrast", 3, seed=0, ids=["a"])
    torch.testing.assert_close(damaged[0, 0], torch.tensor([[0.4, 0.6], [0.6, 0.4]]))  # 0.5 -+ 0.2 * 0.5
    torch.testing.assert_close(damaged[0, 1:], image[0, 1:])


def test_noise_has_the_published_deviation() -> None:
    grey = torch.full((1, 3, 64, 64), 0.5)
    damaged = corrupted(grey, "gaussian noise", 1, seed=0, ids=["a"])
    assert float((damaged - 0.5).std()) == pytest.approx(0.08, rel=0.03)


def test_a_blur_is_as_wide_on_a_picture_of_another_size() -> None:
    """Of a point of light, the second moment is the variance: 1 pixel at 224, half of it at 112."""
    for side in (224, 112):
        point = torch.zeros(1, 3, side, side)
        point[..., side // 2, side // 2] = 1
        spread = corrupted(point, "gaussian blur", 2, seed=0, ids=["a"])[0, 0]
        offset = torch.arange(side) - side // 2
        variance = float((spread * offset.square()[:, None]).sum() / spread.sum())
        assert variance == pytest.approx((2 * side / 224) ** 2, rel=0.03)


def test_the_constants_are_imagenet_cs() -> None:
    assert (NOISE[-1], CONTRAST[-1], BLUR[-1]) == (0.38, 0.05, 6)


def test_noise_is_a_picture_s_own_whoever_shares_its_batch(drawings: tuple[Tensor, list[str]]) -> None:
    images, ids = drawings
    together = corrupted(images, "gaussian noise", 2, seed=0, ids=ids)
    alone = corrupted(images[3:4], "gaussian noise", 2, seed=0, ids=ids[3:4])
    assert torch.equal(together[3:4], alone)
    assert not torch.equal(alone, corrupted(images[3:4], "gaussian noise", 2, seed=1, ids=ids[3:4]))


def test_a_report_of_corruptions(colour_referee: Callable[..., TwoTower], colour_folder: Path) -> None:
    report = evaluate([colour_referee()], data=colour_folder, size=8, tasks=["corruptions"])
    rows = {row.attack: row.value for row in report.rows if row.kind == "value"}
    assert set(rows) == {"clean", *CORRUPTIONS, *(f"{kind} {n}" for kind in CORRUPTIONS for n in STRENGTHS)}
    assert rows["clean"] == 0.75  # the blue one is rather green
    for strength in STRENGTHS:
        assert rows[f"contrast {strength}"] == 0.75  # of one colour: there is no contrast to lose
    for kind in CORRUPTIONS:
        assert rows[kind] == pytest.approx(sum(rows[f"{kind} {n}"] for n in STRENGTHS) / 5)
