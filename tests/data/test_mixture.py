from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from robustclip.data.mixture import Mixture, Weights
from robustclip.data.samples import Sample
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.processes import ALONE, Place


class Numbers:
    """So many samples, rotated by the epoch; `claims` is what it says of its size."""

    def __init__(self, name: str, count: int, claims: int | None = None) -> None:
        self.name, self.count, self.claims = name, count, claims

    def epoch(self, seed: int, epoch: int, place: Place = ALONE, first_round: int = 0) -> Iterator[Sample]:
        return (Sample(str((number + epoch) % self.count)) for number in range(self.count)[place.mine(epoch)])

    def size(self) -> int:
        return self.count if self.claims is None else self.claims

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "samples": self.count}


def drawn(weights: Weights, *sources: Numbers, n: int = 2000, seed: int = 0) -> list[Sample]:
    return list(islice(Mixture(sources, weights).stream(seed), n))


def within_binomial_band(count: int, share: float, n: int = 2000) -> bool:
    """Is a count at most four standard deviations from what it should be? (A wrong alarm in 16,000.)"""
    return abs(count - n * share) <= 4 * math.sqrt(n * share * (1 - share))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [("size", (0.1, 0.3, 0.6)), ("equal", (1 / 3, 1 / 3, 1 / 3)), ((1, 1, 2), (0.25, 0.25, 0.5))],
)
def test_2000_draws_have_the_shares_asked_for(weights: Weights, shares: tuple[float, ...]) -> None:
    sources = [Numbers(name, count) for name, count in (("a", 1000), ("b", 3000), ("c", 6000))]
    counts = Counter(sample.source for sample in drawn(weights, *sources))
    assert all(within_binomial_band(counts[name], share) for name, share in zip("abc", shares, strict=True)), counts


def test_the_band_tells_size_from_equal() -> None:
    assert not within_binomial_band(200, 1 / 3)
    assert not within_binomial_band(667, 0.6)


@pytest.mark.parametrize("claims", [None, 1, 500])
def test_by_size_an_epoch_has_every_sample_of_every_source_once(claims: int | None) -> None:
    samples = drawn("size", Numbers("a", 30), Numbers("b", 70, claims), n=200)
    for epoch in (0, 1):
        part = samples[100 * epoch : 100 * (epoch + 1)]
        assert {sample.epoch for sample in part} == {epoch}
        assert Counter(sample.id for sample in part) == Counter(
            f"{s}/{i}" for s, n in (("a", 30), ("b", 70)) for i in range(n)
        )


@pytest.mark.parametrize("seed", range(5))
def test_by_size_the_sources_end_together(seed: int) -> None:
    last = drawn("size", Numbers("a", 1000), Numbers("b", 3000), n=4000, seed=seed)[-40:]
    assert {sample.source for sample in last} == {"a", "b"}  # fails by chance once in 100,000


def test_with_odds_each_source_goes_through_its_own_epochs() -> None:
    samples = drawn("equal", Numbers("small", 10), Numbers("large", 1000))
    small = [sample for sample in samples if sample.source == "small"]
    whole = len(small) // 10 * 10
    for start in range(0, whole, 10):
        part = small[start : start + 10]
        assert {sample.epoch for sample in part} == {start // 10}
        assert len({sample.key for sample in part}) == 10
    large = [sample.id for sample in samples if sample.source == "large" and sample.epoch == 0]
    assert len(set(large)) == len(large)


@pytest.mark.parametrize("weights", ["size", "equal", (1, 3)])
def test_choices_are_a_function_of_the_seed(weights: Weights) -> None:
    def ids(seed: int) -> list[str]:
        return [sample.id for sample in drawn(weights, Numbers("a", 50), Numbers("b", 50), n=100, seed=seed)]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)


def test_one_source_is_its_epochs() -> None:
    samples = drawn("size", Numbers("a", 3), n=6)
    assert [(sample.key, sample.epoch) for sample in samples] == [
        ("0", 0), ("1", 0), ("2", 0), ("1", 1), ("2", 1), ("0", 1),
    ]  # fmt: skip


def test_sources_of_one_name_are_numbered() -> None:
    mixture = Mixture([Numbers("train", 5), Numbers("train", 5), Numbers("train-2", 5)], "equal")
    assert list(mixture.sources) == ["train", "train-2", "train-2-2"]
    assert [source["name"] for source in mixture.describe()["sources"]] == ["train", "train-2", "train-2-2"]
    assert {sample.source for sample in islice(mixture.stream(0), 50)} == set(mixture.sources)


@pytest.mark.parametrize("weights", ["size", "equal"])
def test_a_source_without_samples_is_named(weights: Weights) -> None:
    with pytest.raises(RunError, check=coded("no_samples", source="none")):
        drawn(weights, Numbers("some", 5), Numbers("none", 0))


@pytest.mark.parametrize(
    ("weights", "check"),
    [
        ("random", coded("unknown_choice", argument="weights", given="random")),
        ((1, 2, 3), coded("unequal_counts", weights=3, sources=2)),
        ((1, 0), coded("not_positive", argument="weights")),
        ((1, -1), coded("not_positive", argument="weights")),
        ((1, math.nan), coded("not_positive", argument="weights")),
        ((1, math.inf), coded("not_positive", argument="weights")),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Any, check) -> None:
    with pytest.raises(UsageError, check=check):
        Mixture([Numbers("a", 1), Numbers("b", 1)], weights)
