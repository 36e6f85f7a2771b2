"""Total variation as CLIPStyler computes it."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor


@final
class NeighbourNorms:
    """The sum of the L2 norms of four difference maps: across, down, and both diagonals; (P,V,3,h,w) -> (P,V).

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
