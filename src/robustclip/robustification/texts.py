"""Text features of a frozen tower: every caption is embedded once, as long as memory allows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.referees.base import TwoTower


class TextFeatures:
    """Normalised text embeddings by caption, on the referee's device, the least recently used dropped first.

    The text tower is frozen (CLIPAG §3), so a caption's embedding never changes. `capacity` bounds the number of
    captions held (0: no bound, for finite sets); 1,000,000 captions of width 512 are 2 GB in float32.
    """

    def __init__(self, referee: TwoTower, capacity: int = 200_000) -> None:
        self.referee = referee
        self.capacity = capacity
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embeddings (B,D) float32 of the captions in their order."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if new:
            self._known.update(zip(new, self.referee.embed_texts(new).float(), strict=True))
        for caption in captions:
            self._known.move_to_end(caption)
        features = torch.stack([self._known[caption] for caption in captions])
        while self.capacity and len(self._known) > self.capacity:
            self._known.popitem(last=False)
        return features
