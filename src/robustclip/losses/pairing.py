"""Image-text matching and captioning losses of pair readers (BLIP-2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.pairing import PairReader
from robustclip.runs.devices import autocast


@final
class Pairing:
    """Views (P,V,3,h,w) -> losses (P,V), float32: matching and captioning of each view with its picture's text.

    The reader computes in `dtype` under autocast. Raises UsageError where both weights are 0, and where there is no
    captioning loss but a weight for it.
    """

    def __init__(
        self,
        reader: PairReader,
        texts: Sequence[str],
        *,
        matching: float = 1.0,
        captioning: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not matching and not captioning:
            raise UsageError("matching and captioning both weigh 0: give one of them a weight")
        if captioning and not reader.can_caption:
            raise UsageError(
                f"{reader.card.name} has no captioning loss: leave it out (--captioning 0), or take weights of "
                "robustclip convert lavis-blip2"
            )
        self.reader, self.texts, self.dtype = reader, list(texts), dtype
        self.matching, self.captioning = matching, captioning

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        texts = [text for text in self.texts for _ in range(views.shape[1])]
        with autocast(views.device, self.dtype):
            losses = self.reader.pair_losses(
                views.flatten(0, 1), texts, matching=self.matching, captioning=self.captioning
            )
        return losses.float().unflatten(0, views.shape[:2])

    def __str__(self) -> str:
        parts = (("itm", self.matching), ("lm", self.captioning))
        return "+".join(name if weight == 1 else f"{weight:g}{name}" for name, weight in parts if weight)
