"""Similarity losses of views to targets, in the embedding spaces of one or more referees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.runs.devices import autocast


@dataclass(frozen=True)
class Target:
    """What one referee should see in each of P pictures, embedded once.

    directions: (P,T,D) unit vectors, of texts or of images; weights: (P,T), 0 where a picture has fewer than T,
    negative to push away; share: the referee's weight among the referees; stops: (P,T), the distance at which each
    stops to pull, see `Similarity.losses`, -inf for never; None where none does.
    """

    referee: TwoTower
    directions: Float[Tensor, "p t d"]
    weights: Float[Tensor, "p t"]
    share: float = 1.0
    stops: Float[Tensor, "p t"] | None = None

    def __post_init__(self) -> None:
        if self.directions.shape[:2] != self.weights.shape:
            raise UsageError(
                f"directions are {tuple(self.directions.shape)} and weights {tuple(self.weights.shape)}: each direction"
                " needs its own weight, as in (P,T,D) and (P,T)"
            )
        if self.stops is not None and self.stops.shape != self.weights.shape:
            raise UsageError(
                f"stops are {tuple(self.stops.shape)} and weights {tuple(self.weights.shape)}: each direction has one "
                "of both, as in (P,T) and (P,T)"
            )


class Similarity(ABC):
    """Views (P,V,3,h,w) -> losses (P,V): the weighted sum over texts of their distances, averaged over referees.

    The towers compute in `dtype` under autocast; what follows is float32. Views are resized by each referee to what it
    sees. Raises UsageError where there is no target, or shares that do not add up to something positive.
    """

    def __init__(self, targets: Sequence[Target], dtype: torch.dtype = torch.float32) -> None:
        shares = sum(target.share for target in targets)
        if not targets or not shares > 0:
            raise UsageError(f"{len(targets)} referees of weights that add up to {shares:g}: give one that counts")
        self.targets = list(targets)
        self.shares = [target.share / shares for target in targets]
        self.dtype = dtype

    @abstractmethod
    def distance(self, cosines: Float[Tensor, "p v t"]) -> Float[Tensor, "p v t"]:
        """The distance of two unit vectors, by their cosine."""

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        return self.losses(self.cosines(views))

    def cosines(self, views: Float[Tensor, "p v 3 h w"]) -> list[Float[Tensor, "p v t"]]:
        """Cosine of each view with each direction of its picture, for each referee."""
        found = []
        for target in self.targets:
            with autocast(views.device, self.dtype):
                embeddings = target.referee.embed_views(views.flatten(0, 1))
            unit = F.normalize(embeddings.float(), dim=-1).unflatten(0, views.shape[:2])
            found.append(torch.einsum("pvd,ptd->pvt", unit, target.directions))
        return found

    def losses(self, cosines: Sequence[Float[Tensor, "p v t"]]) -> Float[Tensor, "p v"]:
        """The losses of views with these cosines. Where sign(weight) * distance lies below a target's stop, the value
        stays and the gradient is 0 (VQGAN-CLIP's `text:weight:stop`): what pulls stops at that distance, what pushes,
        with a stop below 0, at its negative."""
        terms = [
            share * torch.einsum("pvt,pt->pv", _stopped(self.distance(found), target), target.weights)
            for target, share, found in zip(self.targets, self.shares, cosines, strict=True)
        ]
        return torch.stack(terms).sum(0)

    @torch.no_grad()
    def similarity(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        """The weighted sum over texts of the views' cosines, averaged over referees, without gradients."""
        terms = [
            share * torch.einsum("pvt,pt->pv", found, target.weights)
            for target, share, found in zip(self.targets, self.shares, self.cosines(views), strict=True)
        ]
        return torch.stack(terms).sum(0)


def _stopped(distances: Float[Tensor, "p v t"], target: Target) -> Float[Tensor, "p v t"]:
    """The distances, without gradient where they have come as far as the target's stops."""
    if target.stops is None:
        return distances
    signed = distances * target.weights.sign()[:, None]
    return torch.where(signed < target.stops[:, None], distances.detach(), distances)


@final
class Cosine(Similarity):
    """1 - cos, CLIPAG's loss."""

    def distance(self, cosines: Float[Tensor, "p v t"]) -> Float[Tensor, "p v t"]:
        return 1 - cosines

    def __str__(self) -> str:
        return "cosine"


@final
class Spherical(Similarity):
    """2 arcsin^2(|x - y| / 2), the squared great-circle distance by half (VQGAN+CLIP, DOODL)."""

    def distance(self, cosines: Float[Tensor, "p v t"]) -> Float[Tensor, "p v t"]:
        # |x - y| / 2 = sqrt((1 - cos) / 2) for unit vectors. The slope of arcsin^2 is finite where the two meet, that
        # of its parts is not: hence the floor.
        half_chord = ((1 - cosines) / 2).clamp(1e-8, 1 - 1e-6).sqrt()
        return 2 * half_chord.arcsin().square()

    def __str__(self) -> str:
        return "spherical"
