"""Text embeddings of a frozen tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.referees.base import TwoTower


@torch.no_grad()
def embed_captions(referee: TwoTower, captions: Sequence[str]) -> Float[Tensor, "b d"]:
    """Normalised embeddings (B,D) of the captions in their order, float32 (float64 from a tower of float64).

    Each distinct caption is embedded once, together with the others of its batch and no further: an embedding's last
    bits depend on what it is computed with, so one kept from an earlier batch would make a resumed run another run.
    (A web caption hardly ever comes twice within what a cache holds.)
    """
    distinct = list(dict.fromkeys(captions))
    rows = {caption: row for row, caption in enumerate(distinct)}
    return referee.embed_texts(distinct)[[rows[caption] for caption in captions]]
