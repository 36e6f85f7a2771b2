"""Report of `evaluate`: rows with intervals as table, JSON and CSV, and each sample's outcome."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from robustclip.data.images import save_image
from robustclip.errors import UsageError
from robustclip.evaluation import intervals
from robustclip.evaluation.intervals import Interval, percent, plain
from robustclip.runs import terminal
from robustclip.runs.files import atomic_write, write_json, write_text

Kind = Literal["value", "difference", "retention"]

CLEAN = "clean"
CONTROL = "random "  # the attack's norm and eps follow
LOW_FREQUENCY = "low-frequency share"
PLAIN = ("gradients", "maps", "faithfulness", "hacking")
"""Tasks whose numbers are not shown in percent."""
PAGE = 120  # characters a line of table.txt
REPORT_FILE = "evaluation.json"


class Tabled(ABC):
    """A result that can be printed, and written as table.txt, table.md, JSON and, if it has `lines`, CSV."""

    page: ClassVar[int] = PAGE
    file: ClassVar[str]

    @abstractmethod
    def table(self) -> Group:
        """Tables for a terminal."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The contents as plain JSON values."""

    def lines(self) -> Sequence[Any] | None:
        """The rows of the CSV file, dataclasses of one type; None: no such file."""
        return None

    def _repr_html_(self) -> str:  # what a notebook shows
        return terminal.html(self.table())

    def write_csv(self, path: str | Path) -> None:
        """All rows, with a header, atomically."""
        rows = [asdict(row) for row in self.lines() or ()]
        with atomic_write(path, "w") as file:
            writer = csv.DictWriter(file, rows[0] if rows else [], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def save(self, folder: str | Path) -> None:
        """Write table.txt, table.md, the CSV, and last the JSON file, whose presence marks the result as complete."""
        folder, table = Path(folder), self.table()
        with atomic_write(folder / "table.txt", "w") as file:
            Console(file=file, width=self.page).print(table)
        write_text(folder / "table.md", terminal.markdown(table))
        if self.lines() is not None:
            self.write_csv((folder / self.file).with_suffix(".csv"))
        write_json(folder / self.file, self.to_json())


@dataclass(frozen=True)
class Measurement:
    """Outcomes of one metric under one attack, one per sample: hits (bool), or numbers (float; NaN: undefined).
    `reference`: they do not depend on the referee."""

    metric: str
    attack: str
    outcomes: NDArray[Any]
    reference: bool = False


@dataclass
class Findings:
    """Result of a task for one referee: its measurements, and an entry per prediction."""

    measurements: list[Measurement] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def add_predictions(self, **columns: str | Sequence[Any]) -> None:
        """Add an entry per sample, with its value of each column; a text is the value of all."""
        count = next(len(values) for values in columns.values() if not isinstance(values, str))
        each = [[values] * count if isinstance(values, str) else values for values in columns.values()]
        self.predictions += [dict(zip(columns, row, strict=True)) for row in zip(*each, strict=True)]


@dataclass(frozen=True)
class Row:
    """One number of one referee.

    kind      "value": the metric itself; "difference": the metric minus `against`'s, on the same samples under the same
              attack; "retention": the metric over the *clean* metric of `against`, which is the original for clean
              images, and the referee itself under attack.
    attack    "clean", an attack's spec ("l2:1.5@20"), or "random l2:1.5", its control.
    low, high the 95% interval (Wilson for rates, else bootstrap; paired where two are compared).
    n, seed   samples, and the seed of the subset, the random starts and the bootstrap.
    reference  whether it does not depend on the referee, as the control by a centred blob.
    """

    referee: str
    task: str
    metric: str
    attack: str
    kind: Kind
    against: str
    value: float
    low: float
    high: float
    n: int
    seed: int
    reference: bool = False


@dataclass(frozen=True)
class Check:
    """Result of one check of one referee: `passed` is None if not applicable; `numbers` is a text."""

    referee: str
    name: str
    passed: bool | None
    numbers: str


@dataclass
class Report(Tabled):
    """Results of one evaluation.

    `setting`: data, size, dtype, templates, versions; `threats`: each attack's threat model as text, including RMS;
    `notes`: caveats; `predictions`: every referee's prediction per sample; `picture`: the input gradients. JSON omits
    the last two, which `save` writes to separate files. `checks`: gradient-masking checks, if requested.
    """

    setting: dict[str, Any]
    threats: dict[str, str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list, repr=False)
    picture: Float[Tensor, "3 h w"] | None = field(default=None, repr=False)
    checks: list[Check] = field(default_factory=list)
    file = REPORT_FILE

    def __repr__(self) -> str:
        tasks = ", ".join(dict.fromkeys(row.task for row in self.rows))
        return f"<Report of {len(self.rows)} rows: {tasks} on {self.setting.get('data')}; .table() shows them>"

    def lines(self) -> Sequence[Row]:
        return self.rows

    def row(self, referee: str, metric: str, attack: str = CLEAN, kind: Kind = "value") -> Row:
        """The matching row, e.g. `report.row("emoji-robust", "top-5", "l2:1.5@20")`. Raises UsageError if none."""
        for row in self.rows:
            if (row.referee, row.metric, row.attack, row.kind) == (referee, metric, attack, kind):
                return row
        names = sorted({f"{row.metric} ({row.attack}, {row.kind})" for row in self.rows if row.referee == referee})
        message = f"the report has no {metric} ({attack}, {kind}) of {referee!r}; it has {', '.join(names) or 'none'}"
        raise UsageError(message, "no_row", metric=metric, rows=names)

    def table(self) -> Group:
        """Tables for a terminal: one per task, referees side by side; threat models and notes below."""
        parts: list[Text | Table] = []
        for task in dict.fromkeys(row.task for row in self.rows):
            parts += [Text(self._title(task), style="bold"), self._table(task), Text("")]
        if self.checks:
            parts += [Text("gradient-masking sanity checks", style="bold"), checks_table(self.checks)]
            passed = sum(check.passed is True for check in self.checks)
            applicable = sum(check.passed is not None for check in self.checks)
            parts += [Text(f"masking checks: {passed} of {applicable} passed"), Text("")]
        lines = [f"{attack}: {threat}" for attack, threat in self.threats.items()] + self.notes
        return Group(*parts, *(Text(line, style="dim") for line in lines))

    def _title(self, task: str) -> str:
        unit = "shares" if task in PLAIN else "percent"
        samples = " or ".join(str(n) for n in dict.fromkeys(row.n for row in self.rows if row.task == task))
        return f"{task} on {self.setting['data']}: {unit}, 95% intervals, n = {samples}, seed {self.setting['seed']}"

    def _table(self, task: str) -> Table:
        rows = [row for row in self.rows if row.task == task]
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        for row in rows:
            lines.setdefault((row.metric, row.attack, _heading(row)), {})[row.referee] = _cell(row)
        return side_by_side(("metric", "images"), [row.referee for row in rows], lines)

    def to_json(self) -> dict[str, Any]:
        """Everything but the predictions and the picture, as plain JSON values."""
        rows = [asdict(row) for row in self.rows]
        values = {"setting": self.setting, "threats": self.threats, "notes": self.notes, "rows": rows}
        return values | ({"checks": [asdict(check) for check in self.checks]} if self.checks else {})

    def save(self, folder: str | Path) -> None:
        """Write evaluation.json, evaluation.csv, table.txt, table.md, predictions.jsonl, and gradients.png."""
        folder = Path(folder)
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.predictions)
        write_text(folder / "predictions.jsonl", "".join(lines))
        if self.picture is not None:
            save_image(self.picture, folder / "gradients.png")
        super().save(folder)


