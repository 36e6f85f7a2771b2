"""Report of `evaluate`: rows with intervals as table, JSON and CSV, and each sample's outcome."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from robustclip.data.images import save_image
from robustclip.errors import UsageError
from robustclip.runs import terminal
from robustclip.runs.files import atomic_write, read_json, write_json

Kind = Literal["value", "difference", "retention"]

CLEAN = "clean"
CONTROL = "random "  # the attack's norm and eps follow
LOW_FREQUENCY = "low-frequency share"
PLAIN = ("gradients", "maps", "faithfulness")
"""Tasks whose numbers are told as they are, not in percent."""
PAGE = 120  # characters a line of table.txt
REPORT_FILE = "evaluation.json"


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
class Report:
    """All numbers of one evaluation.

    `setting` says what was measured and how (data, size, dtype, templates, versions); `threats` maps each attack to
    its threat model in words, RMS included; `notes` hold what a reader should know before believing a number;
    `answers` has an entry for every answer of every referee; `picture` shows the input gradients. JSON leaves the last
    two out: `save` writes them into files of their own. `checks` are those of masked gradients, where they were asked
    for.
    """

    setting: dict[str, Any]
    threats: dict[str, str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list, repr=False)
    picture: Float[Tensor, "3 h w"] | None = field(default=None, repr=False)
    checks: list[Check] = field(default_factory=list)

    def __repr__(self) -> str:
        tasks = ", ".join(dict.fromkeys(row.task for row in self.rows))
        return f"<Report of {len(self.rows)} rows: {tasks} on {self.setting.get('data')}; .table() shows them>"

    def _repr_html_(self) -> str:  # what a notebook shows
        return terminal.html(self.table())

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

    @classmethod
    def read(cls, folder: Path) -> Report:
        """What `save` wrote, but for the answers and the picture."""
        found = read_json(folder / REPORT_FILE)
        made = cls(found["setting"], found["threats"], [Row(**row) for row in found["rows"]], found["notes"])
        made.checks = [Check(**check) for check in found.get("checks", [])]
        return made

    def write_csv(self, path: str | Path) -> None:
        """All rows, with a header, atomically."""
        with atomic_write(path, "w") as file:
            writer = csv.DictWriter(file, [item.name for item in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)

    def save(self, folder: str | Path) -> None:
        """Write evaluation.json, evaluation.csv, table.txt, answers.jsonl and, if there is a picture, gradients.png."""
        folder = Path(folder)
        with atomic_write(folder / "table.txt", "w") as file:
            Console(file=file, width=PAGE).print(self.table())
        self.write_csv(folder / "evaluation.csv")
        with atomic_write(folder / "answers.jsonl", "w") as file:
            file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in self.answers)
        if self.picture is not None:
            save_image(self.picture, folder / "gradients.png")
        write_json(folder / REPORT_FILE, self.to_json())  # last: its presence says that all the rest is there


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
    scale, digits = (1, 3) if row.task in PLAIN else (100, 1)
    sign = "+" if row.kind == "difference" else ""
    value, low, high = (f"{scale * number:{sign}.{digits}f}" for number in (row.value, row.low, row.high))
    return f"{value} ({low} to {high})"
