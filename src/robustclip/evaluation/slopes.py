"""Finite-difference check of gradients, for the gradient-masking checks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.attacks.threat import broadcast, per_image_max


def slopes(
    loss: Callable[[Tensor], Tensor], images: Float[Tensor, "b 3 h w"], *, stride: float
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The L2 length of each image's gradient, and the central finite difference of the loss along it; float64, on the
    CPU. Where `loss`, images to (B,), is smooth, the two are alike.

    `stride` is the L2 distance to either side, in pixel units; images must be as far from 0 and 1. Without a gradient
    both are 0. Where a network takes the maximum of equal neighbours, as on a drawing's background, its slope depends
    on the side and its gradient follows one neighbour only: give such images a little noise.
    """
    leaf = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    largest = per_image_max(gradient.abs())  # taken out, so that a tiny gradient does not vanish when it is squared
    scaled = gradient / broadcast(torch.where(largest > 0, largest, 1), gradient)
    norms = torch.linalg.vector_norm(scaled, dim=(1, 2, 3))
    step = stride * scaled / broadcast(torch.where(norms > 0, norms, 1), scaled)
    with torch.no_grad():
        above, below = (loss((images.detach() + side * step).clamp(0, 1)).cpu().double() for side in (1, -1))
    return largest.cpu().double() * norms.cpu().double(), (above - below) / (2 * stride)
