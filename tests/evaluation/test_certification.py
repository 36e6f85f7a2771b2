"""A linear classifier of two classes is its own smoothed classifier, and its robust radius is known: |w.x + b| / |w|.

An image at that distance from the boundary is answered rightly under noise with probability Phi(distance / sigma)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustclip.errors import RunError, UsageError, coded
from robustclip.evaluation import evaluate
from robustclip.evaluation.certification import (
    certified_radius,
    certify,
    largest_radius,
    lower_bound,
    radii_to_report,
    smallest_n,
)
from robustclip.referees.base import TwoTower
from robustclip.referees.smoothed import smoothed

SIGMA = 0.25
CLASSES = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
W = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """(B,3,8,8) -> (w.x - w.grey, 1, 0): nearer to the first class on one side of grey, to the second on the other."""

    def forward(self, images: Tensor) -> Tensor:
        side = ((images - 0.5) * W).sum((1, 2, 3))
        return torch.stack([side, torch.ones_like(side), torch.zeros_like(side)], 1)


@pytest.fixture
def linear(colour_referee) -> TwoTower:
    return colour_referee(tower=Linear(), words={"above": (1.0, 0.0, 0.0), "below": (-1.0, 0.0, 0.0)})


def at(*distances: float) -> Tensor:
    """Images at these signed distances from the boundary."""
    return 0.5 + torch.tensor(distances)[:, None, None, None] * W / W.norm()


@pytest.mark.parametrize("seed", [0, 1])
def test_radii_are_below_the_true_ones_and_within_the_band_of_their_counts(linear: TwoTower, seed: int) -> None:
    distances = [0.05, -0.1, 0.2, -0.3, 0.4, 0.6, -0.8]
    n, alpha = 2_000, 0.001

    found = certify(linear, at(*distances), CLASSES, sigma=SIGMA, n=n, alpha=alpha, seed=seed, batch_size=500)

    for distance, label, radius in zip(distances, found.labels.tolist(), found.radii.tolist(), strict=True):
        right = stats.norm.cdf(abs(distance) / SIGMA)
        low, high = (int(stats.binom.ppf(q, n, right)) for q in (1e-5, 1 - 1e-5))
        band = [certified_radius(lower_bound(hits, n, alpha), SIGMA) for hits in (low, high)]
        assert band[0] <= radius <= band[1]
        assert radius <= abs(distance)
        assert label == (int(distance < 0) if radius else -1)
    assert (found.radii > 0).sum() >= 6


def test_radii_approach_the_true_one_as_n_grows(linear: TwoTower) -> None:
    gaps = [
        0.3 - float(certify(linear, at(0.3), CLASSES, sigma=SIGMA, n=n, batch_size=2_000).radii[0])
        for n in (50, 500, 20_000)
    ]

    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.02  # sigma times the bound's distance in probits: about 3.1 standard errors, 0.25 * 3.1 * 0.0115


def test_on_the_boundary_it_abstains(linear: TwoTower) -> None:
    found = certify(linear, at(0.0, 0.0, 0.5), CLASSES, sigma=SIGMA, n=500)

    assert found.labels.tolist() == [-1, -1, 0]
    assert found.radii[:2].tolist() == [0, 0]
    assert found.abstentions() == [True, True, False]


@pytest.mark.parametrize("n", [10, 100, 1_000])
def test_where_all_agree_the_radius_is_the_largest(linear: TwoTower, n: int) -> None:
    [radius] = certify(linear, at(5.0), CLASSES, sigma=SIGMA, n=n, alpha=0.001).radii.tolist()

    assert radius == pytest.approx(SIGMA * stats.norm.ppf(0.001 ** (1 / n)), rel=1e-9)
    assert radius == pytest.approx(largest_radius(SIGMA, n, 0.001), rel=1e-9)
    assert radii_to_report(SIGMA, n)[-1] <= radius < radii_to_report(SIGMA, n)[-1] + 0.25


@pytest.mark.parametrize(
    ("hits", "n", "alpha", "bound"),
    [
        (8, 10, 0.025, 0.4439),  # Clopper and Pearson's 95% interval of 8 in 10 is 0.4439 to 0.9748
        (10, 10, 0.05, 0.7411),  # 0.05^(1/10)
        (0, 10, 0.05, 0.0),
        (990, 1_000, 0.001, stats.beta.ppf(0.001, 990, 11)),
        (5, 9, 0.3, stats.beta.ppf(0.3, 5, 5)),
    ],
)
def test_the_bound_is_clopper_and_pearsons(hits: int, n: int, alpha: float, bound: float) -> None:
    assert lower_bound(hits, n, alpha) == pytest.approx(bound, abs=5e-5)


def test_noise_belongs_to_an_image_and_not_to_its_batch(linear: TwoTower) -> None:
    images, ids = at(0.1, 0.2, 0.3), ["a", "b", "c"]

    whole = certify(linear, images, CLASSES, sigma=SIGMA, n=300, ids=ids, batch_size=300)
    other = certify(linear, images.flip(0)[:2], CLASSES, sigma=SIGMA, n=300, ids=["c", "b"], batch_size=7)
    again = certify(linear, images, CLASSES, sigma=SIGMA, n=300, ids=ids, seed=1)

    assert other.counts.tolist() == [whole.counts[2], whole.counts[1]]
    assert again.counts.tolist() != whole.counts.tolist()
    assert len(set(certify(linear, at(*[0.1] * 5), CLASSES, sigma=SIGMA, n=300).counts.tolist())) > 1


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"classes": CLASSES[:1]}, coded("too_few_labels", labels=1)),
        ({"sigma": 0.0}, coded("out_of_range", argument="sigma")),
        ({"sigma": float("nan")}, coded("out_of_range", argument="sigma")),
        ({"sigma": 64.0}, coded("out_of_range", argument="sigma", given=64.0)),
        ({"n": 9}, coded("too_few", argument="n", least=10)),
        ({"n": 10**9}, coded("too_many", argument="n")),
        ({"n0": 0}, coded("too_few", argument="n0")),
        ({"alpha": 1.0}, coded("out_of_range", argument="alpha")),
        ({"ids": ["a", "b"]}, coded("unequal_lengths", ids=2, images=1)),
        ({"batch_size": 0}, coded("too_few", argument="batch_size")),
    ],
)
def test_what_cannot_be_certified_is_told(linear: TwoTower, changed: dict, check: Any) -> None:
    settings = {"classes": CLASSES, "sigma": SIGMA} | changed
    with pytest.raises(UsageError, check=check):
        certify(linear, at(0.1), **settings)


def test_the_smallest_n_is_the_first_that_can_certify() -> None:
    assert smallest_n(0.001) == 10
    assert largest_radius(SIGMA, 10, 0.001) > 0 == largest_radius(SIGMA, 9, 0.001)


def test_a_smoothed_referee_is_certified_by_its_base(linear: TwoTower) -> None:
    with pytest.raises(UsageError, check=coded("wrapped", kind="smoothed")):
        certify(smoothed(linear, sigma=0.1, samples=2), at(0.1), CLASSES, sigma=SIGMA)


def test_an_embedding_that_is_no_number_certifies_nothing(linear: TwoTower) -> None:
    with pytest.raises(RunError, check=coded("not_finite")):
        certify(linear, at(float("nan")), CLASSES, sigma=SIGMA)


def test_the_task(colour_referee, colour_folder: Path) -> None:
    """In noise of 0.05 the mean of 64 pixels moves by 0.006: three of four images stay red, red and green."""
    report = evaluate([colour_referee()], data=colour_folder, tasks=["certification"], sigma=0.05, samples=500)

    assert report.row("colours", "certified at l2:0", "noise 0.05").value == 0.75
    assert report.row("colours", "abstained", "noise 0.05").value == 0
    assert [row.metric for row in report.rows if "certified" in row.metric] == ["certified at l2:0"]
    answers = {answer["id"]: answer for answer in report.predictions}
    assert {answer["prediction"] for answer in answers.values()} == {"red", "green"}
    assert answers["red/a.png"]["radius"] == pytest.approx(largest_radius(0.05, 500, 0.001))
    assert (report.setting["sigma"], report.setting["samples"]) == (0.05, 500)


def test_the_tasks_flags_belong_together(colour_referee, colour_folder: Path) -> None:
    for settings, check in (
        ({"tasks": ["certification"]}, coded("no_sigma")),
        ({"tasks": ["certification"], "sigma": 0.25, "samples": 3}, coded("too_few", argument="n", least=10)),
        ({"tasks": ["certification"], "sigma": 64.0}, coded("out_of_range", argument="sigma", given=64.0)),
        ({"tasks": ["certification"], "sigma": 0.25, "sign": True}, coded("not_signable", task="certification")),
        ({"sigma": 0.25}, coded("no_effect", argument="sigma")),
    ):
        with pytest.raises(UsageError, check=check):
            evaluate([colour_referee()], data=colour_folder, **settings)
