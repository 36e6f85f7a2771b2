"""Canvas of CLIPAG's generator-free synthesis: raw pixels."""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.canvases.base import Canvas
from robustclip.errors import UsageError
from robustclip.referees.base import check_images

Projection = Literal["clamp", "threshold"]


@final
class Pixels(Canvas):
    """The pixels of P pictures, `images` (P,3,H,W) in [0,1] being the start.

    After each step, "clamp" cuts at 0 and 1; "threshold" scales a picture of which more than 1 - `quantile` lies
    outside (dynamic thresholding, CLIPAG's notebook after Saharia et al. 2022): contrast is lost, saturation is not.
    """

    def __init__(
        self, images: Float[Tensor, "p 3 h w"], projection: Projection = "clamp", quantile: float = 0.95
    ) -> None:
        super().__init__()
        check_images(images)
        if projection not in ("clamp", "threshold"):
            raise UsageError(f"projection must be 'clamp' or 'threshold', not {projection!r}")
        if not 0 < quantile <= 1:
            raise UsageError(f"quantile must lie in (0, 1], not {quantile}: e.g. 0.95")
        self.projection = projection
        self.quantile = quantile
        self.pixels = nn.Parameter(images.detach().float().clamp(0, 1).clone())

    def render(self) -> dict[str, Tensor]:
        return {"image": self.pixels}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        check_images(images)
        if images.shape != self.pixels.shape:
            raise UsageError(f"the canvas holds {tuple(self.pixels.shape)}, the images are {tuple(images.shape)}")
        self.pixels.copy_(images.clamp(0, 1))

    @torch.no_grad()
    def project(self) -> None:
        if self.projection == "clamp":
            self.pixels.clamp_(0, 1)
        else:
            self.pixels.copy_(dynamic_threshold(self.pixels, self.quantile))


def dynamic_threshold(images: Float[Tensor, "p 3 h w"], quantile: float) -> Float[Tensor, "p 3 h w"]:
    """Images on the scale of [-1,1] are cut at +-s and divided by s, each by its own s: the quantile of its absolute
    values, and at least 1. Gives [0,1] back."""
    centred = images * 2 - 1
    magnitudes = centred.flatten(1).abs()
    s = torch.quantile(magnitudes, quantile, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    return (centred.clamp(-s, s) / s + 1) / 2
