"""Render a report with Jinja2 templates, which escape every text."""

from __future__ import annotations

import json
import math
import os
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import accumulate, groupby
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from robustclip import __version__
from robustclip.errors import UsageError
from robustclip.explanation.looks import ATTACKED, CLEAN, NOISY
from robustclip.explanation.maps import SCALE
from robustclip.pages.report import Encoded, Line, Report, Seen, View
from robustclip.runs.files import atomic_write, naming, plain

NONE: Final = "–"


@dataclass(frozen=True)
class Column:
    """Pictures of one kind: `under` is the column of the image below a map, `group` those shown and hidden together."""

    key: str
    title: str
    group: str
    under: str = ""


COLUMNS: Final = (
    Column("map", "Looks at", "map", under="image"),
    Column("attacked_map", "Looks at, attacked", "attack", under="attacked"),
    Column("noisy_map", "Looks at, with noise", "noise", under="noisy"),
    Column("attacked", "Attacked image", "attack"),
    Column("change", "The attack's change", "change"),
    Column("gradient", "Gradient", "gradient"),
    Column("attacked_gradient", "Gradient, attacked", "gradient"),
)
GROUPS: Final = {"attack": "attacked", "change": "change", "noise": "noise", "gradient": "gradients"}
SCORE_DROP: Final = "drop of the score"


