"""Alpha compositing of ordered fragments over a background."""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEARLY: Final = 1 - 1e-9  # of an opaque fragment: what is behind it stays finite as a logarithm


def composite(
    background: Float[Tensor, "n 3"],
    pixel: Int[Tensor, " f"],
    rank: Int[Tensor, " f"],
    colour: Float[Tensor, "f 3"],
    alpha: Float[Tensor, " f"],
) -> Float[Tensor, "n 3"]:
    """Porter and Duff's "over": each of F fragments covers `alpha` of its `pixel` with `colour`, higher ranks on top.

    A fragment is seen through those above it: alpha times the product of their (1 - alpha). The products of all pixels
    are differences of one running sum of logarithms, in float64, so that pixels may have any number of fragments.
    Memory and time grow with F.
    """
    device = background.device
    if device.type == "mps":  # which has no float64
        parts = (background, pixel, rank, colour, alpha)
        return composite(*(part.cpu() for part in parts)).to(device)
    order = (pixel * (int(rank.max()) + 1 if len(rank) else 1) + rank).argsort()
    pixel, colour, alpha = pixel[order], colour[order].double(), alpha[order].double() * NEARLY
    passed = torch.log1p(-alpha)
    counts = torch.bincount(pixel, minlength=len(background))
    total = torch.cat([passed.new_zeros(1), passed.cumsum(0)])  # of the first k fragments
    end = counts.cumsum(0)
    seen = alpha * (total[end[pixel]] - total[1:]).exp()
    behind = (total[end] - total[end - counts]).exp()
    image = background.double() * behind[:, None]
    return image.index_add(0, pixel, colour * seen[:, None]).to(background.dtype)
