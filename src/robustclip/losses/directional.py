"""Directional CLIP loss of CLIPStyler and StyleGAN-NADA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.runs.devices import autocast

SHORTEST: Final = 1e-3
"""A move of embeddings below this length has no direction (ours): the slope of x / |x| has no bound at 0, where pixels
begin that begin as their content."""


@dataclass(frozen=True)
class Move:
    """What one referee should see happen to each of P contents.

    origins: (P,D) unit embeddings of the contents; directions: (P,D) unit vectors, from the source's text to the
    style's; share: the referee's weight among the referees.
    """

    referee: TwoTower
    origins: Float[Tensor, "p d"]
    directions: Float[Tensor, "p d"]
    share: float = 1.0


@final
class Directional:
    """1 - cos(E(view) - E(content), E(style) - E(source)) of unit embeddings, the content's being that of the whole:
    (P,V,3,h,w) -> (P,V), from 0 to 2, averaged over referees. Raises UsageError without referees."""

    def __init__(self, moves: Sequence[Move], dtype: torch.dtype = torch.float32) -> None:
        shares = sum(move.share for move in moves)
        if not moves or not shares > 0:
            raise UsageError("a direction needs a referee that counts: give one")
        self.moves = [(move, move.share / shares) for move in moves]
        self.dtype = dtype

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        total = torch.zeros(views.shape[:2], device=views.device)
        for move, share in self.moves:
            with autocast(views.device, self.dtype):
                embeddings = move.referee.embed_views(views.flatten(0, 1))
            seen = F.normalize(embeddings.float(), dim=-1).unflatten(0, views.shape[:2])
            moved = F.normalize(seen - move.origins[:, None], dim=-1, eps=SHORTEST)
            total = total + share * (1 - torch.einsum("pvd,pd->pv", moved, move.directions))
        return total

    def __str__(self) -> str:
        return "directional"


@torch.no_grad()
def ensembled(referee: TwoTower, texts: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "t d"]:
    """One unit vector a text: the mean of its embeddings in all templates, each as long as the tower gives it (as
    CLIPstyler; class embeddings of zero-shot tests have unit length before the mean)."""
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
    """What each referee should see: contents (P,3,H,W) in [0,1] in the styles of the texts (P), from the source's text.

    Raises UsageError where a style says the same as the source to a referee: there is no direction.
    """
    found = []
    for referee, share in zip(referees, shares, strict=True):
        distinct = list(dict.fromkeys(styles))
        texts = ensembled(referee, [source, *distinct], templates)
        ways = texts[1:] - texts[0]
        if (same := (ways.norm(dim=1) < SHORTEST).nonzero()).numel():
            raise UsageError(
                f"{distinct[int(same[0])][:60]!r} and the source {source[:60]!r} are the same to {referee.card.name}: "
                "say another --source, or style"
            )
        rows = F.normalize(ways, dim=-1)[[distinct.index(style) for style in styles]]
        found.append(Move(referee, referee.embed_images(contents).float(), rows.to(contents.device), share))
    return found
