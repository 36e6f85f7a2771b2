"""Damaged pictures: their strengths in order, their constants, the same ones again, and a report of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from robustclip import evaluate
from robustclip.cli import app
from robustclip.data import load_split
from robustclip.errors import UsageError, coded
from robustclip.evaluation.corruptions import BLUR, CONTRAST, CORRUPTIONS, NOISE, QUALITY, STRENGTHS, corrupted
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.folder import save_referee
from robustclip.referees.toy import toy_referee


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
    """make_imagenet_c.py of hendrycks/robustness."""
    assert NOISE == (0.08, 0.12, 0.18, 0.26, 0.38)
    assert BLUR == (1, 2, 3, 4, 6)
    assert QUALITY == (25, 18, 15, 10, 7)
    assert CONTRAST == (0.4, 0.3, 0.2, 0.1, 0.05)


def test_jpeg_is_that_of_the_nearest_levels() -> None:
    """99.6 of 255 is 100, not 99."""
    grey = torch.full((1, 3, 16, 16), 99.6 / 255)
    exact = torch.full((1, 3, 16, 16), 100 / 255)
    assert torch.equal(*(corrupted(images, "JPEG", 1, seed=0, ids=["a"]) for images in (grey, exact)))
    low = corrupted(exact - 1 / 255, "JPEG", 1, seed=0, ids=["a"])
    assert float((low - exact).abs().max()) <= 8 / 255  # one step of the coarsest quantiser of a mean


@pytest.mark.parametrize(
    ("kind", "strength", "check"),
    [
        ("gaussian noise", 0, coded("out_of_range", argument="strength", given=0)),
        ("gaussian noise", 6, coded("out_of_range", argument="strength", given=6)),
        ("gaussian nose", 1, coded("unknown_corruption", given="gaussian nose")),
        ("fog", 1, coded("unknown_corruption", given="fog")),
    ],
)
def test_other_kinds_and_strengths_are_refused(kind: str, strength: int, check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        corrupted(torch.zeros(1, 3, 8, 8), kind, strength, seed=0, ids=["a"])


def test_noise_is_a_picture_s_own_whoever_shares_its_batch(drawings: tuple[Tensor, list[str]]) -> None:
    images, ids = drawings
    together = corrupted(images, "gaussian noise", 2, seed=0, ids=ids)
    alone = corrupted(images[3:4], "gaussian noise", 2, seed=0, ids=ids[3:4])
    assert torch.equal(together[3:4], alone)
    assert not torch.equal(alone, corrupted(images[3:4], "gaussian noise", 2, seed=1, ids=ids[3:4]))


def test_a_report_of_corruptions(colour_referee: Callable[..., TwoTower], colour_folder: Path) -> None:
    report = evaluate([colour_referee()], data=colour_folder, size=8, tasks=["corruptions"], device="cpu")
    rows = {(row.metric, row.attack): row.value for row in report.rows if row.kind == "value"}
    attacks = {"clean", *CORRUPTIONS, *(f"{kind} {n}" for kind in CORRUPTIONS for n in STRENGTHS)}
    assert set(rows) == {(metric, attack) for metric in ("top-1", "top-5") for attack in attacks}
    assert rows["top-1", "clean"] == 0.75  # the blue one is rather green
    assert {rows["top-5", attack] for attack in attacks} == {1.0}  # there are three labels
    for strength in STRENGTHS:
        assert rows["top-1", f"contrast {strength}"] == 0.75  # of one colour: there is no contrast to lose
    for kind in CORRUPTIONS:
        assert rows["top-1", kind] == pytest.approx(sum(rows["top-1", f"{kind} {n}"] for n in STRENGTHS) / 5)


def test_damage_is_no_claim(colour_folder: Path, tmp_path: Path) -> None:
    """A card's claim names an attack that measures it again, and damage is none."""
    folder = tmp_path / "toy"
    save_referee(toy_referee(size=8), folder)
    for task in ("zero-shot", "corruptions"):  # which has clean rows of the same names
        report = evaluate([folder], data=colour_folder, tasks=[task], sign=True, device="cpu")
        assert report.rows
    claims = {(claim.name, claim.attack, claim.task) for claim in Card.load(folder).claims}
    assert claims == {("top-1", None, "zero-shot"), ("top-5", None, "zero-shot")}


def test_corruptions_on_the_command_line(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    command = "evaluate emoji-vanilla --data emoji/unseen-styles --limit 8 --labels present --tasks corruptions --csv"
    run = CliRunner().invoke(app, [*command.split(), str(table)])
    assert run.exit_code == 0, run.output
    assert "gaussian noise 3" in run.stdout
    with table.open() as file:
        values = [row for row in csv.DictReader(file) if row["kind"] == "value"]
    rows = {(row["metric"], row["attack"]): float(row["value"]) for row in values}
    assert len(rows) == 2 * (1 + 4 * 6)
    first, five = sorted({metric for metric, _ in rows})
    assert first.startswith("top-1 of ")
    assert five.startswith("top-5 of ")
    assert all(rows[first, attack] <= rows[five, attack] for _, attack in rows)
    assert rows[first, "clean"] > rows[first, "contrast 5"]  # a twentieth of the contrast is left
