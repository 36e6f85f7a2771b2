"""Ways to paint pairs, side by side: what judges find in each, and what the referee that guided says itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from robustclip.errors import UsageError
from robustclip.evaluation import intervals
from robustclip.evaluation.generation.compositional import CANDIDATES, CHANCE, Verdict
from robustclip.evaluation.intervals import Interval
from robustclip.runs.files import atomic_write, write_json

RATES: Final = ("right", "attributes", "both", "first", "second")
HEADS: Final = {
    "right": f"caption first of {CANDIDATES}\nchance {100 * CHANCE['right']:.1f}",
    "attributes": f"own colours\nchance {100 * CHANCE['attributes']:.0f}",
    "both": f"both things\nchance {100 * CHANCE['both']:.1f}",
}
"""The rates of the table; results.json has the two things by themselves too."""
EVERY: Final = "all judges"
PAGE: Final = 240  # characters a line of table.txt


@dataclass
class InversionTable:
    """Verdicts by cell and judge, and other numbers of each picture. All cells show the same pictures' worth of
    prompts: `prompts` has that of each, in their order, once for each seed."""

    judges: Sequence[str]
    prompts: Sequence[str]
    seed: int = 0
    hits: dict[str, dict[str, dict[str, NDArray[np.bool_]]]] = field(default_factory=dict)
    values: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, cell: str, verdicts: Mapping[str, Verdict]) -> None:
        """What each judge found in a cell's pictures; where all of them find the same counts by itself.

        Raises UsageError for verdicts on another number of pictures.
        """
        found = {
            judge: {rate: np.asarray(getattr(verdicts[judge], rate), dtype=bool) for rate in RATES}
            for judge in self.judges
        }
        found[EVERY] = {rate: np.logical_and.reduce([found[judge][rate] for judge in self.judges]) for rate in RATES}
        for rates in found.values():
            for outcomes in rates.values():
                self._check(cell, len(outcomes))
        self.hits[cell] = found

    def rate(self, cell: str, judge: str, rate: str) -> Interval:
        """A share of the pictures, with Wilson's interval, which takes them as independent."""
        return intervals.rate(self.hits[cell][judge][rate])

    def value(self, cell: str, name: str) -> Interval:
        """A mean over the pictures, with the interval of a bootstrap by prompt."""
        return self._by_prompt(self.values[cell][name])

    def difference(self, cell: str, against: str, judge: str, rate: str) -> Interval:
        """Rate of a cell minus `against`'s, with the interval of a paired bootstrap by prompt."""
        first, second = (self.hits[one][judge][rate].astype(float) for one in (cell, against))
        return self._by_prompt(first - second)

    def value_difference(self, cell: str, against: str, name: str) -> Interval:
        """A mean of a cell minus `against`'s, likewise."""
        return self._by_prompt(self.values[cell][name] - self.values[against][name])

    def blind(self, cell: str) -> list[str]:
        """Judges who find no more in a cell than guessing would: where it shows real scenes, they can't tell cells
        apart."""
        if cell not in self.hits:
            return []
        return [judge for judge in self.judges if self.rate(cell, judge, "right").low <= CHANCE["right"]]

    def _by_prompt(self, numbers: NDArray[np.float64]) -> Interval:
        """Seeds of a prompt stay together, for they are not independent."""
        self._check("a row", len(numbers))
        rows: dict[str, list[float]] = {}
        for prompt, number in zip(self.prompts, numbers.tolist(), strict=True):
            rows.setdefault(prompt, []).append(number)
        found = intervals.mean([float(np.mean(one)) for one in rows.values()], seed=self.seed)
        return Interval(found.value, found.low, found.high, len(numbers))

    def _check(self, cell: str, count: int) -> None:
        if count != len(self.prompts):
            raise UsageError(f"{cell} has {count} pictures, the table's prompts are {len(self.prompts)}: not paired")

    def to_json(self, setting: Mapping[str, Any] | None = None, against: str | None = None) -> dict[str, Any]:
        """All of it, hits and values of each picture too, so that runs can be put together; `against` is the cell that
        others are compared with."""
        compared = [cell for cell in self.hits if cell != against] if against in self.hits else []
        return {
            "setting": dict(setting or {}),
            "judges": list(self.judges),
            "seed": self.seed,
            "candidates": CANDIDATES,
            "chance": CHANCE,
            "prompts": list(self.prompts),
            "cells": {
                cell: {
                    "hits": {
                        judge: {rate: one.astype(int).tolist() for rate, one in rates.items()}
                        for judge, rates in found.items()
                    },
                    "rates": {
                        judge: {rate: asdict(self.rate(cell, judge, rate)) for rate in rates}
                        for judge, rates in found.items()
                    },
                    "values": {name: one.tolist() for name, one in self.values.get(cell, {}).items()},
                    "means": {name: asdict(self.value(cell, name)) for name in self.values.get(cell, {})},
                    "seconds": self.seconds.get(cell),
                }
                for cell, found in self.hits.items()
            },
            "differences": [
                {"cell": cell, "against": against, "judge": judge, "rate": rate}
                | asdict(self.difference(cell, str(against), judge, rate))
                for cell in compared
                for judge in (*self.judges, EVERY)
                for rate in RATES
            ],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> InversionTable:
        """The table that `to_json` wrote."""
        cells: dict[str, Any] = found["cells"]
        return cls(
            found["judges"],
            found["prompts"],
            found["seed"],
            {
                cell: {
                    judge: {rate: np.array(one, dtype=bool) for rate, one in rates.items()}
                    for judge, rates in told["hits"].items()
                }
                for cell, told in cells.items()
            },
            {cell: {name: np.array(one) for name, one in told["values"].items()} for cell, told in cells.items()},
            {cell: told["seconds"] for cell, told in cells.items() if told["seconds"] is not None},
        )

    def table(self) -> Group:
        """Cells as rows, rates and judges as columns; percent, and the referee's own losses."""
        table = Table("cell", "n")
        columns = [(judge, rate) for rate in HEADS for judge in (*self.judges, EVERY)]
        for judge, rate in columns:
            table.add_column(Text(f"{HEADS[rate]}\n{judge}"), justify="right")
        names = list(dict.fromkeys(name for found in self.values.values() for name in found))
        for name in [*names, "seconds each"]:
            table.add_column(Text(name), justify="right")
        for cell in self.hits:
            cells = [percent(self.rate(cell, *column)) for column in columns]
            cells += [plain(self.value(cell, name)) if name in self.values.get(cell, {}) else "" for name in names]
            took = f"{self.seconds[cell]:.1f}" if cell in self.seconds else ""
            table.add_row(Text(cell), str(len(self.prompts)), *cells, took)
        title = "Pairs of coloured things: share of pictures in %, losses of the guide; 95% intervals"
        return Group(Text(title, style="bold"), table)

    def save(self, folder: Path, setting: Mapping[str, Any] | None = None, against: str | None = None) -> None:
        """Write table.txt and results.json."""
        with atomic_write(folder / "table.txt", "w") as file:
            Console(file=file, width=PAGE).print(self.table())
        write_json(folder / "results.json", self.to_json(setting, against))


def percent(found: Interval, sign: str = "") -> str:
    """In percent, or points: "72 (60 to 82)"."""
    value, low, high = (f"{100 * number:{sign}.0f}" for number in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def plain(found: Interval, sign: str = "") -> str:
    """As it is: "1.25 (1.10 to 1.40)"."""
    value, low, high = (f"{number:{sign}.2f}" for number in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"
