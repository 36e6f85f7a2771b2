"""95% intervals: Wilson for rates, bootstrap for means and paired differences.

Rates have Wilson's interval. Two referees judged on the same images are compared image by image: resampling n pairs of
yes/no outcomes with replacement is one multinomial draw over the four outcomes (both, first only, second only,
neither), so the paired bootstrap needs no loop over the images, and is exact in distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from robustclip.errors import UsageError

RESAMPLES = 9_999  # so that the 2.5% and 97.5% quantiles are order statistics
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A value, the bounds of its 95% interval, and the number of samples (images, captions) it was measured on."""

    value: float
    low: float
    high: float
    n: int


def rate(hits: ArrayLike) -> Interval:
    """The share of True among `hits` (n,), with Wilson's score interval. Raises UsageError where n is 0."""
    outcomes = _outcomes(hits)
    found = stats.binomtest(int(outcomes.sum()), len(outcomes)).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(outcomes.mean()), float(found.low), float(found.high), len(outcomes))


def mean(values: ArrayLike, *, seed: int) -> Interval:
    """The mean of `values` (n,), with the percentile bootstrap's interval. Raises UsageError where n is 0."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise UsageError("an interval needs at least one sample")
    if numbers.size == 1:
        return Interval(float(numbers[0]), float(numbers[0]), float(numbers[0]), 1)
    found = stats.bootstrap(
        (numbers,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(float(numbers.mean()), float(found.low), float(found.high), numbers.size)


def difference(hits: ArrayLike, others: ArrayLike, *, seed: int) -> Interval:
    """Rate of `hits` minus rate of `others`, both (n,) on the same samples, with the paired bootstrap's interval."""
    return _paired(hits, others, lambda first, second: first - second, seed)


def ratio(hits: ArrayLike, others: ArrayLike, *, seed: int) -> Interval:
    """Rate of `hits` over rate of `others`, both (n,) on the same samples, with the paired bootstrap's interval.

    Raises UsageError where `others` has no hit: nothing can be kept of nothing.
    """
    if not np.any(others):
        raise UsageError("a ratio needs at least one hit in its denominator")
    return _paired(hits, others, lambda first, second: first / second, seed)


Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def _paired(hits: ArrayLike, others: ArrayLike, statistic: Statistic, seed: int) -> Interval:
    first, second = _outcomes(hits), _outcomes(others)
    if len(first) != len(second):
        raise UsageError(f"paired outcomes are of the same samples: {len(first)} and {len(second)} are not")
    n = len(first)
    cells = np.array(
        [(first & second).sum(), (first & ~second).sum(), (~first & second).sum(), (~first & ~second).sum()]
    )

    def of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return statistic((counts[..., 0] + counts[..., 1]) / n, (counts[..., 0] + counts[..., 2]) / n)

    drawn = np.random.default_rng(seed).multinomial(n, cells / n, size=RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = of(drawn)
    # A resample without a hit in the denominator has no ratio; it is left out of the quantiles.
    low, high = np.quantile(resampled[np.isfinite(resampled)], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(of(cells)), float(low), float(high), n)


def _outcomes(hits: ArrayLike) -> NDArray[np.bool_]:
    outcomes = np.asarray(hits, dtype=bool)
    if outcomes.ndim != 1 or len(outcomes) == 0:
        raise UsageError(f"an interval needs a list of at least one outcome, not shape {outcomes.shape}")
    return outcomes
