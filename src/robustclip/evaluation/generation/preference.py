"""Preference rate: share of prompts on which one set scores higher (CLIPAG's comparison of aesthetics)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from robustclip.errors import UsageError
from robustclip.evaluation.intervals import CONFIDENCE, Interval


def preference(scores: ArrayLike, others: ArrayLike) -> Interval:
    """Share of N pairs with `scores` (n,) above `others` (n,); a tie counts half.

    Wilson's interval; with ties it is a little too wide. Raises UsageError for sets that are not paired, for none, and
    for scores that are not numbers.
    """
    first, second = np.asarray(scores, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise UsageError(f"a preference compares scores of the same prompts: {first.shape} and {second.shape} are not")
    if np.isnan(first).any() or np.isnan(second).any():
        raise UsageError("a preference compares numbers, and a score is none")
    n = len(first)
    share = float((first > second).mean() + (first == second).mean() / 2)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)
