"""Render a report with Jinja2 templates, which escape every text."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import groupby
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from robustclip import __version__
from robustclip.explanation.maps import SCALE
from robustclip.pages.encoding import Encoded, Seen
from robustclip.pages.report import Line, Report, View
from robustclip.runs.files import plain

NONE: Final = "–"


@dataclass(frozen=True)
class Column:
    """Pictures of one kind: `under` names what lies below a map, `group` what a reader shows and hides together."""

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
    """The templates of this room. A value that they are not told is an error, not an empty place."""
    found = Environment(
        loader=PackageLoader("robustclip.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    found.filters["pretty"] = lambda value: json.dumps(plain(value), indent=2, ensure_ascii=False)
    return found


def case_html(encoded: Encoded) -> str:
    """One case, as an element of the page."""
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
    """What cases can be sorted by: all that a view has a number for; None where it is missing here."""
    found: dict[str, float | bool | None] = {"score": view.score}
    if view.attacked_score is not None:
        found["attacked score"] = view.attacked_score
        found[SCORE_DROP] = None if view.score is None else view.score - view.attacked_score
    found |= view.numbers
    return {name: None if _missing(value) else round(float(value or 0), 6) for name, value in found.items()}


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
    """A page, piece by piece. `cases` come from `case_html`; `present` are the columns that any case of any page has;
    `pages` are the names and labels of all pages, of which this is `number`, from 1."""
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
    yield "score", _told(view.score)
    if view.attacked_score is not None:
        yield "score, attacked", _told(view.attacked_score)
    if view.noisy_score is not None:
        yield "score, with noise", _told(view.noisy_score)
    for name, value in view.numbers.items():
        yield name, _told(value)


def _groups(report: Report) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The table's lines by metric, each with its cells in the referees' order."""
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
        told = [_number(value, line.unit) for value in (number.value, number.low, number.high)]
        told[0] += "%" if line.unit == "percent" else ""
        cells.append(
            {
                "referee": about.name,
                **dict(zip(("value", "low", "high"), told, strict=True)),
                "at": place(number.value),
                "left": place(number.low),
                "right": place(number.high),
                "best": is_best(about.name, line),
            }
        )
    counts = list(dict.fromkeys(str(number.n) for number in line.numbers.values()))
    hint = {"higher": "higher is better", "lower": "lower is better", "": ""}[line.better]
    return {"images": line.images, "cells": cells, "n": " / ".join(counts), "hint": hint}


def is_best(name: str, line: Line) -> bool:
    """Whether this referee's whole interval lies on the good side of every other's."""
    mine = line.numbers[name]
    others = [number for other, number in line.numbers.items() if other != name and not _missing(number.value)]
    if not others or not line.better:
        return False
    if line.better == "higher":
        return all(mine.low > other.high for other in others)
    return all(mine.high < other.low for other in others)


def _frame(box: tuple[int, int, int, int] | None, size: tuple[int, int]) -> str:
    """Where a box lies on a picture of any size, as CSS; nothing where there is none."""
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


def _told(value: float | bool | None) -> str:
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
