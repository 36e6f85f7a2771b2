"""Localisation of heat maps: pointing game and energy in the box, with a centre blob as baseline."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustclip.explanation.stability import centre


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
