"""How results look in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, RenderableType
from rich.table import Table

from robustclip.errors import RunError, UsageError

if TYPE_CHECKING:  # printing must not cost an import of torch
    from robustclip.referees.registry import Entry, Verification

WIDTH_OF_A_PIPE = 160  # columns; tables would be cut to 80 there


def numbers(values: Mapping[str, object]) -> None:
    """One value a line, numbers to four digits."""
    for name, value in values.items():
        click.echo(f"{name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}")


def rich(content: RenderableType) -> None:
    """Tables and texts of rich, in the terminal's width or a pipe's."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH_OF_A_PIPE
    console.print(content)


def demonstration(shown: Mapping[str, Any]) -> None:
    """The demo's table, and what it shows in words."""
    rich(shown["table"])
    click.echo(shown["told"])


def demo(result: Mapping[str, Any]) -> None:
    """The table of the demo, what it shows in words, and what to run next."""
    rich(result["table"])
    click.echo(result["told"])


def entries(referees: Iterable[Entry]) -> None:
    """A line for each referee; one that is broken says so in its line."""
    table = Table("referee", "robust to", "from", "folder", box=None, pad_edge=False, header_style="dim")
    for entry in referees:
        try:
            threat = entry.card.threat
            robust_to = "nothing" if threat is None else str(threat)
        except (RunError, UsageError) as error:
            robust_to = f"(broken: {error})"
        table.add_row(entry.name, robust_to, entry.origin, str(entry.folder))
    rich(table)


def verification(found: Verification) -> None:
    """What agrees with the card and what doesn't. Raises RunError in the latter case, after all was said."""
    text_tower = {} if found.text_tower is None else {"text tower": found.text_tower}
    for file, agrees in (found.files | text_tower).items():
        click.echo(f"{file}: {'as on the card' if agrees else 'its hash is NOT the one on the card'}")
    if found.claim is not None and found.measured is not None:
        claim = found.claim
        click.echo(
            f"{claim.name} on {claim.data}, {claim.attack or 'clean'}: claimed {claim.value:.4g} "
            f"({claim.low:.4g} to {claim.high:.4g}, n = {claim.n}), measured {found.measured:.4g}"
        )
    if not found.holds:
        raise RunError(f"{found.name} is not what its card says")
    click.echo(f"{found.name} is what its card says")
