"""Paths of the embedded files that the distribution robustclip-emoji installs."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from robustclip.errors import UsageError

PACKAGE: Final = "robustclip_emoji"
EMBEDDED_DATA: Final = "emoji/"
"""Prefix of the names of embedded data."""
INSTALL: Final = "pip install 'robustclip[emoji]'"


@cache
def root() -> Path | None:
    """The folder of the installed package `robustclip_emoji`, or None if it is not installed."""
    spec = find_spec(PACKAGE)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def path(*parts: str) -> Path:
    """The path of one file or folder, e.g. `path("prompts", "styles.csv")`.

    Raises UsageError if robustclip-emoji is not installed.
    """
    folder = root()
    if folder is None:
        raise UsageError(f"{'/'.join(parts)} belongs to the embedded emoji world, which is not installed: {INSTALL}")
    return folder.joinpath(*parts)


def folders(kind: str, file: str) -> dict[str, Path]:
    """{name: folder} of the folders below `kind` (e.g. "referees") that contain `file`, sorted by name; empty if
    robustclip-emoji is not installed."""
    folder = root()
    files = [] if folder is None else sorted((folder / kind).glob(f"*/{file}"))
    return {file.parent.name: file.parent for file in files}


def hint(name: object) -> str:
    """Suffix for errors about unknown names: how to install robustclip-emoji, if that may be the reason."""
    if root() is not None or not str(name).startswith("emoji"):
        return ""
    return f". Names that begin with emoji belong to robustclip-emoji, which is not installed: {INSTALL}"
