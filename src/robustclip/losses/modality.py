"""Modality gap: text targets moved among image embeddings by orthogonal Procrustes, and blends of retrieved images.

A CLIP's texts and images lie apart, so that a text's embedding is one that no picture has. CLIP^-1 (D'Orazio et al.
2026, "Implicit Inversion turns CLIP into a Decoder") rotates each prompt's embedding by the rotation that fits the
captions nearest to it to their pictures, and pulls the picture towards a blend of the embeddings of those pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from robustclip.data.pictures import Images
from robustclip.errors import UsageError
from robustclip.losses.similarity import Target
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches

BATCH = 64


@dataclass(frozen=True)
class Pairs:
    """One referee's unit embeddings of N pictures and their captions, float32. Raises UsageError for none."""

    images: Float[Tensor, "n d"]
    texts: Float[Tensor, "n d"]

    def __post_init__(self) -> None:
        if self.images.shape != self.texts.shape or not len(self.images):
            raise UsageError(
                f"{tuple(self.images.shape)} image and {tuple(self.texts.shape)} text embeddings are no pairs: give at "
                "least one picture, each with its caption"
            )

    @classmethod
    @torch.no_grad()
    def of(cls, referee: TwoTower, images: Images, captions: Sequence[str], title: str = "") -> Self:
        """Embed pictures in [0,1] and the caption of each, a batch at a time."""
        found = [
            referee.embed_images(images[batch].to(referee.device)).float()
            for batch in batches(torch.arange(len(images)), BATCH, title)
        ]
        return cls(torch.cat(found) if found else torch.empty(0, referee.width), referee.embed_texts(list(captions)))

    def nearest(self, text: Float[Tensor, " d"], count: int) -> tuple[Float[Tensor, " k"], Pairs]:
        """The `count` pairs, or all of fewer, whose captions are nearest to a unit vector, and their cosines."""
        cosines, places = (self.texts @ text).topk(min(count, len(self.texts)))
        return cosines, Pairs(self.images[places], self.texts[places])


def procrustes(pairs: Pairs, identity: float = 0.0) -> Float[Tensor, "d d"]:
    """The orthogonal R that minimises |texts R - images|_F^2 + identity |R - I|_F^2, in float64 on the CPU.

    0 is the orthogonal Procrustes problem of CLIP^-1. Fewer pairs than dimensions leave R open outside their span; the
    second term, ours, turns there as little as it can.
    """
    texts, images = (one.double().cpu().numpy() for one in (pairs.texts, pairs.images))
    if identity:
        anchor = identity**0.5 * np.eye(texts.shape[1])
        texts, images = np.vstack([texts, anchor]), np.vstack([images, anchor])
    return torch.from_numpy(orthogonal_procrustes(texts, images)[0])


def blend(cosines: Float[Tensor, " k"], images: Float[Tensor, "k d"], temperature: float) -> Float[Tensor, " d"]:
    """Unit vector along the images' mean, weighted by the softmax of their captions' cosines over `temperature`."""
    return F.normalize((cosines / temperature).softmax(0) @ images, dim=0)


def aligned(
    target: Target,
    texts: Bool[Tensor, "p t"],
    pairs: Pairs,
    *,
    neighbours: int = 16,
    identity: float = 0.1,
    blending: float = 0.5,
    temperature: float = 0.1,
) -> Target:
    """Target (P,2T,D): each direction of a text rotated by the rotation of its own nearest pairs, and beside it the
    blend of their pictures, at `blending` times its weight.

    `texts` says which directions are texts; those of pictures stay, as do weights of 0, and what pushes away has no
    blend. CLIP^-1 has local rotations, softmax weights and a blending weight; the four numbers are ours: those of its
    appendix were not to be read. Raises UsageError for numbers that are not positive, or negative.
    """
    if neighbours < 1 or min(identity, blending) < 0 or not temperature > 0:
        raise UsageError(
            f"neighbours {neighbours}, identity {identity:g}, blending {blending:g}, temperature {temperature:g}: at "
            "least 1 neighbour, a temperature above 0, and nothing below 0, as in 16, 0.1, 0.5, 0.1"
        )
    rotated, blended = target.directions.clone(), torch.zeros_like(target.directions)
    for place in (texts & (target.weights != 0)).nonzero().tolist():
        direction = target.directions[*place]
        cosines, near = pairs.nearest(direction, neighbours)
        rotation = procrustes(near, identity).to(direction)
        rotated[*place] = direction @ rotation
        blended[*place] = blend(cosines, near.images, temperature)
    weights = blending * (target.weights * texts).clamp(min=0)
    return replace(
        target,
        directions=torch.cat([rotated, blended], 1),
        weights=torch.cat([target.weights, weights], 1),
        stops=None if target.stops is None else torch.cat([target.stops, target.stops], 1),
    )
