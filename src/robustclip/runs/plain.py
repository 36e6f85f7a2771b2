"""Validate untrusted JSON: plain values in bounds, single-line texts, safe names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints, ValidationError

from robustclip.errors import RunError, UsageError

DEEPEST = 16  # levels of lists and objects in each other
LARGEST = 2**53  # beyond it, JSON's readers do not agree on integers
LONGEST = 200  # characters of a name
WIDEST = 2**20  # of any number in a description of an architecture: vocabularies and widths lie below it
MOST_LAYERS = 512
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, bidirectional overrides and lone surrogates; not tabs and line feeds."""


def check_plain(value: Any, depth: int = 0) -> Any:
    """Validate a JSON value and return it. Raises UsageError for too deep, non-finite, huge or non-printable values."""
    if depth > DEEPEST:
        raise UsageError(f"lists and objects lie deeper than {DEEPEST} levels in each other")
    if isinstance(value, dict):
        for key, inner in value.items():
            check_plain(key, depth + 1)
            check_plain(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, depth + 1)
    elif isinstance(value, str):
        if CONTROL.search(value):
            raise UsageError(f"{value[:LONGEST]!r} holds control characters")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{value} is not a finite number")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise UsageError(f"an integer of {value.bit_length()} bits is too large")
    return value


def check_sizes(config: Any, what: str, key: str = "") -> None:
    """Raise UsageError for an architecture config with sizes beyond any model's, before building it, which would be
    slow even on the meta device."""
    if isinstance(config, dict):
        for name, inner in config.items():
            check_sizes(inner, what, str(name))
    elif isinstance(config, list):
        for inner in config:
            check_sizes(inner, what, key)
    elif isinstance(config, int) and abs(config) > (MOST_LAYERS if "layers" in key else WIDEST):
        raise UsageError(f"{what} has {key} {str(config)[:20]}, larger than any known model's")


def _one_line(text: str) -> str:
    if "\n" in text or CONTROL.search(text):
        raise UsageError(f"{text!r} is not a line of printable text")
    return text


def _card_name(text: str) -> str:
    """A name appears in pages, commands and a README's code: no markup, quotes or parent paths."""
    if re.search(r"[<>\"'`\\]", text) or text.startswith("-") or ".." in text.split("/"):
        raise UsageError(f"{text!r} is not a name: it holds markup, quotes, or a path that leads out")
    return text


def _file_name(text: str) -> str:
    if text in (".", "..") or re.search(r"[/\\:]", text):
        raise UsageError(f"{text!r} is a path: files of a referee lie in its own folder")
    return _one_line(text)


def first_of(error: ValidationError) -> str:
    """Location and message of the first error."""
    first = error.errors(include_url=False, include_input=False)[0]
    reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    place = ".".join(str(part)[:40] for part in first["loc"])
    return f"{place}: {reason}" if place else reason


Plain = Annotated[dict[str, Any], AfterValidator(check_plain)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST), AfterValidator(_one_line)]
CardName = Annotated[Line, AfterValidator(_card_name)]
FileName = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST), AfterValidator(_file_name)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Context manager: any exception of a library on an untrusted file becomes a UsageError that begins with `what`."""
    try:
        yield
    except (UsageError, RunError, ModuleNotFoundError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, of tokenizers
            raise
        lines = str(error).strip().splitlines() or [""]
        raise UsageError(
            f"{what}: {type(error).__name__}: {lines[0][:LONGEST]}", "refused", what=what, error=type(error).__name__
        ) from error
