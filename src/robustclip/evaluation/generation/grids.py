"""A table of methods against judges: R-Precision of each with its interval, and what separates two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.evaluation import intervals
from robustclip.evaluation.generation.embeddings import Texts, embed, embed_texts
from robustclip.evaluation.generation.rprecision import r_precision
from robustclip.evaluation.intervals import Interval
from robustclip.evaluation.judges import Judge
from robustclip.referees.judging import fingerprint
from robustclip.referees.similarity import Images
from robustclip.runs.files import atomic_write, write_json

PAGE = 150  # characters a line of the table in a file


@dataclass(frozen=True)
class Rate:
    """R-Precision of one method by one judge among `candidates` on one group of prompts."""

    method: str
    judge: str
    candidates: int
    group: str
    interval: Interval


@dataclass(frozen=True)
class Difference:
    """R-Precision of a method minus `against`'s, on the same prompts and candidates."""

    method: str
    against: str
    judge: str
    candidates: int
    group: str
    interval: Interval


@dataclass
class Grid:
    """Which methods' pictures each judge recognised.

    prompts    all that there are to choose from. Candidates are drawn by prompt and `seed`, the same for all methods.
    groups     {name: prompts in it}, beside "all".
    """

    prompts: Sequence[str]
    judges: Sequence[Judge]
    candidates: Sequence[int]
    seed: int
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    hits: dict[tuple[str, str, int], NDArray[np.bool_]] = field(default_factory=dict, repr=False)
    shown: dict[str, list[str]] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if max(self.candidates) > len(set(self.prompts)):
            raise UsageError(
                f"R-Precision among {max(self.candidates)} needs as many different prompts, and there are "
                f"{len(set(self.prompts))}: give more, or --candidates {len(set(self.prompts))}"
            )
        self._texts: dict[str, Texts] = {
            judge.name: embed_texts(judge.referee, list(self.prompts)) for judge in self.judges
        }

    def add(self, method: str, images: Images, prompts: Sequence[str]) -> None:
        """Have all judges look at a method's pictures, each painted of one of the prompts."""
        self.shown[method] = list(prompts)
        for judge in self.judges:
            seen = embed(judge.referee, images, title=f"{judge.name} looks at {method}")
            self._count(method, judge, seen)

    def rate(self, method: str, judge: str, candidates: int, group: str = "all") -> Rate:
        """R-Precision with Wilson's interval. Raises UsageError where the method has no picture of that group."""
        hits = self.hits[method, judge, candidates][self._rows(method, group)]
        if not len(hits):
            raise UsageError(f"{method} has no pictures of {group}")
        return Rate(method, judge, candidates, group, intervals.rate(hits))

    def difference(self, method: str, against: str, judge: str, candidates: int, group: str = "all") -> Difference:
        """Two methods on the same prompts, in their order, with the paired bootstrap's interval."""
        if self.shown[method] != self.shown[against]:
            raise UsageError(f"{method} and {against} were painted of different prompts: they are not paired")
        rows = self._rows(method, group)
        first, second = (self.hits[one, judge, candidates][rows] for one in (method, against))
        found = intervals.difference(first, second, seed=self.seed)
        return Difference(method, against, judge, candidates, group, found)

    def share(self, method: str, of: str, judge: str, candidates: int) -> Difference:
        """R-Precision of a method over `of`'s, on the prompts that both show, with the paired bootstrap's interval.

        Raises UsageError where either shows a prompt twice, or `of` is never recognised.
        """
        hits = [
            dict(zip(self.shown[one], self.hits[one, judge, candidates].tolist(), strict=True)) for one in (method, of)
        ]
        if any(len(found) < len(self.shown[one]) for found, one in zip(hits, (method, of), strict=True)):
            raise UsageError(f"{method} or {of} shows a prompt twice: which is compared, nobody could say")
        both = [prompt for prompt in hits[0] if prompt in hits[1]]
        found = intervals.ratio(*([one[prompt] for prompt in both] for one in hits), seed=self.seed)
        return Difference(method, of, judge, candidates, "shared", found)

    def table(self, differences: Iterable[tuple[str, str]] = (), shares: Iterable[tuple[str, str]] = ()) -> Group:
        """Methods as rows, judges and candidates as columns, then the differences and shares asked for; percent."""
        table = Table("pictures", "n", title="R-Precision, %", title_justify="left")
        for judge in self.judges:
            for count in self.candidates:
                table.add_column(f"{judge.name}\namong {count}, chance {100 / count:.3g}", justify="right")
        for method in self.shown:
            cells = [_percent(self.rate(method, *column).interval) for column in self._columns()]
            table.add_row(method, str(len(self.shown[method])), *cells)
        table.add_section()
        for method, against in differences:
            cells = [_percent(self.difference(method, against, *column).interval, "+") for column in self._columns()]
            table.add_row(f"{method} minus {against}", str(len(self.shown[method])), *cells)
        for method, of in shares:
            found = [self.share(method, of, *column).interval for column in self._columns()]
            table.add_row(f"{method}: share of {of}", str(found[0].n), *map(_percent, found))
        below = [f"{judge.name}: sha256 {fingerprint(judge.referee)[:16]}..." for judge in self.judges]
        return Group(table, *(Text(line, style="dim") for line in [*below, *self.notes]))

    def to_json(
        self, differences: Iterable[tuple[str, str]] = (), shares: Iterable[tuple[str, str]] = ()
    ) -> dict[str, Any]:
        """All rates, also by group, the differences and shares asked for; every picture's hits by its prompt."""
        groups = ["all", *self.groups]
        rates = [
            self.rate(method, *column, group)
            for method in self.shown
            for column in self._columns()
            for group in groups
            if self._rows(method, group).any()
        ]
        found = [
            self.difference(*pair, *column, group)
            for pair in differences
            for column in self._columns()
            for group in groups
            if self._rows(pair[0], group).any()
        ]
        return {
            "judges": {judge.name: fingerprint(judge.referee) for judge in self.judges},
            "seed": self.seed,
            "notes": self.notes,
            "rates": [asdict(one) for one in rates],
            "differences": [asdict(one) for one in found],
            "shares": [asdict(self.share(*pair, *column)) for pair in shares for column in self._columns()],
            "hits": {
                method: [
                    {"prompt": prompt}
                    | {
                        f"{judge} among {count}": bool(self.hits[method, judge, count][row])
                        for judge, count in self._columns()
                    }
                    for row, prompt in enumerate(prompts)
                ]
                for method, prompts in self.shown.items()
            },
        }

    def save(
        self, folder: Path, differences: Sequence[tuple[str, str]] = (), shares: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Write table.txt and table.json."""
        with atomic_write(folder / "table.txt", "w") as file:
            Console(file=file, width=PAGE).print(self.table(differences, shares))
        write_json(folder / "table.json", self.to_json(differences, shares))

    def _count(self, method: str, judge: Judge, seen: Float[Tensor, "n d"]) -> None:
        prompts, texts = self.shown[method], self._texts[judge.name]
        repeats: dict[str, int] = {}
        ids = []
        for prompt in prompts:  # several pictures of a prompt face different candidates
            ids.append(f"{prompt} {repeats.get(prompt, 0)}")
            repeats[prompt] = repeats.get(prompt, 0) + 1
        for count in self.candidates:
            found = r_precision(seen, prompts, texts, ids=ids, candidates=count, seed=self.seed)
            self.hits[method, judge.name, count] = found.hits

    def _rows(self, method: str, group: str) -> NDArray[np.bool_]:
        if group == "all":
            return np.ones(len(self.shown[method]), dtype=bool)
        return np.array([prompt in self.groups[group] for prompt in self.shown[method]])

    def _columns(self) -> list[tuple[str, int]]:
        return [(judge.name, count) for judge in self.judges for count in self.candidates]


def _percent(found: Interval, sign: str = "") -> str:
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"
