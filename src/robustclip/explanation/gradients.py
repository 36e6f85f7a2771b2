"""Input gradients as maps: raw, and averaged over noisy copies of the image (SmoothGrad, Smilkov et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.referees.base import TwoTower, unit
from robustclip.runs.devices import autocast
from robustclip.runs.rng import each

SAMPLES: Final = 16
"""Noisy copies; Smilkov et al. see little gain beyond 50, and 16 cost a third. Ours."""
SIGMA: Final = 0.1
"""Of the noise, in pixel units: the lower end of the 10% to 20% of the range that the paper finds best."""


def smooth_gradients(
    referee: TwoTower,
    images: Float[Tensor, "b 3 h w"],
    texts: Float[Tensor, "b d"],
    ids: Sequence[str],
    *,
    seed: int,
    samples: int = SAMPLES,
    sigma: float = SIGMA,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b 3 h w"]:
    """The mean over noisy copies of the gradient of each image's cosine with its own text (a unit vector), float32.

    Noise leaves [0,1] and is not clipped, so that its mean is the image. It is keyed by seed and id.
    """
    streams = each(seed, "SmoothGrad", ids=ids)
    total = torch.zeros_like(images, dtype=torch.float32)
    with torch.enable_grad(), attacking(referee):
        for _ in range(samples):
            noise = torch.stack(
                [torch.randn(image.shape, generator=s) for image, s in zip(images, streams, strict=True)]
            )
            noisy = (images + sigma * noise.to(images)).requires_grad_()
            with autocast(images.device, dtype):
                embeddings = referee.embed_views(noisy)
            cosine = (unit(embeddings) * texts).sum()
            total += torch.autograd.grad(cosine, noisy)[0].float()
    return total / samples


def strength(gradients: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """How much each pixel matters: its gradient's length over the three channels, so that no sign cancels."""
    return gradients.norm(dim=1)
