"""The names under which hostile things are made: `{weights_nan}` in a case is what the maker of that name wrote.

A maker gets a folder of its own, puts something there, and returns the path that the command is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Maker = Callable[[Path], Path]
MAKERS: dict[str, Maker] = {}
TERA = 10**13
PWNED = "pwned"
"""The file that a payload writes, in the working directory, if it ever runs."""


def maker(function: Maker) -> Maker:
    MAKERS[function.__name__] = function
    return function


def made(name: str, make: Maker) -> None:
    MAKERS[name] = make


class Payload:
    """Pickled, it asks whoever opens it to write a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path(PWNED),)
