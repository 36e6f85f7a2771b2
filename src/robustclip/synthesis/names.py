"""Portable, unique file names from any text."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

LONGEST: Final = 100
"""Characters of a name; and twice as many bytes: what is added to it (a seed, an ending, a draft's) has room in 255."""
SLUG: Final = 60
"""Characters of a name made of a prompt."""

_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d|conin|conout|clock", re.IGNORECASE)  # of Windows


def stem(text: str, fallback: str = "picture") -> str:
    """A file name without ending: letters and digits of any script, `-` and `_`; one that is cut, or has a digest.

    Two texts can have the same: see `apart`.
    """
    name = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFKC", text)).strip("-")
    if not name or _RESERVED.fullmatch(name):
        name = f"{fallback}-{name}".strip("-")
    if len(name) <= LONGEST and len(name.encode()) <= 2 * LONGEST:
        return name
    return f"{_cut(name, LONGEST - 7)}-{digest(text)}"


def slug(text: str) -> str:
    """A short name made of a prompt: `a-green-turtle`."""
    words = stem(text[: 2 * SLUG].casefold())
    short = _cut(words, SLUG)
    return short if short == words else short.rpartition("-")[0] or short  # not in the middle of a word


def apart(named: Iterable[tuple[str, str]]) -> list[str]:
    """Names that differ also where case or accents' encoding do not count, of (name, what it stands for) pairs.

    The first of a name keeps it; the next ones get digits that depend on what they stand for.
    """
    taken: set[str] = set()
    found = []
    for name, meaning in named:
        chosen, length = name, 0
        while (key := unicodedata.normalize("NFKC", chosen.casefold())) in taken:
            length += 6
            chosen = f"{_cut(name, LONGEST)}-{digest(meaning, length)}"
        taken.add(key)
        found.append(chosen)
    return found


def digest(text: str, length: int = 6) -> str:
    """The first hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _cut(name: str, length: int) -> str:
    """At most `length` characters, and twice as many bytes."""
    return name[:length].encode()[: 2 * length].decode(errors="ignore").rstrip("-")
