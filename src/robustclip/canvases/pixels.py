"""Canvas of CLIPAG's generator-free synthesis: raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.canvases.base import Canvas, check_fit
from robustclip.errors import UsageError
from robustclip.referees.base import check_images

Projection = Literal["clamp", "threshold"]


@final
class Pixels(Canvas):
    """Pixels of P pictures, initialised with `images` (P,3,H,W) in [0,1].

    After each step, "clamp" clamps to [0,1]; "threshold" scales pictures with more than 1 - `quantile` of their values
    outside (dynamic thresholding, CLIPAG's notebook after Saharia et al. 2022), which reduces contrast.
    """

    def __init__(
        self, images: Float[Tensor, "p 3 h w"], projection: Projection = "clamp", quantile: float = 0.95
    ) -> None:
        super().__init__()
        check_images(images)
        if projection not in ("clamp", "threshold"):
            message = f"projection must be 'clamp' or 'threshold', not {projection!r}"
            raise UsageError(message, "unknown_choice", argument="projection", given=projection)
        if not 0 < quantile <= 1:
            message = f"quantile must lie in (0, 1], not {quantile}: e.g. 0.95"
            raise UsageError(message, "out_of_range", argument="quantile", given=quantile)
        self.projection = projection
        self.quantile = quantile
        self.pixels = nn.Parameter(images.detach().float().clamp(0, 1).clone())

    def render(self) -> dict[str, Tensor]:
        return {"image": self.pixels}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        height, width = self.pixels.shape[-2:]
        check_fit(images, len(self.pixels), (height, width))
        self.pixels.copy_(images.clamp(0, 1))

    @torch.no_grad()
    def project(self) -> None:
        if self.projection == "clamp":
            self.pixels.clamp_(0, 1)
        else:
            self.pixels.copy_(dynamic_threshold(self.pixels, self.quantile))


def dynamic_threshold(images: Float[Tensor, "p 3 h w"], quantile: float) -> Float[Tensor, "p 3 h w"]:
    """Dynamic thresholding (Imagen) on [-1,1]: clip to +-s and divide by s, with s the image's quantile of absolute
    values, at least 1. Returns [0,1].
    """
    centred = images * 2 - 1
    magnitudes = centred.flatten(1).abs()
    s = torch.quantile(magnitudes, quantile, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    return (centred.clamp(-s, s) / s + 1) / 2


NEAREST_TO_BLACK = 1 / 256  # of encoded images, because tanh reaches 0 and 1 only at infinity


@final
class Pyramid(Canvas):
    """image = (tanh(sum of the upsampled levels) + 1) / 2, of P pictures of `size` (height, width).

    One tensor per entry of `sides` (length of its shorter side in pixels), initially zero: mid-grey. Levels are
    upsampled bicubically. `margin` pixels at each edge are rendered for the views (jitter crops them) but are not part
    of the picture.

    Direct Ascent Synthesis weighs all sizes equally (its demo uses 1 to 336); powers of two, the default, are ours,
    with the same range of scales at a fraction of the cost.
    """

    def __init__(
        self,
        count: int,
        size: tuple[int, int],
        sides: Sequence[int] | None = None,
        *,
        margin: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        height, width = self.size = (size[0] + 2 * margin, size[1] + 2 * margin)
        short = min(self.size)
        sides = powers_of_two(short) if sides is None else sorted(sides)
        if not sides or sides[0] < 1 or sides[-1] > short:
            message = f"sides of a pyramid run from 1 to the picture's {short} pixels, not {list(sides)}"
            raise UsageError(message, "out_of_range", argument="sides", given=list(sides), most=short)
        self.margin = margin
        self.levels = nn.ParameterList(
            torch.zeros(
                count, 3, max(1, round(side * height / short)), max(1, round(side * width / short)), device=device
            )
            for side in sides
        )

    def render(self) -> dict[str, Tensor]:
        total = torch.stack([self._upsampled(level) for level in self.levels]).sum(0)
        return {"image": (torch.tanh(total) + 1) / 2}

    def picture(self, image: Float[Tensor, "p 3 H W"]) -> Float[Tensor, "p 3 h w"]:
        height, width = self.size
        return image[..., self.margin : height - self.margin, self.margin : width - self.margin]

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        """Initialise from images with or without margins; margins replicate the edge.

        The finest level gets the image; the others start at zero.
        """
        check_images(images)
        height, width = self.size
        count = len(self.levels[0])
        if images.shape == (count, 3, height - 2 * self.margin, width - 2 * self.margin) and self.margin:
            images = F.pad(images, (self.margin,) * 4, mode="replicate")
        check_fit(images, count, self.size)
        finest = self.levels[-1]
        reduced = F.interpolate(images, finest.shape[-2:], mode="bicubic", antialias=True, align_corners=False)
        for level in self.levels:
            level.zero_()
        finest.copy_(torch.atanh(reduced.clamp(NEAREST_TO_BLACK, 1 - NEAREST_TO_BLACK) * 2 - 1))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Levels by size, coarse to fine: "1x1", "2x2", ..."""
        return {f"{level.shape[-2]}x{level.shape[-1]}": [level] for level in self.levels}

    def _upsampled(self, level: Tensor) -> Tensor:
        if level.shape[-2:] == self.size:
            return level
        if level.shape[-2:] == (1, 1):
            return level.expand(-1, -1, *self.size)
        return F.interpolate(level, self.size, mode="bicubic", align_corners=False)


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest`."""
    return [*(1 << k for k in range((largest - 1).bit_length())), largest]
