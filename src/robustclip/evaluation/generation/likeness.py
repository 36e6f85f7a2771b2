"""How like their prompts several methods' pictures are to judges, and which of two is preferred: CLIPAG's Table 1
beside R-Precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from robustclip.evaluation import intervals
from robustclip.evaluation.generation.grids import PAGE
from robustclip.evaluation.generation.preference import preference
from robustclip.evaluation.intervals import Interval
from robustclip.runs.files import atomic_write, write_json


@dataclass
class Likeness:
    """Scores of one picture each, by method and column (a judge's similarity, an aesthetics head's score), and what
    each method took in seconds a picture."""

    seed: int = 0
    scores: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, method: str, column: str, scores: Float[NDArray[Any], " n"]) -> None:
        """A method's scores, in the order of its prompts."""
        self.scores.setdefault(method, {})[column] = np.asarray(scores, dtype=np.float64)

    def mean(self, method: str, column: str) -> Interval:
        """With the bootstrap's interval."""
        return intervals.mean(self.scores[method][column], seed=self.seed)

    def difference(self, method: str, against: str, column: str) -> Interval:
        """Paired by prompt, with the bootstrap's interval."""
        return intervals.mean(self.scores[method][column] - self.scores[against][column], seed=self.seed)

    def preferred(self, method: str, against: str, column: str) -> Interval:
        """On which share of prompts the method scores higher."""
        return preference(self.scores[method][column], self.scores[against][column])

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for found in self.scores.values() for column in found))

    def to_json(self, pairs: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        """Means, and for each pair the difference and the share of prompts on which the first scores higher."""
        return {
            "means": [
                {"method": method, "column": column, "interval": asdict(self.mean(method, column))}
                for method, found in self.scores.items()
                for column in found
            ],
            "pairs": [
                {
                    "method": method,
                    "against": against,
                    "column": column,
                    "difference": asdict(self.difference(method, against, column)),
                    "preferred": asdict(self.preferred(method, against, column)),
                }
                for method, against in pairs
                for column in self.scores[method]
            ],
            "seconds": self.seconds,
        }

    def table(self, title: str, pairs: Sequence[tuple[str, str]] = ()) -> Table:
        """Methods as rows, then each pair's difference and preference."""
        table = Table("pictures", "n", *self.columns, "seconds each", title=title, title_justify="left")
        for method, found in self.scores.items():
            cells = [_told(self.mean(method, column)) if column in found else "" for column in self.columns]
            count = len(next(iter(found.values())))
            took = f"{self.seconds[method]:.2f}" if method in self.seconds else ""
            table.add_row(method, str(count), *cells, took)
        table.add_section()
        for method, against in pairs:
            shared = [column for column in self.columns if column in self.scores[method]]
            differences = {column: _told(self.difference(method, against, column), "+") for column in shared}
            shares = {column: _told(self.preferred(method, against, column), percent=True) for column in shared}
            table.add_row(f"{method} minus {against}", "", *(differences.get(one, "") for one in self.columns), "")
            table.add_row("   preferred, % of prompts", "", *(shares.get(one, "") for one in self.columns), "")
        return table

    def save(self, folder: Path, name: str, title: str, pairs: Sequence[tuple[str, str]] = ()) -> None:
        """Write NAME.txt and NAME.json."""
        with atomic_write(folder / f"{name}.txt", "w") as file:
            Console(file=file, width=PAGE).print(self.table(title, pairs))
        write_json(folder / f"{name}.json", self.to_json(pairs))


def _told(found: Interval, sign: str = "", *, percent: bool = False) -> str:
    if percent:
        return "{:.0f} ({:.0f} to {:.0f})".format(*(100 * number for number in (found.value, found.low, found.high)))
    value, low, high = (f"{number:{sign}.3f}" for number in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"
