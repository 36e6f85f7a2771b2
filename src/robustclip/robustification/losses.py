"""Objectives: how far images are from their texts. The attack climbs one, the update descends one.

Every loss takes normalised embeddings and answers one value per image, in float32 (float64 if they are) and outside
autocast: a bfloat16 logit of 30 has steps of 0.125. Images and texts match where their ids are equal, so a concept that
comes twice in a batch is no negative of itself; several matches share the target equally (UniCL, Yang et al. 2022,
Eq. 3-4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PerImage = Float[Tensor, " b"]


@dataclass(frozen=True)
class Objective:
    """A loss by name. `loss(images (B,D), texts (B,D), ids (B,)) -> (B,)`.

    `coupled` says that an image's loss depends on the other images of its batch, so that the attack must climb and
    choose for the batch as a whole; `reads_texts` whether the batch's own texts are looked at.
    """

    name: str
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    coupled: bool
    reads_texts: bool = True

    def __call__(self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], ids: Int[Tensor, " b"]) -> PerImage:
        exact = torch.promote_types(images.dtype, torch.float32)
        with torch.autocast(images.device.type, enabled=False):
            return self.loss(images.to(exact), texts.to(exact), ids)


def clip(scale: float) -> Objective:
    """CLIP's batch-contrastive loss in both directions (Radford et al. 2021, Fig. 3): what CLIPAG's Eq. 3 uses
    "in practice" (CLIPAG §3), in the attack as in the update. `scale` is the frozen exp(logit_scale)."""
    return Objective("clip", lambda images, texts, ids: contrastive(images, texts, ids, scale), coupled=True)


def text_bank(scale: float, bank: Float[Tensor, "t d"], bank_ids: Int[Tensor, " t"]) -> Objective:
    """Softmax over all texts of a finite set, so that every concept is a negative in every step (ours; TeCoA's loss
    where the bank holds one text a class). The batch's own captions are not read."""

    def loss(images: Tensor, texts: Tensor, ids: Tensor) -> Tensor:  # noqa: ARG001
        return matching_cross_entropy(scale * images @ bank.T.to(images.dtype), ids[:, None] == bank_ids)

    return Objective("text-bank", loss, coupled=False, reads_texts=False)


def siglip(scale: float, bias: float) -> Objective:
    """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023, Alg. 1), an image's share of it: the sum over its texts."""

    def loss(images: Tensor, texts: Tensor, ids: Tensor) -> Tensor:
        sign = torch.where(ids[:, None] == ids, 1.0, -1.0)
        return -F.logsigmoid(sign * (scale * images @ texts.T + bias)).sum(dim=1)

    return Objective("siglip", loss, coupled=True)


def contrastive(
    images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], ids: Int[Tensor, " b"], scale: float
) -> PerImage:
    """Mean of the image-to-text and the text-to-image cross-entropy, per pair; their mean over the batch is open_clip's
    ClipLoss where all ids differ."""
    logits = scale * images @ texts.T
    matches = ids[:, None] == ids
    return (matching_cross_entropy(logits, matches) + matching_cross_entropy(logits.T, matches)) / 2


def matching_cross_entropy(logits: Float[Tensor, "b t"], matches: Tensor) -> PerImage:
    """Cross-entropy of each row to the uniform distribution over its matches (bool, (B,T)).

    Raises ValueError on a CPU where a row matches nothing; elsewhere such a row is NaN, which stops a run, and asking
    would make every step wait for the device.
    """
    count = matches.sum(dim=1, keepdim=True)
    if count.device.type == "cpu" and not torch.compiler.is_compiling() and not count.all():
        rows = (count.squeeze(1) == 0).nonzero().flatten().tolist()
        raise ValueError(f"rows {rows} match no text: every id of a batch needs a text with that id")
    return F.cross_entropy(logits, matches.to(logits.dtype) / count, reduction="none")
