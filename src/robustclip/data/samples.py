"""Image-text pairs: encoded as in files (Sample), and batched for the trainer (Batch)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from robustclip.errors import Fault, UsageError
from robustclip.runs.processes import ALONE, Place

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair. `image` is an encoded picture or its path; each epoch draws one of the `captions`.

    A sample with a `fault` stands for an unreadable one, so that it is counted.
    """

    key: str
    image: bytes | Path = b""
    captions: tuple[str, ...] = ()
    concept: str | None = None
    fault: Fault | None = None
    round: int = 0  # of the epoch
    source: str = ""  # source and epoch are set by the stream
    epoch: int = 0
    remarks: tuple[str, ...] = ()  # irregularities of the picture, set when it is decoded

    @property
    def id(self) -> str:
        return f"{self.source}/{self.key}"


class SampleSource(Protocol):
    """A finite set of samples, in an order that is a function of seed and epoch.

    An epoch may consist of rounds, each read and shuffled by itself: a resumed run reads only the current round again.
    """

    name: str  # short, for reports; duplicates in a mixture are numbered

    def epoch(self, seed: int, epoch: int, place: Place = ALONE, first_round: int = 0) -> Iterator[Sample]:
        """Yield this process's samples from the given epoch on. All processes together yield each sample once per
        epoch.
        """
        ...

    def size(self) -> int:
        """Samples per epoch over all processes; an estimate if counting would need reading everything."""
        ...

    def describe(self) -> dict[str, Any]:
        """Description of this source for the run record, in JSON's types."""
        ...


def check_share(share: float) -> float:
    """Return the share of a source's samples per epoch. Raises UsageError unless it is in (0, 1]."""
    if not 0 < share <= 1:
        message = f"share {share}: give the share of the samples per epoch, in (0, 1], e.g. 0.03"
        raise UsageError(message, "out_of_range", argument="share", given=share)
    return share


def readable(text: str) -> str:
    """Strip a text of line breaks, control characters and lone surrogates, which JSON and tar names may contain and
    some tokenizers and terminals refuse."""
    return CONTROLS.sub(" ", text).strip().encode("utf-8", "replace").decode()


def positive_id(*, concept: str | None = None, caption: str | None = None) -> int:
    """A 63-bit hash of the concept or, without one, of the caption; the same in every process and on every machine."""
    text = f"caption {caption}" if concept is None else f"concept {concept}"
    return stable_number(text)


def stable_number(text: str) -> int:
    """63 bits of the text's SHA-256 (Python's own hash differs from process to process)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1


@dataclass(repr=False)
class Batch:
    """Image-text pairs. `images` are on the CPU, uint8 as decoded or float32 in [0, 1], which `to` makes of both; two
    pairs whose `positives` are equal show the same concept or carry the same caption, and are no negatives of each
    other; `ids` name the samples.

    `position` is where this process's next batch begins, in JSON's types; None if the batch number suffices."""

    images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]
    captions: list[str]
    positives: Int[Tensor, " b"]
    ids: list[str]
    position: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Batch of {len(self.ids)} pairs>"

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """The same pairs with images, float32 in [0, 1] laid out as asked, and positives on `device`. To a GPU they
        travel from pinned memory, without waiting; 8-bit images become float32 there, a quarter of the bytes."""
        device = torch.device(device)
        images, positives = self.images, self.positives
        if device.type == "cuda" and not images.is_cuda:
            images, positives = images.pin_memory(), positives.pin_memory()
        images = images.to(device, memory_format=memory_format, non_blocking=True)
        if images.dtype == torch.uint8:
            # By a tensor there: by a number, CUDA multiplies with its reciprocal, which is not the CPU's quotient.
            images = images.float().div_(torch.tensor(255.0, device=device))
        return replace(self, images=images, positives=positives.to(device, non_blocking=True))


class BatchSource(Protocol):
    """Endless batches: batch k is a function of the source's seed and k."""

    faults: Counter[str]  # samples skipped so far, by kind

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... endlessly; `position`, that of batch `start - 1` in this process, avoids
        reading the data before it."""
        ...

    def describe(self) -> dict[str, Any]:
        """Description of the data for the run record, in JSON's types."""
        ...
