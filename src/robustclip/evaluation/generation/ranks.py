"""Rank agreement of scores: Kendall's tau within each prompt, best-of-N gain, caption discrimination, intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text
from scipy import stats

from robustclip.errors import UsageError
from robustclip.evaluation import intervals
from robustclip.evaluation.intervals import Interval

Scores = Float[NDArray[np.float64], "prompts samples"]


def agreement(first: Scores, second: Scores, *, seed: int = 0) -> Interval:
    """Kendall's tau-b of two scores of the same samples, in [-1, 1]: mean over prompts with a bootstrap interval.
    Prompts with constant scores count 0.

    Raises UsageError for scores of other samples, and for a single sample a prompt.
    """
    if first.shape != second.shape or first.shape[1] < 2:
        raise UsageError(f"ranks are of two samples a prompt or more, the same of both: {first.shape}, {second.shape}")
    found = [float(np.nan_to_num(stats.kendalltau(*pair).statistic)) for pair in zip(first, second, strict=True)]
    return intervals.mean(found, seed=seed)


def gain(chooser: Scores, judge: Scores, *, seed: int = 0) -> Interval:
    """How far the sample that `chooser` likes best lies above the mean of its prompt's samples, in the judge's standard
    deviations among them. At random it is 0; a prompt whose samples the judge does not tell apart counts 0."""
    best = np.take_along_axis(judge, chooser.argmax(1)[:, None], 1)[:, 0]
    spread = judge.std(1)
    return intervals.mean((best - judge.mean(1)) / np.where(spread > 0, spread, np.inf), seed=seed)


def told_apart(own: Sequence[float], other: Sequence[float]) -> Interval:
    """How often a picture's own caption scores above another one. Both come once for each picture, so that this is the
    balanced accuracy of naming its own; chance is 0.5, and a tie is no win."""
    return intervals.rate(np.asarray(own) > np.asarray(other))


def compared(scores: Mapping[str, Scores], choosers: Sequence[str], judges: Sequence[str], seed: int = 0) -> list[Any]:
    """Agreement of all pairs of scores, and the gain of each chooser by each judge, as plain rows."""
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
    grid = Table(what, *seconds)
    found = {(row["first"], row["second"]): row for row in rows}
    for first in dict.fromkeys(row["first"] for row in rows):
        cells = [found.get((first, second)) for second in seconds]
        grid.add_row(first, *("" if one is None else _written(one) for one in cells))
    return Group(Text(title, style="bold"), grid)


def _written(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}), n {row['n']}"
