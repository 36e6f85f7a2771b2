"""Image priors: total variation and the latent prior."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor


@final
class LatentPrior:
    """Mean square of what latents differ from `towards` (P,...), or from zero: (P,V,...) -> (P,V).

    VQGAN-CLIP's `init_weight` pulls towards zero, with a weight of init_weight / (2(2i+1)) in step i; towards the
    start is what its name says.
    """

    def __init__(self, towards: Float[Tensor, "p ..."] | None = None) -> None:
        self.towards = None if towards is None else towards.detach().clone()

    def __call__(self, latents: Float[Tensor, "p v ..."]) -> Float[Tensor, "p v"]:
        moved = latents if self.towards is None else latents - self.towards[:, None]
        return moved.float().square().flatten(2).mean(2)

    def __str__(self) -> str:
        return "latent prior"


@final
class TotalVariation:
    """Mean absolute difference of neighbouring pixels, down and across: (P,V,3,h,w) -> (P,V), 0 for one colour."""

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        down = (views[..., 1:, :] - views[..., :-1, :]).abs().mean((-3, -2, -1))
        across = (views[..., 1:] - views[..., :-1]).abs().mean((-3, -2, -1))
        return down + across

    def __str__(self) -> str:
        return "total variation"
