"""Lines and tables in a terminal, with control characters of names and texts escaped."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from robustclip.runs.plain import CONTROL

WIDTH_OF_A_PIPE = 160  # columns; tables would be cut to 80 there


def shown(text: str) -> str:
    """Escape control characters of a text (cursor movement, colours, text direction): \\x1b."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def echo(text: str, *, err: bool = False) -> None:
    """A line that may hold names and texts from outside."""
    click.echo(shown(text), err=err)


class Shown(logging.Formatter):
    """Log messages, as `echo` prints lines."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class Lines(logging.Handler):
    """Log messages as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


@contextmanager
def logged() -> Iterator[None]:
    """Show the package's log messages, notes (INFO) included, on stderr."""
    logger, handler = logging.getLogger("robustclip"), Lines()
    handler.setFormatter(Shown())
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def counted(number: int, thing: str) -> str:
    """A count with its noun: 1 picture, 2 pictures."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def with_prefix(value: float, unit: str) -> str:
    """Format with an SI prefix: 1.5e12 FLOP is 1.50 TFLOP."""
    for power, prefix in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def in_time(hours: float) -> str:
    """Format hours in a suitable unit."""
    if hours < 1:
        return f"{hours * 60:.3g} minutes"
    return f"{hours:,.1f} hours" if hours < 72 else f"{hours / 24:,.1f} days ({hours:,.0f} hours)"


def note(text: str) -> None:
    """A line on stderr, so that stdout stays readable for programs."""
    echo(text, err=True)


def rich(content: RenderableType) -> None:
    """Print tables and texts of rich, in the terminal's width or a pipe's."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH_OF_A_PIPE
    console.print(Segments(Segment(shown(part.text), part.style) for part in console.render(content)))


def table(
    heads: Iterable[str], rows: Iterable[Sequence[str | Text]], *, left: int | None = None, boxed: bool = True
) -> Table:
    """A table of rich whose texts are not read as markup; columns after the first `left` are aligned to the right."""
    looks: dict[str, Any] = {} if boxed else {"box": None, "pad_edge": False, "header_style": "dim"}
    made = Table(**looks)
    for place, head in enumerate(heads):
        made.add_column(Text(head), justify="left" if left is None or place < left else "right")
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def html(content: RenderableType) -> str:
    """Tables and texts of rich as HTML, for notebooks."""
    console = Console(record=True, file=StringIO(), width=WIDTH_OF_A_PIPE, force_jupyter=False, color_system=None)
    console.print(content)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height:normal">{code}</pre>')


def markdown(content: Group | Table) -> str:
    """Tables and lines of text as Markdown, in their order. A head of several lines becomes one."""
    parts = []
    for one in content.renderables if isinstance(content, Group) else [content]:
        if isinstance(one, Table):
            cells = [[str(column.header), *map(str, column.cells)] for column in one.columns]
            rows = [["".join(cell) for cell in row] for row in zip(*cells, strict=True)]
            rows.insert(1, ["---"] * len(cells))
            parts.append("\n".join(f"| {' | '.join(row)} |".replace("\n", ", ") for row in rows))
        elif str(one):
            parts.append(str(one))
    return "\n\n".join(parts) + "\n"
