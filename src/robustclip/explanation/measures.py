"""Faithfulness of heat maps: deletion, insertion and ROAD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

TOP = 0.2  # of the pixels


def rank_correlation(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Spearman's correlation over the pixels, ties sharing their mean rank: 1 is the same order, 0 none, -1 the
    reverse. NaN where a map is the same everywhere."""
    first, second = (torch.from_numpy(rankdata(part.flatten(1).cpu().numpy(), axis=1)) for part in (maps, others))
    first, second = (ranks - ranks.mean(1, keepdim=True) for ranks in (first, second))
    return ((first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))).float()


def top_iou(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h w"], share: float = TOP) -> Float[Tensor, " b"]:
    """Intersection over union of the brightest `share` of both maps' pixels, from 0 to 1; of maps that have nothing to
    do with each other about share / (2 - share), 0.11 for 20%. NaN where a map is the same everywhere."""
    first, second = (brightest(part, share) for part in (maps, others))
    overlap = (first & second).sum((1, 2)) / (first | second).sum((1, 2))
    flat = torch.stack([part.amax((1, 2)) == part.amin((1, 2)) for part in (maps, others)]).any(0)
    return overlap.masked_fill(flat, torch.nan)


def brightest(maps: Float[Tensor, "b h w"], share: float) -> Tensor:
    """The brightest `share` of each map's pixels, (B,H,W) bool: exactly so many, of equals those that come first."""
    flat = maps.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    order = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).view(maps.shape)


def centre_shift(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """How far apart the maps' centres of mass are, as a share of the image's diagonal. NaN where a map is zero."""
    height, width = maps.shape[-2:]
    first, second = centre(maps), centre(others)
    return (first - second).norm(dim=1) / (height**2 + width**2) ** 0.5


def centre(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b 2"]:
    """The centre of mass (row, column), in pixels. NaN where a map is zero."""
    height, width = maps.shape[-2:]
    mass = maps.sum((1, 2))
    rows = (maps.sum(2) * torch.arange(height, dtype=maps.dtype)).sum(1) / mass
    columns = (maps.sum(1) * torch.arange(width, dtype=maps.dtype)).sum(1) / mass
    return torch.stack([rows, columns], dim=1)


def pointing_hit(maps: Float[Tensor, "b h w"], boxes: Int[Tensor, "b 4"]) -> Bool[Tensor, " b"]:
    """The pointing game (Zhang et al. 2016): whether a map's brightest point lies in its box (top, left, bottom, right;
    half open). Where several pixels are brightest (maps of coarse grids have plateaus at the edge) their middle counts;
    a map that is zero everywhere points at nothing."""
    brightest = (maps == maps.amax((1, 2), keepdim=True)).float()
    top, left, bottom, right = boxes.unbind(1)
    row, column = centre(brightest).unbind(1)
    within = (top <= row) & (row <= bottom - 1) & (left <= column) & (column <= right - 1)
    return within & (maps.amax((1, 2)) > 0)


def energy_in_box(maps: Float[Tensor, "b h w"], boxes: Int[Tensor, "b 4"]) -> Float[Tensor, " b"]:
    """Which share of a map's sum lies in its box (Wang et al. 2020, of ScoreCAM). NaN where a map is zero."""
    within = inside(boxes, maps.shape[-2], maps.shape[-1])
    return (maps * within).sum((1, 2)) / maps.sum((1, 2))


def inside(boxes: Int[Tensor, "b 4"], height: int, width: int) -> Bool[Tensor, "b h w"]:
    """Which pixels lie in each box."""
    top, left, bottom, right = (edge[:, None, None] for edge in boxes.unbind(1))
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


def centre_blob(height: int, width: int) -> Float[Tensor, "h w"]:
    """A Gaussian in the middle, a quarter of each side wide (standard deviation), 1 at its peak: what a map that knows
    nothing but photographers' habits would be. The width is ours."""
    rows = (torch.arange(height) - (height - 1) / 2) / (height / 4)
    columns = (torch.arange(width) - (width - 1) / 2) / (width / 4)
    blob = torch.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / 2)
    return blob / blob.max()


PARTS: Final = 16
"""Steps from the whole image to none of it; RISE takes hundreds, which changes the area little."""
BLUR: Final = 1 / 12
"""Standard deviation of the blur that insertion starts from, as a share of the shorter side: shapes of things are gone,
colours stay. RISE blurs 224 pixels by 5; things on small images need more. Ours."""

Score = Callable[[Tensor], Tensor]  # images (B,3,H,W) -> (B,)


def deletion(
    score: Score, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b h w"], parts: int = PARTS
) -> Float[Tensor, " b"]:
    """Area under the score while pixels go, the map's brightest first (RISE, Petsiuk et al. 2018): lower is better.

    RISE makes them zero after normalisation, a data set's mean colour; here that is the image's own. In the score's
    units.
    """
    empty = images.mean((2, 3), keepdim=True).expand_as(images)
    return _area(score, images, empty, maps, parts)


def insertion(
    score: Score, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b h w"], parts: int = PARTS
) -> Float[Tensor, " b"]:
    """Area under the score while pixels come into a blurred copy, the map's brightest first: higher is better."""
    from torchvision.transforms.functional import gaussian_blur  # here: a second of import

    sigma = max(0.5, BLUR * min(images.shape[-2:]))
    kernel = 2 * round(2 * sigma) + 1
    most = min(images.shape[-2:]) * 2 - 1  # what reflection at the edge allows
    return _area(score, gaussian_blur(images, [min(kernel, most)] * 2, [sigma] * 2), images, maps, parts)


@torch.no_grad()
def _area(
    score: Score,
    before: Float[Tensor, "b 3 h w"],
    after: Float[Tensor, "b 3 h w"],
    maps: Float[Tensor, "b h w"],
    parts: int,
) -> Float[Tensor, " b"]:
    """The mean score on the way from `before` to `after`, pixel by pixel in the map's order (trapezoids)."""
    places = rank(maps).to(before.device)[:, None]
    pixels = maps.shape[-2] * maps.shape[-1]
    scores = [
        score(torch.where(places < round(step / parts * pixels), after, before)).float().cpu()
        for step in range(parts + 1)
    ]
    return torch.trapezoid(torch.stack(scores), dim=0) / parts


def rank(maps: Float[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """Each pixel's place when sorted by brightness, 0 the brightest; of equals the first in reading order."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1]).expand_as(order)
    return torch.zeros_like(order).scatter_(1, order, places).view(maps.shape)
