"""One-step guidance: gradients through a single evaluation of the denoiser, the baseline of DOODL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.diffusion.reversible import Chain

Score = Callable[[Float[Tensor, "p c h w"]], Float[Tensor, " p"]]
"""Predicted latents of pictures -> one loss each, differentiable."""


def predicted(latents: Tensor, noise: Tensor, alpha: float, sigma: float) -> Tensor:
    """x_0 of x_t and the noise in it."""
    return (latents - sigma * noise) / alpha


def guided(
    chain: Chain, start: Float[Tensor, "p c h w"], given: tuple[Tensor, ...], loss: Score, scale: float
) -> Tensor:
    """Classifier guidance of DDIM's steps: the noise is corrected by sigma * scale times the slope of the loss of the
    picture that it predicts, by one evaluation that is differentiated (Dhariwal and Nichol 2021, Alg. 2; DOODL's
    baseline). (P,C,h,w), the end."""
    levels, x = chain.levels, start
    for place, time in enumerate(levels.times):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            noise = chain.denoise(leaf, time, *given)
            losses = loss(predicted(leaf, noise, levels.alphas[place], levels.sigmas[place]))
            (slope,) = torch.autograd.grad(losses.sum(), leaf)
        a, b = levels.ddim(place)
        x = (a * x + b * (noise.detach() + scale * levels.sigmas[place] * slope)).detach()
    return x


@final
class Predicted:
    """A chain whose gradient is that of the picture which its first step predicts: noise optimisation without going
    through the chain. Where no gradient is asked for, its pictures are those of the whole chain."""

    pictures: Final = [0]

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def sample(self, start: Float[Tensor, "2 p c h w"], *given: Tensor) -> Float[Tensor, "2 p c h w"]:
        if not torch.is_grad_enabled():
            return self.chain.sample(start, *given)[self.chain.pictures[:1]]
        levels = self.chain.levels
        x = start.mean(0)
        noise = self.chain.denoise(x, levels.times[0], *given)
        return predicted(x, noise, levels.alphas[0], levels.sigmas[0])[None]

    def invert(self, end: Float[Tensor, "2 p c h w"], *given: Tensor) -> Float[Tensor, "2 p c h w"]:
        return self.chain.invert(end, *given)

    def ending(self, latents: Float[Tensor, "p c h w"], *given: Tensor) -> Float[Tensor, "2 p c h w"]:
        return self.chain.ending(latents, *given)
