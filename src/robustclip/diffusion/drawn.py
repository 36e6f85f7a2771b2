"""Small generators with random weights, for checks of a device: nothing is read from a disk."""

from __future__ import annotations

from typing import Any, final

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from robustclip.diffusion.denoiser import SCHEDULE, new_denoiser
from robustclip.diffusion.stable import LatentDiffusion, TextStates
from robustclip.diffusion.training import new_autoencoder, new_vqgan
from robustclip.diffusion.vqgan import VQGAN
from robustclip.runs.rng import generator

WIDTH, TOKENS = 16, 6


@final
class DrawnStates(TextStates):
    """Token states that are a function of the text alone; distances are not meaningful."""

    width, context = WIDTH, TOKENS

    @property
    def tower(self) -> Any:
        return None

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def states(self, texts: list[str]) -> tuple[Tensor, None]:
        return torch.stack([torch.randn(TOKENS, WIDTH, generator=generator(0, text)) for text in texts]), None


def drawn_diffusion(dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    """A latent diffusion model of about 200,000 weights: latents of 4 channels, cells of 2 pixels."""
    vae = new_autoencoder((16, 16), latent=4)
    unet = new_denoiser((32, 32), latent=4, size=8, text=WIDTH, heads=2)
    return LatentDiffusion(vae, unet, DDIMScheduler.from_config(SCHEDULE), DrawnStates(), name="drawn", dtype=dtype)


def drawn_vqgan() -> VQGAN:
    """A VQGAN of 32 codes of 4 channels, cells of 2 pixels."""
    return VQGAN(new_vqgan((16, 16), codes=32, code=4))
