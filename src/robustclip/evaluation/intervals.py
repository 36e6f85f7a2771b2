"""95% intervals: Wilson for rates, bootstrap for means and paired differences, t over training seeds.

Two referees on the same images are compared image by image: resampling n pairs of binary outcomes with replacement is
one multinomial draw over the four outcomes (both, first only, second only, neither), so the paired bootstrap needs no
loop over the images, and is exact in distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.runs.rng import generator

RESAMPLES = 9_999  # so that the 2.5% and 97.5% quantiles are order statistics
CONFIDENCE = 0.95


class Bounded(Protocol):
    """A value with the bounds of its 95% interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Interval:
    """A value, its 95% interval, and the number of samples (images, captions)."""

    value: float
    low: float
    high: float
    n: int


def plain(interval: Bounded, sign: str = "", digits: int = 3) -> str:
    """Format as "1.250 (1.101 to 1.402)"; with the sign "+" of a difference."""
    value, low, high = (f"{number:{sign}.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def percent(interval: Bounded, sign: str = "") -> str:
    """Format in percent, or points: "72.0 (60.1 to 82.3)"."""
    return plain(Interval(100 * interval.value, 100 * interval.low, 100 * interval.high, 0), sign, 1)


def rate(hits: ArrayLike) -> Interval:
    """The share of True among `hits` (n,), with Wilson's score interval. Raises UsageError if n is 0."""
    outcomes = _outcomes(hits)
    wilson = stats.binomtest(int(outcomes.sum()), len(outcomes)).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(outcomes.mean()), float(wilson.low), float(wilson.high), len(outcomes))


def mean(values: ArrayLike, *, seed: int) -> Interval:
    """The mean of `values` (n,), with the percentile bootstrap's interval. Raises UsageError if n is 0."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise UsageError("an interval needs at least one sample", "no_samples")
    if numbers.size == 1:
        return Interval(float(numbers[0]), float(numbers[0]), float(numbers[0]), 1)
    bounds = stats.bootstrap(
        (numbers,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(float(numbers.mean()), float(bounds.low), float(bounds.high), numbers.size)


def over_seeds(values: ArrayLike) -> Interval:
    """The mean of `values` (s,n) of the same n images under s training seeds, or of their paired differences.

    t interval of the variance between images / n plus that between seeds / s, with Satterthwaite's degrees of freedom.
    What they share counts twice, so it is a little wide. Raises UsageError with fewer than two images or seeds.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 2 or min(numbers.shape) < 2:
        message = f"an interval over seeds needs values (seeds, images), two each or more, not {numbers.shape}"
        raise UsageError(message, "too_few", shape=numbers.shape)
    parts = [(float(means.var(ddof=1)) / means.size, means.size - 1) for means in (numbers.mean(0), numbers.mean(1))]
    total, value = sum(variance for variance, _ in parts), float(numbers.mean())
    if total == 0:
        return Interval(value, value, value, numbers.size)
    freedom = total**2 / sum(variance**2 / own for variance, own in parts)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * total**0.5
    return Interval(value, value - half, value + half, numbers.size)


def difference(hits: ArrayLike, others: ArrayLike, *, seed: int) -> Interval:
    """Rate of `hits` minus rate of `others`, both (n,) on the same samples, with the paired bootstrap's interval."""
    return _paired(hits, others, lambda first, second: first - second, seed)


def ratio(hits: ArrayLike, others: ArrayLike, *, seed: int) -> Interval:
    """Rate of `hits` over rate of `others`, both (n,) on the same samples, with the paired bootstrap's interval.

    Raises UsageError if `others` has no hit.
    """
    if not np.any(others):
        raise UsageError("a ratio needs at least one hit in its denominator", "no_hits")
    return _paired(hits, others, lambda first, second: first / second, seed)


Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def _paired(hits: ArrayLike, others: ArrayLike, statistic: Statistic, seed: int) -> Interval:
    first, second = _outcomes(hits), _outcomes(others)
    if len(first) != len(second):
        raise UsageError(f"paired outcomes need the same samples, not {len(first)} and {len(second)}", "not_paired")
    n = len(first)
    cells = np.array(
        [(first & second).sum(), (first & ~second).sum(), (~first & second).sum(), (~first & ~second).sum()]
    )

    def of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return statistic((counts[..., 0] + counts[..., 1]) / n, (counts[..., 0] + counts[..., 2]) / n)

    drawn = np.random.default_rng(seed).multinomial(n, cells / n, size=RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = of(drawn)
    # Resamples without a hit in the denominator have no ratio.
    low, high = np.quantile(resampled[np.isfinite(resampled)], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(of(cells)), float(low), float(high), n)


def _outcomes(hits: ArrayLike) -> NDArray[np.bool_]:
    outcomes = np.asarray(hits, dtype=bool)
    if outcomes.ndim != 1 or len(outcomes) == 0:
        raise UsageError(f"an interval needs a list of at least one outcome, not shape {outcomes.shape}", "no_samples")
    return outcomes


GROUPS: Final = 20


def jackknife(
    statistic: Callable[..., float], *sets: Tensor, seed: int, low: float = -np.inf, groups: int = GROUPS
) -> Interval:
    """`statistic(*sets)` with its 95% grouped-jackknife interval; the sets (n_i, ...) are independent samples. Paired
    pictures belong in one set, side by side.

    `low` is the lower end of the statistic's range; the interval's `n` is that of the first set. Raises UsageError for
    a set of fewer than 3.
    """
    if not sets or min(map(len, sets)) < 3:
        message = f"an interval needs at least 3 pictures in a set, not {min(map(len, sets), default=0)}"
        raise UsageError(message, "too_few", given=min(map(len, sets), default=0))
    value, variance = statistic(*sets), 0.0
    for place, whole in enumerate(sets):
        order = torch.randperm(len(whole), generator=generator(seed, "jackknife", place))
        parts = order.tensor_split(min(groups, len(whole)))
        without = []
        for part in parts:
            kept = torch.ones(len(whole), dtype=torch.bool)
            kept[part] = False
            without.append(statistic(*sets[:place], whole[kept], *sets[place + 1 :]))
        variance += (len(parts) - 1) * float(np.var(without))
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * variance**0.5
    return Interval(value, max(low, value - half), value + half, len(sets[0]))


def preference(scores: ArrayLike, others: ArrayLike) -> Interval:
    """Share of N pairs with `scores` (n,) above `others` (n,); ties count half.

    Wilson's interval, slightly conservative with ties. Raises UsageError for unpaired or empty sets, and for NaN.
    """
    first, second = np.asarray(scores, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise UsageError(
            f"a preference needs scores of the same prompts, not {first.shape} and {second.shape}", "not_paired"
        )
    if np.isnan(first).any() or np.isnan(second).any():
        raise UsageError("a preference compares numbers, and a score is NaN", "not_finite")
    n = len(first)
    share = float((first > second).mean() + (first == second).mean() / 2)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)
