"""Similarity losses of views to targets, in the embedding spaces of one or more referees; targets corrected for the
modality gap.

A CLIP's texts and images lie apart, so that a text's embedding is one that no picture has. CLIP^-1 (D'Orazio et al.
2026, "Implicit Inversion turns CLIP into a Decoder") rotates each prompt's embedding by the rotation that fits the
captions nearest to it to their pictures, and pulls the picture towards a blend of the embeddings of those pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from robustclip.data.pictures import Images
from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches
from robustclip.runs.devices import autocast


@dataclass(frozen=True)
class Target:
    """One referee's target embeddings of P pictures.

    directions: (P,T,D) unit vectors, of texts or of images; weights: (P,T), 0 for missing targets, negative to repel;
    share: the referee's weight; stops: (P,T), distances below which the gradient is 0, see `Similarity.losses`; -inf or
    None: none.
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
                " needs its own weight, as in (P,T,D) and (P,T)",
                "wrong_shape",
                directions=tuple(self.directions.shape),
                weights=tuple(self.weights.shape),
            )
        if self.stops is not None and self.stops.shape != self.weights.shape:
            raise UsageError(
                f"stops are {tuple(self.stops.shape)} and weights {tuple(self.weights.shape)}: each direction has one "
                "of both, as in (P,T) and (P,T)",
                "wrong_shape",
                stops=tuple(self.stops.shape),
                weights=tuple(self.weights.shape),
            )


