"""Perceptual distance of images: cosine distance of a referee's image embeddings (Croce et al. 2024, R-CLIP); triplets
of which one image is the nearer, DreamSim's hinge loss on them, and the attack on their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.attacks.gradient import pgd
from robustclip.attacks.threat import ThreatModel
from robustclip.data.pictures import Images
from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower

Embed = Callable[[Tensor], Tensor]


@final
class PerceptualDistance(nn.Module):
    """1 - cosine of the image embeddings of two batches: (B,3,H,W) and (B,3,h,w) in [0,1] to (B,) in [0,2], float32.

    Differentiable with respect to both; the images may be of different size, as the referee resizes them. 0 for equal
    images. A robust referee makes a distance that small perturbations move little. Raises UsageError for batches of
    different length and for images that are not (B,3,H,W) floats in [0,1].
    """

    def __init__(self, referee: TwoTower) -> None:
        super().__init__()
        self.referee = referee

    def forward(self, images: Float[Tensor, "b 3 H W"], others: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """The distance of each image to the other of its row."""
        if len(images) != len(others):
            raise UsageError(
                f"{len(images)} images and {len(others)} others: a distance is of pairs, one of each a row",
                "unequal_batches",
            )
        return self.between(self.embed(images), self.embed(others))

    def embed(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d"]:
        """Unit embeddings, to compare one image with several."""
        return self.referee.embed_images(images)

    @staticmethod
    def between(embeddings: Float[Tensor, "b d"], others: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The distance of unit embeddings: half their squared difference, which is 1 - cosine and exactly 0 for equal
        ones."""
        return torch.sum((embeddings - others).square(), dim=-1) / 2


@dataclass(frozen=True)
class Triplets:
    """N references and, for each, the nearer and the farther image: (N,3,H,W) in [0,1], maybe decoded lazily."""

    name: str
    reference: Images
    nearer: Images
    farther: Images
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)


def hinge(nearer: Float[Tensor, " b"], farther: Float[Tensor, " b"], margin: float = 0.05) -> Float[Tensor, " b"]:
    """max(0, margin - (farther - nearer)) of distances to the nearer and the farther image: DreamSim's loss and margin
    (Fu et al. 2023, util/train_utils.py and configs/ of their code)."""
    return (margin - (farther - nearer)).relu()


def mislead(
    embed: Embed,
    images: Float[Tensor, "b 3 h w"],
    nearer: Float[Tensor, "b d"],
    farther: Float[Tensor, "b d"],
    threat: ThreatModel,
    **how: Any,
) -> Float[Tensor, "b 3 h w"]:
    """References inside `threat` that look as far from the nearer image, and as near to the farther, as PGD can make
    them; `nearer` and `farther` are unit embeddings, `how` is of `pgd`. PGD climbs the difference of the
    distances, which the hinge loss follows where it is above 0."""
    apart = PerceptualDistance.between

    def order(moved: Tensor) -> Tensor:
        found = embed(moved)
        return apart(found, nearer) - apart(found, farther)

    return pgd(images, order, threat, **how)
