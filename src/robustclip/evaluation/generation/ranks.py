"""Rank agreement of scores: Kendall's tau within each prompt, best-of-N gain, caption discrimination, intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from rich.console import Group
from rich.text import Text
from scipy import stats

from robustclip.errors import UsageError
from robustclip.evaluation import intervals
from robustclip.evaluation.intervals import Interval
from robustclip.runs import terminal

Scores = Float[NDArray[np.float64], "prompts samples"]


def agreement(first: Scores, second: Scores, *, seed: int = 0) -> Interval:
    """Kendall's tau-b of two scores of the same samples, in [-1, 1]: mean over prompts with a bootstrap interval.
    Prompts with constant scores count 0.

    Raises UsageError for scores of other samples, and for a single sample a prompt.
    """
    if first.shape != second.shape or first.shape[1] < 2:
        raise UsageError(f"ranks need the same two or more samples per prompt, not {first.shape} and {second.shape}")
    taus = [float(np.nan_to_num(stats.kendalltau(*pair).statistic)) for pair in zip(first, second, strict=True)]
    return intervals.mean(taus, seed=seed)


def gain(chooser: Scores, judge: Scores, *, seed: int = 0) -> Interval:
    """Mean z-score, by the judge, of the sample with the highest `chooser` score among its prompt's samples. 0 by
    chance, and for prompts whose samples all have the same judge score."""
    best = np.take_along_axis(judge, chooser.argmax(1)[:, None], 1)[:, 0]
    spread = np.where(np.ptp(judge, axis=1) > 0, judge.std(1), np.inf)  # the deviation of equal numbers may be 1e-17
    return intervals.mean((best - judge.mean(1)) / spread, seed=seed)


def caption_accuracy(own: Sequence[float], other: Sequence[float]) -> Interval:
    """How often a picture's own caption scores above another one; chance is 0.5, and ties count as errors."""
    return intervals.rate(np.asarray(own) > np.asarray(other))


def compared(scores: Mapping[str, Scores], choosers: Sequence[str], judges: Sequence[str], seed: int = 0) -> list[Any]:
    """Rows (plain values) of the agreement of all pairs of scores, and the gain of each chooser by each judge."""
    rows: list[dict[str, Any]] = [
        {"first": one, "second": two, "what": "tau", **vars(agreement(scores[one], scores[two], seed=seed))}
        for one, two in combinations(scores, 2)
    ]
    return rows + [
        {"first": one, "second": judge, "what": "gain", **vars(gain(scores[one], scores[judge], seed=seed))}
        for one in choosers
        for judge in judges
        if one != judge
    ]


def table(title: str, rows: Sequence[Mapping[str, Any]], what: str) -> Group:
    """Rows of one kind as a grid of first against second, each with its interval."""
    rows = [row for row in rows if row["what"] == what]
    seconds = list(dict.fromkeys(row["second"] for row in rows))
    cells = {
        (row["first"], row["second"]): f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}), n {row['n']}"
        for row in rows
    }
    firsts = dict.fromkeys(row["first"] for row in rows)
    lines = [(first, *(cells.get((first, second), "") for second in seconds)) for first in firsts]
    return Group(Text(title, style="bold"), terminal.table((what, *seconds), lines))
