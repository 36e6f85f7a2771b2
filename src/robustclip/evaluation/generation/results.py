"""Tables of per-sample outcomes: rates, means and paired differences with 95% intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Group
from rich.text import Text

from robustclip.errors import UsageError
from robustclip.evaluation import intervals
from robustclip.evaluation.intervals import Interval, percent, plain, preference
from robustclip.evaluation.report import Tabled
from robustclip.runs import terminal
from robustclip.runs.files import read_json

RESULTS: Final = "results.json"
PAGE: Final = 240  # characters a line of table.txt
Pairs = Sequence[tuple[str, str]]


class Column(NamedTuple):
    """Metric and judge of a column ("" without a judge)."""

    metric: str
    judge: str = ""

    def __str__(self) -> str:
        return f"{self.metric}, {self.judge}" if self.judge else self.metric


@dataclass(frozen=True)
class Row:
    """Outcomes of N samples: (N,) bool for a rate, float64 for a mean, by column.

    `samples` are their names (prompts). Samples of one name, such as seeds of a prompt, are not independent. `seconds`
    is the time per sample.
    """

    samples: list[str]
    columns: dict[Column, NDArray[Any]]
    seconds: float | None = None


@dataclass
class Results(Tabled):
    """A table of rows with shared columns.

    seed      of the bootstrap
    groups    {name: samples in it}, evaluated in addition to "all"
    chance    {metric: rate by chance}, shown in the headers
    shown     the metrics of the printed tables; empty: all
    compared  (row, against) whose paired differences are reported
    shares    (row, of) whose ratio of rates on their common samples is reported
    """

    seed: int = 0
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    shown: Sequence[str] = ()
    compared: Pairs = ()
    shares: Pairs = ()
    notes: list[str] = field(default_factory=list)
    setting: Mapping[str, Any] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict, repr=False)
    page = PAGE
    file = RESULTS

    def add(
        self, name: str, samples: Sequence[str], columns: Mapping[Column, ArrayLike], seconds: float | None = None
    ) -> None:
        """Add or replace a row. Raises UsageError for columns of another length, and for an empty row."""
        arrays = {column: np.asarray(values) for column, values in columns.items()}
        for column, values in arrays.items():
            if values.shape != (len(samples),):
                raise UsageError(f"{name} has {len(samples)} samples, and {column} is of shape {values.shape}")
        if not samples or not columns:
            raise UsageError(f"{name} has {len(samples)} samples and {len(columns)} columns: a row needs one of each")
        typed = {one: values if values.dtype == bool else values.astype(np.float64) for one, values in arrays.items()}
        self.rows[name] = Row(list(samples), typed, seconds)

    def value(self, row: str, column: Column, group: str = "all") -> Interval:
        """A rate with Wilson's interval, which assumes independent samples; a mean with the interval of a bootstrap
        clustered by sample name. Raises UsageError if the row has no sample of the group."""
        places = self._places(row, group)
        if not places.any():
            raise UsageError(f"{row} has no samples of {group}", "no_samples", group=group)
        outcomes = self.rows[row].columns[column][places]
        return intervals.rate(outcomes) if outcomes.dtype == bool else self._by_name(row, places, outcomes)

    def difference(self, row: str, against: str, column: Column, group: str = "all") -> Interval:
        """Rate or mean of a row minus `against`'s on the same samples, with the interval of a paired bootstrap
        clustered by sample name. Raises UsageError if the samples differ."""
        if self.rows[row].samples != self.rows[against].samples:
            raise UsageError(f"{row} and {against} are of different samples: they are not paired", "not_paired")
        places = self._places(row, group)
        first, second = (self.rows[one].columns[column][places] for one in (row, against))
        if first.dtype == bool and len(set(self.rows[row].samples)) == len(self.rows[row].samples):
            return intervals.difference(first, second, seed=self.seed)
        return self._by_name(row, places, first.astype(float) - second.astype(float))

    def preferred(self, row: str, against: str, column: Column) -> Interval:
        """The share of samples on which a row's value is above `against`'s."""
        return preference(self.rows[row].columns[column], self.rows[against].columns[column])

    def share(self, row: str, of: str, column: Column) -> Interval:
        """The rate of a row over `of`'s, on their common samples, with the paired bootstrap's interval.

        Raises UsageError if either has duplicate sample names, or `of` has no hit.
        """
        rows = [self.rows[one] for one in (row, of)]
        hits = [dict(zip(one.samples, one.columns[column].tolist(), strict=True)) for one in rows]
        if any(len(own) < len(one.samples) for own, one in zip(hits, rows, strict=True)):
            raise UsageError(
                f"{row} or {of} has several samples of one name: which are compared is not defined", "name_twice"
            )
        both = [name for name in hits[0] if name in hits[1]]
        return intervals.ratio(*([own[name] for name in both] for own in hits), seed=self.seed)

    def at_chance(self, row: str, metric: str) -> list[str]:
        """Judges whose rate of that metric is not significantly above chance."""
        columns = [column for column in self.columns(row) if column.metric == metric] if row in self.rows else []
        return [one.judge for one in columns if self.value(row, one).low <= self.chance[metric]]

    def columns(self, *rows: str) -> list[Column]:
        """Columns of any of these rows; without arguments of all rows."""
        return list(dict.fromkeys(one for row in rows or self.rows for one in self.rows[row].columns))

    def to_json(self) -> dict[str, Any]:
        """All outcomes, intervals, differences and shares, which `from_json` reads."""
        return {
            "setting": dict(self.setting),
            "seed": self.seed,
            "groups": {name: sorted(members) for name, members in self.groups.items()},
            "chance": dict(self.chance),
            "shown": list(self.shown),
            "compared": [list(pair) for pair in self.compared],
            "shares": [list(pair) for pair in self.shares],
            "notes": self.notes,
            "rows": {
                name: {
                    "samples": row.samples,
                    "seconds": row.seconds,
                    "columns": [
                        column._asdict() | {"outcomes": outcomes.tolist()} for column, outcomes in row.columns.items()
                    ],
                }
                for name, row in self.rows.items()
            },
            "values": [
                {"row": name, **column._asdict(), "group": group, **asdict(self.value(name, column, group))}
                for name, row in self.rows.items()
                for column in row.columns
                for group in self._groups(name)
            ],
            "differences": [
                {"row": row, "against": against, **column._asdict(), "group": group}
                | asdict(self.difference(row, against, column, group))
                | (
                    {"preferred": asdict(self.preferred(row, against, column))}
                    if group == "all" and self.rows[row].columns[column].dtype != bool
                    else {}
                )
                for row, against in self._present(self.compared)
                for column in self._common(row, against)
                for group in self._groups(row)
            ],
            "shares_of": [
                {"row": row, "of": of, **column._asdict(), **asdict(self.share(row, of, column))}
                for row, of in self._present(self.shares)
                for column in self._rates(row, of)
            ],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The table written by `to_json`."""
        made = cls(values["seed"], chance=values["chance"], shown=values["shown"], setting=values["setting"])
        made.groups = {name: frozenset(members) for name, members in values["groups"].items()}
        made.compared, made.shares = ([(one, other) for one, other in values[name]] for name in ("compared", "shares"))
        made.notes = list(values["notes"])
        for name, row in values["rows"].items():
            columns = {Column(one["metric"], one["judge"]): one["outcomes"] for one in row["columns"]}
            made.add(name, row["samples"], columns, row["seconds"])
        return made

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The table of a run's folder."""
        return cls.from_json(read_json(folder / RESULTS))

    def tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """(header, rows) of each table as text, one table per set of columns; differences, shares and groups follow.
        Rates in percent, their differences in points."""
        kinds: dict[tuple[Column, ...], list[str]] = {}
        for name in self.rows:
            shown = [one for one in self.columns(name) if not self.shown or one.metric in self.shown]
            kinds.setdefault(tuple(shown), []).append(name)
        parts = []
        for columns, names in kinds.items():
            head = [f"{one}{self._chance(one)}" for one in columns]
            body = [
                [name, str(len(self.rows[name].samples))]
                + [self._text(name, column, self.value(name, column)) for column in columns]
                + ["" if (took := self.rows[name].seconds) is None else f"{took:.1f}"]
                for name in names
            ]
            parts.append((["", "n", *head, "seconds each"], body))
            body = [
                [f"{row} minus {against}", str(len(self.rows[row].samples))]
                + [self._difference(row, against, one) if one in self._common(row, against) else "" for one in columns]
                for row, against in self._present(self.compared)
                if row in names
            ]
            for row, of in self._present(self.shares):
                if row in names and (rates := self._rates(row, of)):
                    ratios = {column: self.share(row, of, column) for column in rates}
                    cells = [percent(ratios[one]) if one in ratios else "" for one in columns]
                    body.append([f"{row}: share of {of}", str(ratios[rates[0]].n), *cells])
            if body:
                parts.append((["difference", "n", *map(str, columns)], body))
            for group in self.groups:
                body = [
                    [name, str(self._places(name, group).sum())]
                    + [self._text(name, column, self.value(name, column, group)) for column in columns]
                    for name in names
                    if self._places(name, group).any()
                ]
                if body:
                    parts.append(([group, "n", *map(str, columns)], body))
        return parts

    def table(self) -> Group:
        """The tables and notes for a terminal."""
        parts = [terminal.table([one.replace(", ", "\n") for one in head], rows) for head, rows in self.tables()]
        return Group(*parts, *(Text(note, style="dim") for note in self.notes))

    def _by_name(self, row: str, places: NDArray[np.bool_], numbers: NDArray[np.float64]) -> Interval:
        names = [name for name, taken in zip(self.rows[row].samples, places, strict=True) if taken]
        by_name: dict[str, list[float]] = {}
        for name, number in zip(names, numbers.tolist(), strict=True):
            by_name.setdefault(name, []).append(number)
        of_names = intervals.mean([float(np.mean(one)) for one in by_name.values()], seed=self.seed)
        return Interval(of_names.value, of_names.low, of_names.high, len(names))

    def _places(self, row: str, group: str) -> NDArray[np.bool_]:
        samples = self.rows[row].samples
        members = set(samples) if group == "all" else self.groups[group]
        return np.array([one in members for one in samples])

    def _groups(self, row: str) -> list[str]:
        return [group for group in ("all", *self.groups) if self._places(row, group).any()]

    def _present(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return [pair for pair in pairs if all(one in self.rows for one in pair)]

    def _common(self, row: str, against: str) -> list[Column]:
        return [one for one in self.columns(row) if one in self.rows[against].columns]

    def _rates(self, row: str, of: str) -> list[Column]:
        """Columns of rates that `of` has a hit in, on their common samples: a share needs one."""
        rates = [one for one in self._common(row, of) if self.rows[row].columns[one].dtype == bool]
        shared = np.isin(self.rows[of].samples, self.rows[row].samples)
        return [one for one in rates if (self.rows[of].columns[one] & shared).any()]

    def _chance(self, column: Column) -> str:
        return f", chance {100 * self.chance[column.metric]:.3g}" if column.metric in self.chance else ""

    def _text(self, row: str, column: Column, interval: Interval, sign: str = "") -> str:
        return percent(interval, sign) if self.rows[row].columns[column].dtype == bool else plain(interval, sign)

    def _difference(self, row: str, against: str, column: Column) -> str:
        text = self._text(row, column, self.difference(row, against, column), "+")
        if self.rows[row].columns[column].dtype == bool:
            return text
        return f"{text}; higher on {100 * self.preferred(row, against, column).value:.0f}%"
