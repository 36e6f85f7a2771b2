"""Validated ranges of transform parameters."""

from __future__ import annotations

import math

from robustclip.errors import UsageError

Range = tuple[float, float]
"""The least and the most of what is drawn, evenly between them; equal ends mean that nothing is left to chance."""


def check_ends(call: str, ends: Range, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise UsageError unless `ends` is a pair with least <= low <= high <= most, all finite.

    `call` is how the range was given, with {} in its place, for the message to show it put right: "Contrast({})".
    """
    numbers = isinstance(ends, tuple | list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
    if not numbers or not all(map(math.isfinite, ends)):
        raise UsageError(f"{call.format(repr(ends))}: a range is two numbers, the least and the most, as in (0.8, 1.2)")
    low, high = ends
    if low > high:
        raise UsageError(
            f"{call.format(f'({low}, {high})')} ends before it begins: use {call.format(f'({high}, {low})')}"
        )
    if low < least or high > most:
        inside = min(max(low, least), most), max(min(high, most), least)
        raise UsageError(
            f"{call.format(f'({low}, {high})')} reaches outside {_limits(least, most)}: "
            f"e.g. {call.format(f'({inside[0]}, {inside[1]})')}"
        )


def check_number(call: str, number: float, least: float, most: float, example: float) -> None:
    """Raise UsageError unless least <= number <= most; `call` as for `check_ends`."""
    if not isinstance(number, int | float) or not least <= number <= most:
        raise UsageError(
            f"{call.format(repr(number))} is not within {_limits(least, most)}: e.g. {call.format(repr(example))}"
        )


def _limits(least: float, most: float) -> str:
    if most == math.inf:
        return f"{least:g} and up"
    return f"{least:g} to {most:g}"
