"""Write a report as HTML: one file, or linked pages where it is large."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Final

from robustclip.errors import UsageError
from robustclip.pages.encoding import Encoded
from robustclip.pages.rendering import case_html, page_html, sortable
from robustclip.pages.report import Report
from robustclip.runs.files import atomic_write, naming

PAGE_BYTES: Final = 32_000_000
"""What the cases of a page may take: about 500 small images of two referees, which open in less than three seconds."""


def write_report(
    path: str | os.PathLike[str], report: Report, cases: Iterable[Encoded], *, page_bytes: int = PAGE_BYTES
) -> list[Path]:
    """Write a report and return its pages: `path`, and where that would grow beyond `page_bytes` its siblings too,
    <stem>-2.html, <stem>-3.html, ...

    `cases` are read once and not held, so there may be any number of them. Each page is written whole or not at all,
    the first one last: where it is, the others are. Raises UsageError where there is no case.
    """
    path = Path(path)
    with naming(gettempdir()), TemporaryFile() as spool:
        found = _Found(sorts={about.name: [] for about in report.referees})
        for encoded in cases:
            element = case_html(encoded).encode("utf-8", "replace")  # half a surrogate pair is no UTF-8
            found.add(encoded, len(element), page_bytes)
            spool.write(element)
        if not found.lengths[0]:
            raise UsageError("a report needs at least one case")
        starts = [0, *accumulate(map(sum, found.lengths))]
        paths = [path, *(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, len(found.lengths) + 1))]
        labels = list(_labels(found.lengths))
        for number in reversed(range(len(paths))):
            spool.seek(starts[number])
            html = page_html(
                report,
                _elements(spool, found.lengths[number]),
                count=sum(map(len, found.lengths)),
                cases_here=len(found.lengths[number]),
                sorts=found.sorts,
                present=frozenset(found.present),
                boxed=found.boxed,
                pages=[(page.name, label) for page, label in zip(paths, labels, strict=True)],
                number=number + 1,
            )
            with atomic_write(paths[number]) as file:
                file.writelines(piece.encode("utf-8", "replace") for piece in html)
    return paths


@dataclass
class _Found:
    """What pages must know of all cases before the first can be written."""

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
    """Which cases are on each page: "1 to 200"."""
    last = 0
    for here in lengths:
        yield f"{last + 1} to {last + len(here)}"
        last += len(here)
