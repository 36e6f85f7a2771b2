"""Image-text pairs as they lie in files: found, named and captioned, with the picture not yet decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


class Fault(StrEnum):
    """Why a sample is skipped."""

    NO_IMAGE = "no image"
    NO_FILE = "image file missing"
    EMPTY_IMAGE = "empty image"
    NOT_AN_IMAGE = "not an image"
    DAMAGED_IMAGE = "truncated or damaged image"
    TOO_LARGE = "too many pixels"
    TOO_DEEP = "more than 8 bits a channel"
    NO_CAPTION = "no caption"
    NOT_UTF8 = "caption not in UTF-8"
    BAD_METADATA = "metadata not a JSON object"
    BROKEN_SHARD = "broken shard"


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair. `image` is an encoded picture or the path of one; of several `captions` each epoch draws one.

    A sample with a `fault` stands for one that could not be read, so that it is counted where all others are.
    """

    key: str
    image: bytes | Path = b""
    captions: tuple[str, ...] = ()
    concept: str | None = None
    fault: Fault | None = None
    source: str = ""  # and the epoch: filled in by the mixture
    epoch: int = 0

    @property
    def id(self) -> str:
        return f"{self.source}/{self.key}"


class SampleSource(Protocol):
    """A finite set of samples, in an order that is a function of seed and epoch."""

    name: str  # short, for reports; sources of a mixture that share one are numbered

    def epoch(self, seed: int, epoch: int) -> Iterator[Sample]:
        """Every sample once."""
        ...

    def size(self) -> int:
        """How many samples an epoch has; an estimate where counting would mean reading everything."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the source is, in JSON's types."""
        ...


def positive_id(*, concept: str | None = None, caption: str | None = None) -> int:
    """A 63-bit number that is equal for equal concepts or, where there is none, for equal captions; the same in every
    process and on every machine."""
    text = f"caption {caption}" if concept is None else f"concept {concept}"
    return stable_number(text)


def stable_number(text: str) -> int:
    """63 bits of the text's SHA-256 (Python's own hash differs from process to process)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1