def side_by_side(
    heads: tuple[str, str], names: Iterable[str], lines: Mapping[tuple[str, ...], Mapping[str, str]]
) -> Table:
    """A column for each name; lines are keyed by (title, ..., heading), and those of one title form a section."""
    table, names = Table(*heads), list(dict.fromkeys(names))
    for name in names:
        table.add_column(Text(name), justify="right")  # a name may look like rich's markup
    above = ""
    for (title, *_, heading), cells in lines.items():
        if above and title != above:
            table.add_section()
        first, style = Text("" if title == above else title), "dim" if heading[0] == " " else ""
        table.add_row(first, Text(heading), *(cells.get(name, "") for name in names), style=style)
        above = title
    return table


def checks_table(checks: list[Check]) -> Table:
    """Each check of each referee: passed, failed or not applicable, and its numbers."""
    words = {True: Text("passed", style="green"), False: Text("FAILED", style="bold red"), None: Text("not applicable")}
    rows = [(check.referee, check.name, words[check.passed], check.numbers) for check in checks]
    return terminal.table(("referee", "check", "", "numbers"), rows)


def _heading(row: Row) -> str:
    """The attack of a value; indented, the reference of a comparison."""
    if row.kind == "value":
        return row.attack
    if row.kind == "difference":
        return f"  minus {row.against}"
    return "  of its own clean" if row.against == row.referee else f"  of clean {row.against}"


