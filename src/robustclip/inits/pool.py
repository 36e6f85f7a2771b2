"""Pool of init candidates, embedded once and shared by all prompts (CLIPAG's notebook)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustclip.data.images import resize
from robustclip.errors import UsageError
from robustclip.inits.best_of import checked
from robustclip.referees.base import TwoTower, check_images, unit

Embed = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]


@final
@dataclass(frozen=True)
class Pool:
    """N candidates as small pictures in [0,1] of any one size, and their embeddings at the size of the canvas.

    Only the small ones are held: 10,000 of 16x16 are 30 MB, of 224x224 six gigabytes.
    """

    candidates: Float[Tensor, "n 3 h w"]
    embeddings: Float[Tensor, "n d"]
    size: tuple[int, int]

    @staticmethod
    @torch.no_grad()
    def of(
        candidates: Float[Tensor, "n 3 h w"],
        embed: Embed,
        height: int,
        width: int,
        *,
        device: str | torch.device = "cpu",
        chunk: int = 256,
    ) -> Pool:
        """Enlarge the candidates (bicubic) and embed them, `chunk` at a time: `embed` sees each of them once.

        Raises UsageError without candidates.
        """
        if not len(candidates) or chunk < 1:
            raise UsageError(f"a pool of {len(candidates)} candidates, {chunk} at a time: both need at least 1")
        parts = [embed(resize(part.to(device), (height, width))) for part in candidates.split(chunk)]
        return Pool(candidates, torch.cat(parts), (height, width))

    def best(
        self, score: Callable[[Float[Tensor, "n d"]], Float[Tensor, "p n"]]
    ) -> tuple[Int64[Tensor, " p"], Float[Tensor, " p"]]:
        """For each picture the candidate with the highest score, and that score.

        `score` gets all embeddings; cosine with P directions (P,D) is `lambda e: directions @ e.T`. Raises UsageError
        for scores of another shape, RunError for scores that are not numbers.
        """
        scores = score(self.embeddings)
        found = checked(scores, (len(scores), len(self.candidates))).max(1)
        return found.indices, found.values

    def images(self, indices: Int64[Tensor, " p"]) -> Float[Tensor, "p 3 h2 w2"]:
        """These candidates at the canvas's size, in [0,1], where the embeddings are."""
        return resize(self.candidates[indices.to(self.candidates.device)].to(self.embeddings.device), self.size)


def embedder(referees: Sequence[TwoTower], *, raw: bool = False) -> Embed:
    """Images in [0,1] -> the unit embeddings of all referees side by side (b, d1 + d2 + ...), to fill a Pool with.

    A weighted sum of their cosines is then one product with the weighted directions side by side. `raw` leaves out the
    normalisation by mean and std (see raw_embed). Raises UsageError without referees.
    """
    if not referees:
        raise UsageError("candidates are ranked by referees: give at least one")

    def embed(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return torch.cat([raw_embed(one, images) if raw else one.embed_images(images) for one in referees], 1)

    return embed


def raw_embed(referee: TwoTower, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """Unit embeddings of [0,1] images that are resized, but not normalised by the referee's mean and std.

    So CLIPAG's notebook ranks its candidates, while its loop normalises: a slip, kept for the faithful recipe alone.
    """
    check_images(images)
    return unit(referee.image_tower(referee.preprocess.resize(images.float())))
