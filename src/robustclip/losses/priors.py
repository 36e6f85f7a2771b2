"""What is known of pictures without a referee."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor


@final
class TotalVariation:
    """Mean absolute difference of neighbouring pixels, down and across: (P,V,3,h,w) -> (P,V), 0 for one colour."""

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        down = (views[..., 1:, :] - views[..., :-1, :]).abs().mean((-3, -2, -1))
        across = (views[..., 1:] - views[..., :-1]).abs().mean((-3, -2, -1))
        return down + across

    def __str__(self) -> str:
        return "total variation"
