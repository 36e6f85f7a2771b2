"""Faithfulness of heat maps: deletion, insertion and ROAD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
