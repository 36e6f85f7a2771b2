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
from robustclip.runs.files import atomic_write, write_json

Kind = Literal["value", "difference", "retention"]

CLEAN = "clean"
CONTROL = "random "  # the attack's norm and eps follow
LOW_FREQUENCY = "low-frequency share"
PLAIN = ("gradients", "maps", "faithfulness")
"""Tasks whose numbers are told as they are, not in percent."""
PAGE = 120  # characters a line of table.txt
REPORT_FILE = "evaluation.json"


class Tabled(ABC):
    """Rows that can be printed, and written as table.txt, table.md, CSV and JSON."""

    page: ClassVar[int] = PAGE
    file: ClassVar[str]

    @abstractmethod
    def table(self) -> Group:
        """For a terminal."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """For programs, as plain JSON values."""

    @abstractmethod
    def lines(self) -> Sequence[Any]:
        """The rows of the CSV file, which are dataclasses of one kind."""

    def _repr_html_(self) -> str:  # what a notebook shows
        return terminal.html(self.table())

    def write_csv(self, path: str | Path) -> None:
        """All rows, with a header, atomically."""
        rows = [asdict(row) for row in self.lines()]
        with atomic_write(path, "w") as file:
            writer = csv.DictWriter(file, rows[0] if rows else [], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def save(self, folder: str | Path) -> None:
        """Write table.txt, table.md, the CSV and the JSON file, whose presence says that all the rest is there."""
        folder = Path(folder)
        with atomic_write(folder / "table.txt", "w") as file:
            Console(file=file, width=self.page).print(self.table())
        with atomic_write(folder / "table.md", "w") as file:
            file.write(terminal.markdown(self.table()))
        self.write_csv((folder / self.file).with_suffix(".csv"))
        write_json(folder / self.file, self.to_json())


@dataclass(frozen=True)
class Measurement:
    """Outcomes of one metric under one attack, one for each sample: hits (bool), or numbers (float; NaN: has none).
    `reference` says that no referee has a part in them."""

    metric: str
    attack: str
    outcomes: NDArray[Any]
    reference: bool = False


@dataclass
class Findings:
    """What a task found of one referee: its measurements, and an entry for each answer that was given."""

    measurements: list[Measurement] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One number of one referee.

    kind      "value": the metric itself; "difference": the metric minus `against`'s, on the same samples under the same
              attack; "retention": the metric over the *clean* metric of `against`, which is the original for clean
              images, and the referee itself under attack.
    attack    "clean", an attack's spec ("l2:1.5@20"), or "random l2:1.5", its control.
    low, high the 95% interval (Wilson for rates, else bootstrap; paired where two are compared).
    n, seed   samples, and the seed of the subset, the random starts and the bootstrap.
    reference  whether no referee has a part in it: what a blob in the middle of the image has.
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
    """Result of one check of one referee: `passed` is None if not applicable; `told` are its numbers as text."""

    referee: str
    name: str
    passed: bool | None
    told: str


@dataclass
class Report(Tabled):
    """Results of one evaluation.

    `setting`: data, size, dtype, templates, versions; `threats`: each attack's threat model as text, including RMS;
    `notes`: caveats; `answers`: every referee's prediction per sample; `picture`: the input gradients. JSON omits the
    last two, which `save` writes to separate files. `checks`: gradient-masking checks, if requested.
    """

    setting: dict[str, Any]
    threats: dict[str, str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list, repr=False)
    picture: Float[Tensor, "3 h w"] | None = field(default=None, repr=False)
    checks: list[Check] = field(default_factory=list)
    file = REPORT_FILE

    def __repr__(self) -> str:
        tasks = ", ".join(dict.fromkeys(row.task for row in self.rows))
        return f"<Report of {len(self.rows)} rows: {tasks} on {self.setting.get('data')}; .table() shows them>"

    def lines(self) -> Sequence[Row]:
        return self.rows

    def row(self, referee: str, metric: str, attack: str = CLEAN, kind: Kind = "value") -> Row:
        """The row of that description, e.g. `report.row("emoji-robust", "top-5", "l2:1.5@20")`; UsageError if none."""
        wanted = (referee, metric, attack, kind)
        for row in self.rows:
            if (row.referee, row.metric, row.attack, row.kind) == wanted:
                return row
        held = sorted({f"{row.metric} ({row.attack}, {row.kind})" for row in self.rows if row.referee == referee})
        raise UsageError(
            f"the report has no {metric} ({attack}, {kind}) of {referee!r}; it has {', '.join(held) or 'none'}"
        )

    def table(self) -> Group:
        """Tables for a terminal: one for each task, referees side by side; threat models and notes below."""
        parts: list[Text | Table] = []
        for task in dict.fromkeys(row.task for row in self.rows):
            parts += [Text(self._title(task), style="bold"), self._table(task), Text("")]
        if self.checks:
            parts += [Text("masking checks: may the numbers be believed?", style="bold"), checks_table(self.checks)]
            passed = sum(check.passed is True for check in self.checks)
            asked = sum(check.passed is not None for check in self.checks)
            parts += [Text(f"masking checks: {passed} of {asked} passed"), Text("")]
        lines = [f"{attack}: {threat}" for attack, threat in self.threats.items()] + self.notes
        return Group(*parts, *(Text(line, style="dim") for line in lines))

    def _title(self, task: str) -> str:
        unit = "shares" if task in PLAIN else "percent"
        samples = " or ".join(str(n) for n in dict.fromkeys(row.n for row in self.rows if row.task == task))
        return f"{task} on {self.setting['data']}: {unit}, 95% intervals, n = {samples}, seed {self.setting['seed']}"

    def _table(self, task: str) -> Table:
        rows = [row for row in self.rows if row.task == task]
        referees = list(dict.fromkeys(row.referee for row in rows))
        table = Table("metric", "images")
        for referee in referees:
            table.add_column(Text(referee), justify="right")  # a name may look like rich's markup
        lines: dict[tuple[str, str, str], dict[str, Row]] = {}
        for row in rows:
            lines.setdefault((row.metric, row.attack, _heading(row)), {})[row.referee] = row
        above = ""
        for (metric, _, heading), found in lines.items():
            if above and metric != above:
                table.add_section()
            cells = [_cell(found[referee]) if referee in found else "" for referee in referees]
            first = Text("" if metric == above else metric)
            table.add_row(first, Text(heading), *cells, style="dim" if heading[0] == " " else "")
            above = metric
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything but the answers and the picture, as plain JSON values."""
        rows = [asdict(row) for row in self.rows]
        told = {"setting": self.setting, "threats": self.threats, "notes": self.notes, "rows": rows}
        return told | ({"checks": [asdict(check) for check in self.checks]} if self.checks else {})

    def save(self, folder: str | Path) -> None:
        """Write evaluation.json, evaluation.csv, table.txt, table.md, answers.jsonl, and gradients.png of a picture."""
        folder = Path(folder)
        with atomic_write(folder / "answers.jsonl", "w") as file:
            file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in self.answers)
        if self.picture is not None:
            save_image(self.picture, folder / "gradients.png")
        super().save(folder)


def checks_table(checks: list[Check]) -> Table:
    """Each check of each referee: passed, failed, or nothing said, and its numbers."""
    table = Table("referee", "check", "", "numbers")
    words = {True: Text("passed", style="green"), False: Text("FAILED", style="bold red"), None: Text("not applicable")}
    for check in checks:
        table.add_row(Text(check.referee), Text(check.name), words[check.passed], Text(check.told))
    return table


def _heading(row: Row) -> str:
    """The attack of a value; indented below it, what a comparison compares with."""
    if row.kind == "value":
        return row.attack
    if row.kind == "difference":
        return f"  minus {row.against}"
    return "  of its own clean" if row.against == row.referee else f"  of clean {row.against}"


def _cell(row: Row) -> str:
    sign = "+" if row.kind == "difference" else ""
    return plain(row, sign) if row.task in PLAIN else percent(row, sign)


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
