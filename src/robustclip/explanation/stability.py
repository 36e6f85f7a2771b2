"""Similarity of two heat maps: rank correlation, overlap, centre shift."""

from __future__ import annotations

import torch
from jaxtyping import Float
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