class Similarity(ABC):
    """Base of similarity losses: views (P,V,3,h,w) -> (P,V), the weighted sum of distances over texts, averaged over
    referees.

    The towers compute in `dtype` under autocast, the losses in float32. Each referee resizes views to its input size.
    `pooled`: one embedding per picture, the normalised mean of its views' (CLIP^-1). Raises UsageError without targets
    or a positive sum of shares.
    """

    def __init__(self, targets: Sequence[Target], dtype: torch.dtype = torch.float32, *, pooled: bool = False) -> None:
        shares = sum(target.share for target in targets)
        if not targets or not shares > 0:
            message = f"{len(targets)} referees with weights of sum {shares:g}: give one of positive weight"
            raise UsageError(message, "no_positive_weight", referees=len(targets))
        self.targets = list(targets)
        self.shares = [target.share / shares for target in targets]
        self.dtype, self.pooled = dtype, pooled

    @abstractmethod
    def distance(self, cosines: Float[Tensor, "p v t"]) -> Float[Tensor, "p v t"]:
        """Distance of two unit vectors as a function of their cosine."""

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        return self.losses(self.cosines(views))

    def cosines(self, views: Float[Tensor, "p v 3 h w"]) -> list[Float[Tensor, "p v t"]]:
        """Cosine of each view with each target of its picture, per referee."""
        cosines = []
        for target in self.targets:
            with autocast(views.device, self.dtype):
                embeddings = target.referee.embed_views(views.flatten(0, 1))
            unit = F.normalize(embeddings.float(), dim=-1).unflatten(0, views.shape[:2])
            if self.pooled:
                unit = F.normalize(unit.mean(1, keepdim=True), dim=-1).expand_as(unit)
            cosines.append(torch.einsum("pvd,ptd->pvt", unit, target.directions))
        return cosines

    def losses(self, cosines: Sequence[Float[Tensor, "p v t"]]) -> Float[Tensor, "p v"]:
        """The losses of views with these cosines. If sign(weight) * distance is below a target's stop, its gradient is
        0 (VQGAN-CLIP's `text:weight:stop`); targets of negative weight have negative stops."""
        terms = [
            share * torch.einsum("pvt,pt->pv", _stopped(self.distance(cosine), target), target.weights)
            for target, share, cosine in zip(self.targets, self.shares, cosines, strict=True)
        ]
        return torch.stack(terms).sum(0)

    @torch.no_grad()
    def similarity(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        """Weighted sum of the views' cosines over texts, averaged over referees, without gradients."""
        terms = [
            share * torch.einsum("pvt,pt->pv", cosine, target.weights)
            for target, share, cosine in zip(self.targets, self.shares, self.cosines(views), strict=True)
        ]
        return torch.stack(terms).sum(0)


def _stopped(distances: Float[Tensor, "p v t"], target: Target) -> Float[Tensor, "p v t"]:
    """The distances, without gradient below the target's stops."""
    if target.stops is None:
        return distances
    signed = distances * target.weights.sign()[:, None]
    return torch.where(signed < target.stops[:, None], distances.detach(), distances)


@final
class Cosine(Similarity):
    """Cosine distance 1 - cos, CLIPAG's loss."""

    def distance(self, cosines: Float[Tensor, "p v t"]) -> Float[Tensor, "p v t"]:
        return 1 - cosines

    def __str__(self) -> str:
        return "cosine"


@final
class Spherical(Similarity):
    """Half the squared great-circle distance, 2 arcsin^2(|x - y| / 2) (VQGAN+CLIP, DOODL)."""

    def distance(self, cosines: Float[Tensor, "p v t"]) -> Float[Tensor, "p v t"]:
        # |x - y| / 2 = sqrt((1 - cos) / 2) for unit vectors. The derivative of arcsin^2 is finite at 0, that of
        # its factors is not: hence the floor.
        half_chord = ((1 - cosines) / 2).clamp(1e-8, 1 - 1e-6).sqrt()
        return 2 * half_chord.arcsin().square()

    def __str__(self) -> str:
        return "spherical"


SHORTEST: Final = 1e-3
"""Minimum length of an embedding difference with a direction (ours): the derivative of x / |x| is unbounded at 0, where
pixels start that start as their content."""


@dataclass(frozen=True)
class Move:
    """One referee's content embeddings and text directions of P contents.

    origins: (P,D) unit embeddings of the contents; directions: (P,D) unit vectors, from the source's text to the
    style's; share: the referee's weight.
    """

    referee: TwoTower
    origins: Float[Tensor, "p d"]
    directions: Float[Tensor, "p d"]
    share: float = 1.0


@final
class Directional:
    """1 - cos(E(view) - E(content), E(style) - E(source)) of unit embeddings, the content's without views:
    (P,V,3,h,w) -> (P,V), from 0 to 2, averaged over referees. Raises UsageError without referees."""

    def __init__(self, moves: Sequence[Move], dtype: torch.dtype = torch.float32) -> None:
        shares = sum(move.share for move in moves)
        if not moves or not shares > 0:
            raise UsageError(
                "a direction needs a referee of positive weight: give one", "no_positive_weight", referees=len(moves)
            )
        self.moves = [(move, move.share / shares) for move in moves]
        self.dtype = dtype

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        total = torch.zeros(views.shape[:2], device=views.device)
        for move, share in self.moves:
            with autocast(views.device, self.dtype):
                embeddings = move.referee.embed_views(views.flatten(0, 1))
            unit = F.normalize(embeddings.float(), dim=-1).unflatten(0, views.shape[:2])
            moved = F.normalize(unit - move.origins[:, None], dim=-1, eps=SHORTEST)
            total = total + share * (1 - torch.einsum("pvd,pd->pv", moved, move.directions))
        return total

    def __str__(self) -> str:
        return "directional"


@torch.no_grad()
def ensembled(referee: TwoTower, texts: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "t d"]:
    """Prompt ensemble: one unit vector per text, the mean over templates of unnormalised embeddings (as in CLIPstyler;
    zero-shot class embeddings are normalised before the mean).
    """
    rows = [
        referee.embed_texts([template.replace("{}", text) for template in templates], normalize=False).float().mean(0)
        for text in texts
    ]
    return F.normalize(torch.stack(rows), dim=-1)


@torch.no_grad()
def moves(
    referees: Sequence[TwoTower],
    shares: Sequence[float],
    contents: Float[Tensor, "p 3 h w"],
    styles: Sequence[str],
    source: str,
    templates: Sequence[str] = ("{}",),
) -> list[Move]:
    """Embed contents (P,3,H,W) in [0,1] and text directions (P) from the source text, for each referee.

    Raises UsageError for a style whose embedding equals the source's.
    """
    by_referee = []
    for referee, share in zip(referees, shares, strict=True):
        distinct = list(dict.fromkeys(styles))
        texts = ensembled(referee, [source, *distinct], templates)
        differences = texts[1:] - texts[0]
        if (same := (differences.norm(dim=1) < SHORTEST).nonzero()).numel():
            raise UsageError(
                f"{distinct[int(same[0])][:60]!r} and the source {source[:60]!r} are the same to {referee.card.name}: "
                "give another --source or style",
                "same_texts",
                texts=(distinct[int(same[0])], source),
            )
        rows = F.normalize(differences, dim=-1)[[distinct.index(style) for style in styles]]
        by_referee.append(Move(referee, referee.embed_images(contents).float(), rows.to(contents.device), share))
    return by_referee


@final
class NeighbourNorms:
    """CLIPStyler's total variation: sum of the L2 norms of four difference maps (horizontal, vertical, diagonals);
    (P,V,3,h,w) -> (P,V).

    As CLIPstyler's (train_CLIPstyler.py, 4843cec): a norm over all pixels, so it grows with the picture's side.
    """

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        across = views[..., :-1] - views[..., 1:]
        down = views[..., :-1, :] - views[..., 1:, :]
        rising = views[..., 1:, :-1] - views[..., :-1, 1:]
        falling = views[..., :-1, :-1] - views[..., 1:, 1:]
        norms = [torch.linalg.vector_norm(part, dim=(-3, -2, -1)) for part in (across, down, rising, falling)]
        return torch.stack(norms).sum(0)

    def __str__(self) -> str:
        return "neighbour norms"


BATCH = 64


@dataclass(frozen=True)
class Pairs:
    """One referee's unit embeddings of N pictures and their captions, float32. Raises UsageError for none."""

    images: Float[Tensor, "n d"]
    texts: Float[Tensor, "n d"]

    def __post_init__(self) -> None:
        if self.images.shape != self.texts.shape or not len(self.images):
            raise UsageError(
                f"{tuple(self.images.shape)} image and {tuple(self.texts.shape)} text embeddings are not pairs: give "
                "at least one picture, each with its caption"
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
