"""Read prompts from .txt, .jsonl and .csv files, literally.

    captions.txt     a caption a line
    captions.jsonl   {"prompt": "a cat", "id": "42", "seed": 7} a line: `caption` or `text` would do for `prompt`
    captions.csv     a header that names a column prompt (or caption, text), and perhaps id and seed

Blank lines are passed over. The id names the picture's file; where there is none, line number and caption do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

from robustclip.errors import UsageError
from robustclip.runs.files import read_text, table_rows
from robustclip.synthesis.items import LARGEST_SEED, Named
from robustclip.synthesis.names import apart, slug, stem
from robustclip.synthesis.prompts import Prompt

TEXT_NAMES: Final = ("prompt", "caption", "text")
LONGEST_FILE: Final = 2**28
"""Bytes; a million captions are about 60 MB."""
MOST: Final = 1_000_000


@dataclass(frozen=True)
class Line:
    """What stands in a line (from 1) of a file."""

    number: int
    caption: str
    id: str | None = None
    seed: int | None = None


def load_prompts(path: str | Path) -> list[Named]:
    """The prompts of a file, in its order, each with a name that is safe and unlike all others.

    Raises UsageError, naming file and line, for a file that is not readable, an ending that is none of .txt, .jsonl and
    .csv, a line without a caption or with an odd one, and an id that came before.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{path} has the ending {path.suffix or 'of nothing'}: prompts are read from .txt, .jsonl, .csv"
        )
    text = read_text(path, LONGEST_FILE)
    lines: list[Line] = []
    prompts: list[Prompt] = []
    for line in reader(path, text):
        if len(lines) == MOST:
            raise UsageError(f"{path} has more than {MOST:,} prompts: split it")
        try:
            prompts.append(Prompt.literal(line.caption))
        except UsageError as error:
            raise _fault(path, line.number, str(error)) from error
        lines.append(line)
    if not lines:
        raise UsageError(f"{path} holds no prompt: write a caption a line")
    _refuse_twins(path, lines)
    digits = max(5, len(str(lines[-1].number)))  # so that a file that grows keeps its names
    names = apart(
        (f"{line.number:0{digits}}-{slug(line.caption)}", f"line {line.number}")
        if line.id is None
        else (stem(line.id), line.id)
        for line in lines
    )
    return [Named(name, prompt, line.seed) for name, prompt, line in zip(names, prompts, lines, strict=True)]


def _txt(path: Path, text: str) -> Iterator[Line]:  # noqa: ARG001
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Line(number, line.strip())


def _jsonl(path: Path, text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _fault(path, number, f"is not JSON ({str(error)[:100]})") from error
        if not isinstance(values, dict):
            raise _fault(path, number, 'is no object: write {"prompt": "a cat"}')
        yield _line(path, number, values)


def _csv(path: Path, text: str) -> Iterator[Line]:
    rows = table_rows(StringIO(text, newline=""), path)
    _, names = next(rows, (1, []))
    header = [name.strip().lower() for name in names]
    if not set(header) & set(TEXT_NAMES):
        raise _fault(path, 1, f"names no column prompt, caption or text, but {', '.join(header)[:100] or 'nothing'}")
    for number, row in rows:
        yield _line(path, number, {name: value for name, value in zip(header, row, strict=True) if value.strip()})


READERS: Final[Mapping[str, Callable[[Path, str], Iterator[Line]]]] = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv}


def _line(path: Path, number: int, values: Mapping[str, Any]) -> Line:
    named = [name for name in TEXT_NAMES if values.get(name) is not None]
    if not named:
        raise _fault(path, number, f"has no {', '.join(TEXT_NAMES[:-1])} or {TEXT_NAMES[-1]}")
    caption, id_, seed = values[named[0]], values.get("id"), values.get("seed")
    if not isinstance(caption, str):
        raise _fault(path, number, f"has a {named[0]} that is no text: {str(caption)[:100]!r}")
    if isinstance(id_, bool) or not isinstance(id_, str | int | None):
        raise _fault(path, number, f"has an id that is no text: {str(id_)[:100]!r}")
    if isinstance(seed, str) and seed.strip().isascii() and seed.strip().isdecimal():
        seed = int(seed[:30])
    if seed is not None and (type(seed) is not int or not 0 <= seed <= LARGEST_SEED):
        raise _fault(path, number, f"has a seed that is no number from 0: {str(seed)[:100]!r}")
    return Line(number, caption, None if id_ in (None, "") else str(id_), seed)


def _refuse_twins(path: Path, lines: list[Line]) -> None:
    first: dict[str, int] = {}
    for line in lines:
        if line.id is not None and first.setdefault(line.id, line.number) != line.number:
            raise _fault(
                path,
                line.number,
                f"has the id {line.id[:100]!r}, as line {first[line.id]} has: each picture needs its own "
                "(without ids, lines are numbered)",
            )


def _fault(path: Path, number: int, message: str) -> UsageError:
    return UsageError(f"{path}, line {number}: {message}")
