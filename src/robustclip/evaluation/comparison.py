"""Aggregate outcomes to rows: each referee's numbers, and paired differences to the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustclip.evaluation import intervals
from robustclip.evaluation.intervals import Interval
from robustclip.evaluation.report import CLEAN, CONTROL, Kind, Row
from robustclip.evaluation.setting import Measurement

Found = Mapping[str, Iterable[Measurement]]
"""What each referee, by name, was measured to do in one task."""


def compare(task: str, found: Found, *, baseline: str, seed: int) -> list[Row]:
    """Rows of one task, metric by metric, attack by attack, each with all referees: values, differences, retentions.

    Differences are to `baseline` under the same attack. Retention of clean images is over the baseline's clean rate;
    under an attack it is over the referee's own. There is none for numbers that are not rates, nor where the
    denominator is 0. Controls are not compared, nor is what a PAG score's judge saw before a referee did
    anything, nor a reference.
    """
    references = {(m.metric, m.attack) for measured in found.values() for m in measured if m.reference}
    outcomes = {(m.metric, m.attack, name): m.outcomes for name, measured in found.items() for m in measured}
    rows: list[Row] = []
    for metric, attack in _by_metric(outcomes):
        here = {name: outcomes[metric, attack, name] for name in found}

        def row(name: str, kind: Kind, against: str, of: Interval, metric: str = metric, attack: str = attack) -> Row:
            is_reference = (metric, attack) in references
            return Row(name, task, metric, attack, kind, against, of.value, of.low, of.high, of.n, seed, is_reference)

        rows += [row(name, "value", "", _interval(values, seed)) for name, values in here.items()]
        judged = task == "pag"
        if attack.startswith(CONTROL) or (judged and attack == CLEAN) or (metric, attack) in references:
            continue
        for name, values in here.items():
            if name != baseline:
                rows.append(row(name, "difference", baseline, _difference(values, here[baseline], seed)))
        if judged:  # nothing is retained of what nobody saw before
            continue
        for name, values in here.items():
            against = baseline if attack == CLEAN else name
            clean = outcomes.get((metric, CLEAN, against))  # how alike two maps are has no clean value
            if clean is not None and values.dtype == bool and clean.any() and (attack, name) != (CLEAN, baseline):
                rows.append(row(name, "retention", against, intervals.ratio(values, clean, seed=seed)))
    return rows


def _by_metric(outcomes: Iterable[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Each (metric, attack) once, all attacks of a metric together, otherwise in the order of measuring."""
    pairs = list(dict.fromkeys((metric, attack) for metric, attack, _ in outcomes))
    metrics = list(dict.fromkeys(metric for metric, _ in pairs))
    return sorted(pairs, key=lambda pair: metrics.index(pair[0]))


def _interval(values: NDArray[Any], seed: int) -> Interval:
    return intervals.rate(values) if values.dtype == bool else intervals.mean(values[np.isfinite(values)], seed=seed)


def _difference(values: NDArray[Any], others: NDArray[Any], seed: int) -> Interval:
    if values.dtype == bool:
        return intervals.difference(values, others, seed=seed)
    separations = values - others
    return intervals.mean(separations[np.isfinite(separations)], seed=seed)
