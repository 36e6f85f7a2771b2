"""Perceptual distance of images: cosine distance of a referee's image embeddings (Croce et al. 2024, R-CLIP)."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower


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
