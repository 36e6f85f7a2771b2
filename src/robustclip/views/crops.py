"""Random crops and rescaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustclip.attacks.threat import height_and_width
from robustclip.errors import UsageError
from robustclip.views.draws import Draws
from robustclip.views.ranges import Range, check_ends
from robustclip.views.shifts import pick, round_half_up
from robustclip.views.warps import sample


@final
@dataclass(frozen=True)
class RandomCrop:
    """A part of each view, all places alike, resized (bilinear) to `size` (default: left as it is).

    `side` is a whole number of pixels, which makes square crops (CLIPAG's notebook: 128 of 224, to 224), or a fraction
    of the picture's height and of its width (1.0 is all of it, 1 is one pixel). Raises UsageError for a side that is
    neither and, when called, for one larger than the picture.
    """

    side: int | float
    size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.side, int | float) or not 0 < self.side < math.inf:
            raise UsageError(f"RandomCrop({self.side!r}) has no side: give pixels, as in 128, or a fraction, as in 0.5")
        if isinstance(self.side, float) and self.side > 1:
            raise UsageError(
                f"RandomCrop({self.side}) takes more than the picture: a fraction is at most 1.0, pixels are whole, "
                f"as in RandomCrop({int(self.side)})"
            )
        if self.size is not None:
            height_and_width(self.size)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h2 w2"]:
        sides = [
            self.side if isinstance(self.side, int) else max(1, round_half_up(self.side * whole))
            for whole in images.shape[-2:]
        ]
        if isinstance(self.side, int) and self.side > min(images.shape[-2:]):
            height, width = images.shape[-2:]
            raise UsageError(
                f"a crop of {self.side} pixels is larger than pictures of {height}x{width}: use at most "
                f"RandomCrop({min(height, width)}), or a fraction, as in RandomCrop(0.5)"
            )
        rows, columns = (
            draws.integers(0, whole - side, 1) + torch.arange(side, device=draws.device)
            for whole, side in zip(images.shape[-2:], sides, strict=True)
        )
        crops = pick(images, rows, columns)
        if self.size is None:
            return crops
        return F.interpolate(crops, height_and_width(self.size), mode="bilinear", align_corners=False)


@final
@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of each view of its own size and shape, resized to `size`: its area is U(area) of the picture's, its
    height to its width, over the picture's own, log-uniform in `ratio`, cut to what fits; all places are alike.

    CLIPDraw takes areas of 0.7 to 0.9 and ratios of 3/4 to 4/3. Bilinear without antialiasing, so a size far below
    the crop's skips pixels. Raises UsageError for illegal ranges, areas outside (0, 1], ratios not above 0.
    """

    size: int | tuple[int, int]
    area: Range = (0.7, 0.9)
    ratio: Range = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        height_and_width(self.size)
        check_ends(f"RandomResizedCrop({self.size}, area={{}})", self.area, 1e-6, 1)
        check_ends(f"RandomResizedCrop({self.size}, ratio={{}})", self.ratio, 0.01, 100)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h2 w2"]:
        area = draws.uniform(*self.area)
        ratio = draws.log_uniform(*self.ratio)
        # In units of half the picture, as of torch's grids: the picture spans -1 to 1.
        spans = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 1).clamp(max=1)
        centres = (1 - spans) * draws.uniform(-1, 1, 2)
        theta = torch.cat([torch.diag_embed(spans), centres[:, :, None]], 2)
        grid = F.affine_grid(theta, [len(images), 3, *height_and_width(self.size)], align_corners=False)
        return sample(images, grid, "border")


@final
@dataclass(frozen=True)
class Rescale:
    """Make each picture larger or smaller by U(times), bilinear, about its centre and within its frame: what is larger
    is cut, what is smaller is surrounded by 0. One number serves all views of a picture, as in the DiffAugment of
    CLIPAG's notebook, (0.8, 1.2) there; `Affine(scale=...)` draws one a view.

    Raises UsageError for an illegal range, or one that is not within 0.01 to 100.
    """

    times: Range = (0.8, 1.2)

    def __post_init__(self) -> None:
        check_ends("Rescale({})", self.times, 0.01, 100)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        times = draws.uniform(*self.times, shared=True)[:: draws.views].tolist()
        pictures = images.split(draws.views)  # each to a size of its own, all its views at once
        return torch.cat([rescale(views, number) for views, number in zip(pictures, times, strict=True)])


def rescale(images: Float[Tensor, "b 3 h w"], times: float) -> Float[Tensor, "b 3 h w"]:
    """All images larger or smaller by the same number, in the frame they had. Sides are cut to whole pixels."""
    height, width = images.shape[-2:]
    inner_height, inner_width = max(1, int(times * height)), max(1, int(times * width))
    resized = F.interpolate(images, (inner_height, inner_width), mode="bilinear", align_corners=False)
    top, left = _halved(height - inner_height), _halved(width - inner_width)
    # Negative padding cuts.
    return F.pad(resized, (left, width - inner_width - left, top, height - inner_height - top))


def _halved(number: int) -> int:
    return int(number / 2)  # towards 0, as the notebook
