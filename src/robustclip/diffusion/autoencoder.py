"""Train a small KL autoencoder (Rombach et al. 2022, §3.1).

Deviations, all ours: the perceptual distance compares features of a small tower instead of LPIPS on VGG-16 and is added
late; there is no discriminator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from robustclip.diffusion.fitting import Features, Trainer, check_channels, feature_distance
from robustclip.runs.devices import autocast
from robustclip.runs.rng import seeded

GROUPS: Final = 16  # of the group norms


def new_autoencoder(
    channels: Sequence[int] = (16, 32, 64, 96), *, latent: int = 8, blocks: int = 1, seed: int = 0
) -> Any:
    """An AutoencoderKL of diffusers with random weights from `seed`; each level of channels but the first halves the
    picture. Raises UsageError for channels that the group norms cannot divide."""
    levels = len(channels)
    check_channels(channels, GROUPS, "16 32 64 96")
    with seeded(seed):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(channels),
            layers_per_block=blocks,
            latent_channels=latent,
            norm_num_groups=GROUPS,
            sample_size=64,
        )


@dataclass
class AutoencoderTrainer(Trainer):
    """Trainer of an autoencoder.

    model: an AutoencoderKL; features: pictures in [0,1] -> spatial features; perceptual: weight of their distance,
    added from step `look` on; kl: weight of the divergence from N(0,I), summed over a latent.
    """

    model: Any
    features: Features
    perceptual: float = 0.25
    look: int = 0
    kl: float = 1e-6

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> dict[str, float]:
        """One update on pictures in [0,1]; `generator` draws the latents' noise."""
        with autocast(images.device, self.dtype):
            posterior = self.model.encode(images * 2 - 1).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        with autocast(images.device, self.dtype):
            made = (self.model.decode(mean + deviation * noise).sample + 1) / 2
        made = made.float()
        difference = made - images
        pixels = difference.abs().mean() + difference.square().mean()
        divergence = 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).flatten(1).sum(1).mean()
        loss = pixels + self.kl * divergence
        numbers = {"l1": difference.abs().mean().item(), "kl": divergence.item(), "std": mean.std().item()}
        numbers["psnr"] = -10 * difference.detach().square().mean().log10().item()
        if self.perceptual and self.done >= self.look:
            distance = feature_distance(self.features, made, images, self.dtype)
            numbers["perceptual"] = distance.item()
            loss = loss + self.perceptual * distance
        self.update(loss)
        self.done += 1
        return {"loss": pixels.item(), **numbers}


@torch.no_grad()
def latent_deviation(model: Any, images: Float[Tensor, "b 3 h w"]) -> float:
    """Standard deviation of the latents of pictures; its inverse is diffusers' scaling_factor."""
    return float(model.encode(images * 2 - 1).latent_dist.mean.float().std())
