"""The embedded content and style pairs, for tables of style transfer."""

from __future__ import annotations

import csv
from typing import NamedTuple

from robustclip.data import embedded


class Styled(NamedTuple):
    """A drawing's name, and the text of the style it is to have."""

    content: str
    style: str


def embedded_styles() -> list[Styled]:
    """Ten drawings, each in five styles, in a fixed order."""
    with embedded.path("prompts", "styles.csv").open(encoding="utf-8", newline="") as file:
        return [Styled(row["content"], row["style"]) for row in csv.DictReader(file)]
