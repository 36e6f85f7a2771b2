"""The training batch that every data source yields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(repr=False)
class Batch:
    """Image-text pairs. `images` are float32 in [0, 1] on the CPU; two pairs whose `positives` are equal show the same
    concept or carry the same caption, and are no negatives of each other; `ids` name the samples.

    `position` is where this process's next batch begins, in JSON's types, if the number of the batch does not tell."""

    images: Float[Tensor, "b 3 h w"]
    captions: list[str]
    positives: Int[Tensor, " b"]
    ids: list[str]
    position: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Batch of {len(self.ids)} pairs>"

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """The same pairs with images and positives on `device`, the images laid out as asked."""
        images = self.images.to(device, memory_format=memory_format, non_blocking=True)
        return replace(self, images=images, positives=self.positives.to(device, non_blocking=True))


class BatchSource(Protocol):
    """Endless batches: batch k is a function of the source's seed and k."""

    faults: Counter[str]  # samples skipped so far, by kind

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... without end; `position`, that of batch `start - 1` in this process, spares
        the way there."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the batches are made of, in JSON's types, for the run's folder."""
        ...