@cache
def environment() -> Environment:
    """The Jinja2 environment of the report; undefined values are errors."""
    layout = Environment(
        loader=PackageLoader("robustclip.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    layout.filters["pretty"] = lambda value: json.dumps(plain(value), indent=2, ensure_ascii=False)
    return layout


def case_html(encoded: Encoded) -> str:
    """HTML element of one case."""
    case = encoded.case
    return (
        environment()
        .get_template("case.html.j2")
        .render(
            case=case,
            image=encoded.image,
            noisy=encoded.noisy,
            size=encoded.size,
            amplification=encoded.amplification,
            frame=_frame(case.box, encoded.size),
            numbers={seen.view.referee: sortable(seen.view) for seen in encoded.seen},
            views=[
                {
                    "referee": seen.view.referee,
                    "why": seen.view.why if _lacks_a_map(seen, encoded) else "",
                    "facts": list(_facts(seen.view)),
                    "cells": [(column, seen.pictures.get(column.key, "")) for column in COLUMNS],
                }
                for seen in encoded.seen
            ],
        )
    )


def sortable(view: View) -> dict[str, float | None]:
    """Sort keys of a view: all its numbers, None if missing."""
    clean, attacked = view.score(CLEAN), view.score(ATTACKED)
    layout: dict[str, float | bool | None] = {"score": clean}
    if attacked is not None:
        layout |= {"attacked score": attacked, SCORE_DROP: None if clean is None else clean - attacked}
    layout |= view.numbers
    return {name: None if _missing(value) else round(float(value or 0), 6) for name, value in layout.items()}


def page_html(
    report: Report,
    cases: Iterable[str],
    *,
    count: int,
    cases_here: int,
    sorts: Mapping[str, Sequence[str]],
    present: frozenset[str],
    boxed: bool,
    pages: Sequence[tuple[str, str]],
    number: int,
) -> Iterator[str]:
    """HTML of a page, in chunks. `cases` come from `case_html`; `present`: columns of any case of any page; `pages`:
    names and labels of all pages; `number`: this page, from 1."""
    script = _resource("page.js")
    absent = {
        group for group in GROUPS if not any(column.key in present for column in COLUMNS if column.group == group)
    }
    if "attacked_gradient" not in present:
        absent.add("attacked_gradient")
    return (
        environment()
        .get_template("page.html.j2")
        .generate(
            report=report,
            cases=cases,
            count=count,
            cases_here=cases_here,
            sorts=sorts,
            groups={key: label for key, label in GROUPS.items() if key not in absent},
            absent=sorted(absent),
            columns=COLUMNS,
            boxed=boxed,
            lines=list(_groups(report)),
            pages=[{"name": name, "label": label} for name, label in pages],
            number=number,
            scale=SCALE,
            fewest=FEWEST,
            css=_resource("style.css"),
            script=script,
            script_hash=f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}",
            version=__version__,
        )
    )


def _lacks_a_map(seen: Seen, encoded: Encoded) -> bool:
    pictures = seen.pictures
    wanted = {"map", *(["attacked_map"] if "attacked" in pictures else []), *(["noisy_map"] if encoded.noisy else [])}
    return not wanted <= set(pictures)


def _facts(view: View) -> Iterator[tuple[str, str]]:
    yield "score", _formatted(view.score(CLEAN))
    for version, words in ((ATTACKED, "attacked"), (NOISY, "with noise")):
        if (score := view.score(version)) is not None:
            yield f"score, {words}", _formatted(score)
    for name, value in view.numbers.items():
        yield name, _formatted(value)


def _groups(report: Report) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Lines of the table by metric, with cells in the referees' order."""
    for metric, lines in groupby(report.summary, key=lambda line: line.metric):
        held = list(lines)
        numbers = [number for line in held for number in line.numbers.values() if not _missing(number.value)]
        least = min([0.0, *(number.low for number in numbers)])
        most = 1.0 if held[0].unit == "percent" else max([number.high for number in numbers], default=1.0)
        yield metric, [_line(line, report, least, most) for line in held]


def _line(line: Line, report: Report, least: float, most: float) -> dict[str, Any]:
    def place(value: float) -> float:
        return round(100 * min(max((value - least) / ((most - least) or 1), 0), 1), 2)

    cells: list[dict[str, Any]] = []
    for about in report.referees:
        number = line.numbers.get(about.name)
        if number is None or _missing(number.value):
            cells.append({"referee": about.name, "value": ""})
            continue
        texts = [_number(value, line.unit) for value in (number.value, number.low, number.high)]
        texts[0] += "%" if line.unit == "percent" else ""
        cells.append(
            {
                "referee": about.name,
                **dict(zip(("value", "low", "high"), texts, strict=True)),
                "at": place(number.value),
                "left": place(number.low),
                "right": place(number.high),
                "best": is_best(about.name, line),
            }
        )
    counts = list(dict.fromkeys(str(number.n) for number in line.numbers.values()))
    hint = {"higher": "higher is better", "lower": "lower is better", "": ""}[line.better]
    return {"images": line.images, "cells": cells, "n": " / ".join(counts), "hint": hint}


FEWEST: Final = 30
"""Samples from which on "best" is marked (ours): bootstrap and Wilson intervals of fewer are unreliable themselves."""


def is_best(name: str, line: Line) -> bool:
    """Whether this referee's interval lies wholly on the better side of every other's, of `FEWEST` samples or more."""
    mine = line.numbers[name]
    others = [number for other, number in line.numbers.items() if other != name and not _missing(number.value)]
    if not others or not line.better or min(number.n for number in [mine, *others]) < FEWEST:
        return False
    if line.better == "higher":
        return all(mine.low > other.high for other in others)
    return all(mine.high < other.low for other in others)


def _frame(box: tuple[int, int, int, int] | None, size: tuple[int, int]) -> str:
    """CSS of a box relative to its picture; "" without a box."""
    if box is None:
        return ""
    (top, left, bottom, right), (height, width) = box, size
    shares = {
        "top": top / height,
        "left": left / width,
        "height": (bottom - top) / height,
        "width": (right - left) / width,
    }
    return ";".join(f"{side}:{100 * share:.2f}%" for side, share in shares.items())


def _missing(value: float | bool | None) -> bool:
    return value is None or not math.isfinite(value)


def _formatted(value: float | bool | None) -> str:
    if value is None or _missing(value):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _minus(f"{value:.3f}")


def _number(value: float, unit: str) -> str:
    return _minus(f"{100 * value:.1f}" if unit == "percent" else f"{value:.3f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


@cache
def _resource(name: str) -> str:
    return (files("robustclip.pages") / "templates" / name).read_text(encoding="utf-8")


PAGE_BYTES: Final = 32_000_000
"""Maximal size of a page: about 500 small images of two referees, which open in less than three seconds."""


def write_report(
    path: str | os.PathLike[str], report: Report, cases: Iterable[Encoded], *, page_bytes: int = PAGE_BYTES
) -> list[Path]:
    """Write a report and return its pages: `path`, and beyond `page_bytes` also <stem>-2.html, <stem>-3.html, ...

    `cases` are streamed, so memory is bounded. Pages are written atomically, the first one last, so that its existence
    implies the others. Raises UsageError without cases.
    """
    path = Path(path)
    with naming(gettempdir()), TemporaryFile() as spool:
        layout = _Layout(sorts={about.name: [] for about in report.referees})
        for encoded in cases:
            element = case_html(encoded).encode("utf-8", "replace")  # lone surrogates are not UTF-8
            layout.add(encoded, len(element), page_bytes)
            spool.write(element)
        if not layout.lengths[0]:
            raise UsageError("a report needs at least one case", "no_cases")
        starts = [0, *accumulate(map(sum, layout.lengths))]
        paths = [path, *(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, len(layout.lengths) + 1))]
        labels = list(_labels(layout.lengths))
        for number in reversed(range(len(paths))):
            spool.seek(starts[number])
            html = page_html(
                report,
                _elements(spool, layout.lengths[number]),
                count=sum(map(len, layout.lengths)),
                cases_here=len(layout.lengths[number]),
                sorts=layout.sorts,
                present=frozenset(layout.present),
                boxed=layout.boxed,
                pages=[(page.name, label) for page, label in zip(paths, labels, strict=True)],
                number=number + 1,
            )
            with atomic_write(paths[number]) as file:
                file.writelines(piece.encode("utf-8", "replace") for piece in html)
    return paths


@dataclass
class _Layout:
    """Facts of all cases that every page needs."""

    sorts: dict[str, list[str]]
    present: set[str] = field(default_factory=set)
    boxed: bool = False
    lengths: list[list[int]] = field(default_factory=lambda: [[]])  # of each case, in bytes, page by page

    def add(self, encoded: Encoded, length: int, page_bytes: int) -> None:
        if self.lengths[-1] and sum(self.lengths[-1]) + length > page_bytes:
            self.lengths.append([])
        self.lengths[-1].append(length)
        self.boxed |= encoded.case.box is not None
        for seen in encoded.seen:
            self.present |= set(seen.pictures)
            names = self.sorts.setdefault(seen.view.referee, [])
            names += [name for name in sortable(seen.view) if name not in names]


def _elements(spool: IO[bytes], lengths: Iterable[int]) -> Iterator[str]:
    return (spool.read(length).decode("utf-8") for length in lengths)


def _labels(lengths: list[list[int]]) -> Iterator[str]:
    """Range of the cases of each page: "1 to 200"."""
    last = 0
    for here in lengths:
        yield f"{last + 1} to {last + len(here)}"
        last += len(here)
