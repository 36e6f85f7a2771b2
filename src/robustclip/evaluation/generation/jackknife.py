"""Jackknife intervals of set-level statistics (FID, Inception Score).

The bootstrap draws pictures twice, which shrinks covariances and shifts every such number. So groups of pictures are
left out in turn instead (the delete-a-group jackknife): that estimates the variance, and leaves the value alone. The
interval does not cover the bias that few samples have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.evaluation.intervals import CONFIDENCE, Interval
from robustclip.runs.rng import generator

GROUPS: Final = 20


def jackknife(
    statistic: Callable[..., float], *sets: Tensor, seed: int, low: float = -np.inf, groups: int = GROUPS
) -> Interval:
    """`statistic(*sets)` with its 95% interval, where each set (n_i, ...) is a sample of its own, independent of the
    others. Pictures that are paired belong into one set, side by side.

    `low` is where the statistic's range ends; `n` of the interval counts the first set. Raises UsageError for a set of
    fewer than 3: nothing would be left to measure.
    """
    if not sets or min(map(len, sets)) < 3:
        raise UsageError(f"an interval needs at least 3 pictures in a set, not {min(map(len, sets), default=0)}")
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
