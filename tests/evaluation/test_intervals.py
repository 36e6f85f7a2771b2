from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from robustclip.errors import UsageError, coded
from robustclip.evaluation import intervals


def test_a_rate_has_wilsons_interval() -> None:
    found = intervals.rate([True] * 8 + [False] * 2)

    z = stats.norm.ppf(0.975)
    centre = (0.8 + z**2 / 20) / (1 + z**2 / 10)
    half = z / (1 + z**2 / 10) * math.sqrt(0.8 * 0.2 / 10 + z**2 / 400)
    assert found.value == 0.8
    assert found.n == 10
    assert found.low == pytest.approx(centre - half, abs=1e-9)
    assert found.high == pytest.approx(centre + half, abs=1e-9)


def test_no_hits_at_all_still_leave_room_above() -> None:
    found = intervals.rate([False] * 20)

    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(stats.norm.ppf(0.975) ** 2 / (20 + stats.norm.ppf(0.975) ** 2))


@pytest.fixture
def outcomes() -> tuple[np.ndarray, np.ndarray]:
    """Two referees on 200 images: 70 right by both, 50 by the first alone, 20 by the second alone."""
    first = np.repeat([True, True, False, False], [70, 50, 20, 60])
    second = np.repeat([True, False, True, False], [70, 50, 20, 60])
    return first, second


def test_the_paired_difference_is_scipys_paired_bootstrap(outcomes: tuple[np.ndarray, np.ndarray]) -> None:
    found = intervals.difference(*outcomes, seed=1)

    theirs = stats.bootstrap(
        outcomes,
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found.value == pytest.approx(30 / 200)
    assert found.low == pytest.approx(theirs.low, abs=0.006)
    assert found.high == pytest.approx(theirs.high, abs=0.006)


def test_pairing_narrows_the_interval_of_referees_that_agree() -> None:
    first = np.repeat([True, False], 100)
    second = first.copy()
    second[0] = False
    shuffled = np.roll(second, 50)

    assert _width(intervals.difference(first, second, seed=0)) < 0.2 * _width(
        intervals.difference(first, shuffled, seed=0)
    )


def test_equal_outcomes_differ_by_exactly_nothing(outcomes: tuple[np.ndarray, np.ndarray]) -> None:
    found = intervals.difference(outcomes[0], outcomes[0], seed=0)

    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_ratio_of_rates(outcomes: tuple[np.ndarray, np.ndarray]) -> None:
    found = intervals.ratio(*outcomes, seed=3)

    assert found.value == pytest.approx(120 / 90)
    # The delta method for log(p1/p2) of paired rates: var = (b + c) / (n1 * n2).
    spread = stats.norm.ppf(0.975) * math.sqrt((50 + 20) / (120 * 90))
    assert found.low == pytest.approx(120 / 90 * math.exp(-spread), rel=0.03)
    assert found.high == pytest.approx(120 / 90 * math.exp(spread), rel=0.03)


def test_a_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("no_hits")):
        intervals.ratio([True, False], [False, False], seed=0)


def test_the_mean_of_numbers_has_a_normal_interval_for_many() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)

    found = intervals.mean(values, seed=0)

    half = stats.norm.ppf(0.975) * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)

    assert intervals.mean(values, seed=5) == intervals.mean(values, seed=5)
    assert intervals.mean(values, seed=5) != intervals.mean(values, seed=6)


@pytest.mark.parametrize("measure", [intervals.rate, lambda none: intervals.mean(none, seed=0)])
def test_nothing_has_no_interval(measure) -> None:
    with pytest.raises(UsageError, check=coded("no_samples")):
        measure([])


def test_unpaired_outcomes_are_refused() -> None:
    with pytest.raises(UsageError, match="not 3 and 2"):
        intervals.difference([True] * 3, [True] * 2, seed=0)


def _width(interval: intervals.Interval) -> float:
    return interval.high - interval.low


def test_the_interval_over_seeds_has_the_variance_of_images_and_of_seeds() -> None:
    """Two images, two seeds, one hit: both variances of the mean are 1/16, with one degree of freedom each."""
    found = intervals.over_seeds([[1, 0], [0, 0]])
    half = stats.t.ppf(0.975, 2) * math.sqrt(1 / 8)
    assert (found.value, found.n) == (0.25, 4)
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half))
    same = intervals.over_seeds(np.full((3, 5), -0.5))
    assert (same.low, same.high) == (-0.5, -0.5)


@pytest.mark.parametrize("values", [[1, 0], [[1, 0]], [[1], [0]], []])
def test_an_interval_over_seeds_needs_two_of_each(values: list[object]) -> None:
    with pytest.raises(UsageError, check=coded("too_few")):
        intervals.over_seeds(values)