def _cell(row: Row) -> str:
    sign = "+" if row.kind == "difference" else ""
    return plain(row, sign) if row.task in PLAIN else percent(row, sign)


Measured = Mapping[str, Iterable[Measurement]]
"""The measurements of one task by referee."""


def compare(task: str, measured: Measured, *, baseline: str, seed: int) -> list[Row]:
    """Rows of one task by metric, attack and referee: values, differences, retentions.

    Differences are to `baseline` under the same attack. Retention of clean images is over the baseline's clean rate;
    under an attack it is over the referee's own. Only rates with a non-zero denominator have one. Controls,
    references, and the clean rate of a PAG score's judge are not compared. What is undefined for all samples has no
    row.
    """
    references = {(m.metric, m.attack) for of_one in measured.values() for m in of_one if m.reference}
    outcomes = {(m.metric, m.attack, name): m.outcomes for name, of_one in measured.items() for m in of_one}
    rows: list[Row] = []
    for metric, attack in _by_metric(outcomes):
        by_referee = {name: outcomes[metric, attack, name] for name in measured if (metric, attack, name) in outcomes}
        by_referee = {name: values for name, values in by_referee.items() if _defined(values).any()}

        def row(name: str, kind: Kind, against: str, of: Interval, metric: str = metric, attack: str = attack) -> Row:
            is_reference = (metric, attack) in references
            return Row(name, task, metric, attack, kind, against, of.value, of.low, of.high, of.n, seed, is_reference)

        rows += [row(name, "value", "", _interval(values, seed)) for name, values in by_referee.items()]
        is_pag = task == "pag"
        if attack.startswith(CONTROL) or (is_pag and attack == CLEAN) or (metric, attack) in references:
            continue
        for name, values in by_referee.items():
            if name == baseline or baseline not in by_referee:  # static attacks are on defended referees only
                continue
            others = by_referee[baseline]
            if (_defined(values) & _defined(others)).any():
                rows.append(row(name, "difference", baseline, _difference(values, others, seed)))
        if is_pag:  # no retention: a PAG score has no clean rate of the referee
            continue
        for name, values in by_referee.items():
            against = baseline if attack == CLEAN else name
            clean = outcomes.get((metric, CLEAN, against))  # the similarity of two maps has no clean value
            if clean is not None and values.dtype == bool and clean.any() and (attack, name) != (CLEAN, baseline):
                rows.append(row(name, "retention", against, intervals.ratio(values, clean, seed=seed)))
    return rows


def _by_metric(outcomes: Iterable[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Each (metric, attack) once, grouped by metric, otherwise in the order of measurement."""
    pairs = list(dict.fromkeys((metric, attack) for metric, attack, _ in outcomes))
    metrics = list(dict.fromkeys(metric for metric, _ in pairs))
    return sorted(pairs, key=lambda pair: metrics.index(pair[0]))


def _defined(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which outcomes are not NaN."""
    return np.asarray(np.isfinite(values))


def _interval(values: NDArray[Any], seed: int) -> Interval:
    return intervals.rate(values) if values.dtype == bool else intervals.mean(values[_defined(values)], seed=seed)


def _difference(values: NDArray[Any], others: NDArray[Any], seed: int) -> Interval:
    if values.dtype == bool:
        return intervals.difference(values, others, seed=seed)
    separations = values - others
    return intervals.mean(separations[_defined(separations)], seed=seed)
