"""Measures of heat maps: rank correlation, overlap, centre shift, pointing game, energy in a box, RISE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

TOP = 0.2  # share of the pixels


def rank_correlation(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Spearman's correlation over the pixels, with mean ranks of ties. NaN for constant maps."""
    first, second = (torch.from_numpy(rankdata(part.flatten(1).cpu().numpy(), axis=1)) for part in (maps, others))
    first, second = (ranks - ranks.mean(1, keepdim=True) for ranks in (first, second))
    return ((first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))).float()


def top_iou(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h w"], share: float = TOP) -> Float[Tensor, " b"]:
    """Intersection over union of the brightest `share` of both maps' pixels, from 0 to 1; for independent maps about
    share / (2 - share), 0.11 for 20%. NaN for constant maps."""
    first, second = (brightest(part, share) for part in (maps, others))
    overlap = (first & second).sum((1, 2)) / (first | second).sum((1, 2))
    flat = torch.stack([part.amax((1, 2)) == part.amin((1, 2)) for part in (maps, others)]).any(0)
    return overlap.masked_fill(flat, torch.nan)


def brightest(maps: Float[Tensor, "b h w"], share: float) -> Tensor:
    """Mask of the brightest `share` of each map's pixels, (B,H,W) bool: exactly that many, ties in reading order."""
    return rank(maps) < max(1, round(share * maps.shape[-2] * maps.shape[-1]))


def centre_shift(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Distance of the maps' centres of mass as a share of the image's diagonal. NaN for zero maps."""
    height, width = maps.shape[-2:]
    first, second = centre(maps), centre(others)
    return (first - second).norm(dim=1) / (height**2 + width**2) ** 0.5


def centre(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b 2"]:
    """Centre of mass (row, column) in pixels. NaN for zero maps."""
    height, width = maps.shape[-2:]
    mass = maps.sum((1, 2))
    rows = (maps.sum(2) * torch.arange(height, dtype=maps.dtype)).sum(1) / mass
    columns = (maps.sum(1) * torch.arange(width, dtype=maps.dtype)).sum(1) / mass
    return torch.stack([rows, columns], dim=1)


def pointing_hit(maps: Float[Tensor, "b h w"], boxes: Int[Tensor, "b 4"]) -> Bool[Tensor, " b"]:
    """Pointing game (Zhang et al. 2016): whether a map's maximum lies in its box (top, left, bottom, right; half open).

    Of several maximal pixels (coarse grids have plateaus at the edge) the mean position counts; a zero map misses.
    """
    brightest = (maps == maps.amax((1, 2), keepdim=True)).float()
    top, left, bottom, right = boxes.unbind(1)
    row, column = centre(brightest).unbind(1)
    within = (top <= row) & (row <= bottom - 1) & (left <= column) & (column <= right - 1)
    return within & (maps.amax((1, 2)) > 0)


def energy_in_box(maps: Float[Tensor, "b h w"], boxes: Int[Tensor, "b 4"]) -> Float[Tensor, " b"]:
    """Share of a map's sum in its box (Wang et al. 2020, ScoreCAM). NaN for zero maps."""
    within = inside(boxes, maps.shape[-2], maps.shape[-1])
    return (maps * within).sum((1, 2)) / maps.sum((1, 2))


def inside(boxes: Int[Tensor, "b 4"], height: int, width: int) -> Bool[Tensor, "b h w"]:
    """Mask of the pixels in each box."""
    top, left, bottom, right = (edge[:, None, None] for edge in boxes.unbind(1))
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


def centre_blob(height: int, width: int) -> Float[Tensor, "h w"]:
    """Centre-bias baseline: a Gaussian with a standard deviation of a quarter of each side (ours) and a peak of 1."""
    rows = (torch.arange(height) - (height - 1) / 2) / (height / 4)
    columns = (torch.arange(width) - (width - 1) / 2) / (width / 4)
    blob = torch.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / 2)
    return blob / blob.max()


PARTS: Final = 16
"""Steps from the whole image to none of it; RISE uses hundreds, which changes the area little."""
BLUR: Final = 1 / 12
"""Standard deviation of insertion's initial blur as a share of the shorter side (ours): removes shapes, keeps colours.
RISE uses 5 at 224 pixels; objects on small images need more."""

Score = Callable[[Tensor], Tensor]  # images (B,3,H,W) -> (B,)


def deletion(
    score: Score, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b h w"], parts: int = PARTS
) -> Float[Tensor, " b"]:
    """Deletion (RISE, Petsiuk et al. 2018), lower is better: area under the score while pixels are removed, the map's
    brightest first.

    RISE sets them to the data set's mean colour; here, to the image's own. In the score's units.
    """
    empty = images.mean((2, 3), keepdim=True).expand_as(images)
    return _area(score, images, empty, maps, parts)


def insertion(
    score: Score, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b h w"], parts: int = PARTS
) -> Float[Tensor, " b"]:
    """Insertion (RISE), higher is better: area under the score while pixels are restored in a blurred copy, the map's
    brightest first."""
    from torchvision.transforms.functional import gaussian_blur  # imported here: takes a second

    sigma = max(0.5, BLUR * min(images.shape[-2:]))
    kernel = 2 * round(2 * sigma) + 1
    most = min(images.shape[-2:]) * 2 - 1  # maximum for reflection padding
    return _area(score, gaussian_blur(images, [min(kernel, most)] * 2, [sigma] * 2), images, maps, parts)


@torch.no_grad()
def _area(
    score: Score,
    before: Float[Tensor, "b 3 h w"],
    after: Float[Tensor, "b 3 h w"],
    maps: Float[Tensor, "b h w"],
    parts: int,
) -> Float[Tensor, " b"]:
    """Area under the score from `before` to `after`, changing pixels in the map's order (trapezoidal rule)."""
    places = rank(maps).to(before.device)[:, None]
    pixels = maps.shape[-2] * maps.shape[-1]
    scores = [
        score(torch.where(places < round(step / parts * pixels), after, before)).float().cpu()
        for step in range(parts + 1)
    ]
    return torch.trapezoid(torch.stack(scores), dim=0) / parts


def rank(maps: Float[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """Rank of each pixel by brightness, 0 the brightest, ties in reading order."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1]).expand_as(order)
    return torch.zeros_like(order).scatter_(1, order, places).view(maps.shape)
