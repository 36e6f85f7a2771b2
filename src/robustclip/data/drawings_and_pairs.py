"""Batches for the embedded world's generators: pictures of pairs, and single drawings among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.data.emoji_batches import Augmentation, EmojiBatches
from robustclip.data.pairs import PairBatches

# Mostly white, as the drawings' own pictures; a referee's training has more of everything.
AUGMENTATION: Final = Augmentation(rotation=8.0, white=0.7, brightness=0.1, contrast=0.1, saturation=0.2, cast=0.05)


@dataclass(frozen=True)
class Captioned:
    """images: (B,3,64,64) float32 in [0,1]; of each a caption, and of pairs the one with colours exchanged."""

    images: Float[Tensor, "b 3 64 64"]
    captions: list[str]
    swapped: list[str | None]


@dataclass
class DrawingsAndPairs:
    """Batches of captioned pictures, of which a share `single` are single drawings; batch k is a pure function of k.

    Raises UsageError for a split that is not there.
    """

    split: str
    batch_size: int
    seed: int = 0
    single: float = 0.25

    def __post_init__(self) -> None:
        drawn = round(self.single * self.batch_size)
        self.pairs = PairBatches(self.split, self.batch_size - drawn, self.seed)
        self.drawings = (
            EmojiBatches(self.split, batch_size=drawn, seed=self.seed, augmentation=AUGMENTATION) if drawn else None
        )

    def describe(self) -> dict[str, Any]:
        """What a run folder says of this source."""
        drawings = None if self.drawings is None else self.drawings.describe()
        return {"pairs": self.pairs.describe(), "drawings": drawings}

    def labelled(self, k: int) -> Captioned:
        """Batch k, pairs first."""
        pairs = self.pairs.batch(k)
        if self.drawings is None:
            return Captioned(pairs.images, pairs.captions, list(pairs.swapped))
        drawings = self.drawings.batch(k)
        return Captioned(
            torch.cat([pairs.images, drawings.images]),
            [*pairs.captions, *drawings.captions],
            [*pairs.swapped, *(None for _ in drawings.captions)],
        )

    def batch(self, k: int) -> tuple[Float[Tensor, "b 3 64 64"], list[str]]:
        """Pictures and captions of batch k alone."""
        batch = self.labelled(k)
        return batch.images, batch.captions
