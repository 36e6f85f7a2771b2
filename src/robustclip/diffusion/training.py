"""Train a small KL autoencoder (Rombach et al. 2022, §3.1) and a small VQGAN (Esser et al. 2021, "Taming Transformers",
§3.1).

Deviations, all ours: the perceptual distance compares features of a small tower instead of LPIPS on VGG-16. The KL
autoencoder's is added late, and it has no discriminator; the VQGAN's is smaller, and its unused codes are redrawn from
the encoder's output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustclip.diffusion.fitting import Features, Trainer, check_channels, feature_distance
from robustclip.diffusion.vqgan import nearest
from robustclip.runs.devices import autocast
from robustclip.runs.rng import seeded

GROUPS: Final = 16  # of the group norms


def new_autoencoder(channels: Sequence[int] = (16, 32, 64, 96), *, latent: int = 8, seed: int = 0) -> Any:
    """An AutoencoderKL of diffusers with random weights from `seed`; each level of channels but the first halves the
    picture. Raises UsageError for channels that the group norms cannot divide."""
    levels = len(channels)
    check_channels(channels, GROUPS, "16 32 64 96")
    with seeded(seed):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(channels),
            layers_per_block=1,
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

    shown = ("l1", "psnr", "kl")
    title = "training an autoencoder"

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


COMMITMENT: Final = 0.25  # Eq. 4: beta of van den Oord et al. 2017
STARVED: Final = 40  # steps without use after which a code is redrawn


def new_vqgan(channels: Sequence[int] = (32, 64, 96), *, codes: int = 512, code: int = 8, seed: int = 0) -> Any:
    """A VQModel of diffusers with random weights from `seed`; each level of channels but the first halves the picture.
    Raises UsageError for channels that the group norms cannot divide."""
    levels = len(channels)
    check_channels(channels, GROUPS, "16 32 64")
    with seeded(seed):
        return VQModel(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            latent_channels=code,
            vq_embed_dim=code,
            num_vq_embeddings=codes,
            norm_num_groups=GROUPS,
            sample_size=64,
        )


def discriminator(width: int = 32, seed: int = 0) -> nn.Sequential:
    """Patch discriminator of four convolutions with a receptive field of 16 pixels (Isola et al. 2017, smaller)."""
    with seeded(seed):
        return nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, 1, 1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 1),
        )


@dataclass
class VQGANTrainer(Trainer):
    """Trainer of a VQGAN and its discriminator.

    model: a VQModel; features: pictures in [0,1] -> spatial features; perceptual: weight of their distance; the
    adversarial loss is added after `start_gan` steps. Rates decay along a cosine to a twentieth over `steps`.
    """

    stateful = ("model", "critic", "optimiser", "critic_optimiser")
    values = ("unused", "done")
    shown = ("l1", "perceptual", "codes")
    title = "training a VQGAN"

    model: Any
    critic: nn.Module
    features: Features
    perceptual: float = 1.0
    adversarial: float = 0.5
    start_gan: int = 1000
    unused: Int[Tensor, " k"] = field(init=False)

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(0.5, 0.9), weight_decay=0.0)
        self.critic_optimiser = torch.optim.AdamW(self.critic.parameters(), lr=self.lr / 2, betas=(0.5, 0.9))
        self.unused = torch.zeros(self.model.config["num_vq_embeddings"], dtype=torch.long)

    def learning_rate(self) -> float:
        """The rate of the model; the critic's is half of it."""
        falling = 0.05 + 0.95 * (1 + math.cos(math.pi * self.done / self.steps)) / 2
        return self.lr * falling * min(1.0, (self.done + 1) / 100)

    def step(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> dict[str, float]:
        """One update of the model and, near `start_gan` and later, of the critic, on pictures in [0,1]."""
        with autocast(images.device, self.dtype):
            latents = self.model.encode(images * 2 - 1).latents
        latents = latents.float()
        codebook = self.model.quantize.embedding.weight
        index = nearest(latents, codebook)
        codes = codebook[index].permute(0, 3, 1, 2)
        passed = latents + (codes - latents).detach()
        with autocast(images.device, self.dtype):
            made = (self.model.decode(passed, force_not_quantize=True).sample + 1) / 2
        made = made.float()
        pixels = (made - images).abs().mean()
        distance = feature_distance(self.features, made, images, self.dtype)
        codebook_loss = F.mse_loss(codes, latents.detach()) + COMMITMENT * F.mse_loss(latents, codes.detach())
        loss = pixels + self.perceptual * distance
        numbers = {"l1": pixels.item(), "perceptual": distance.item(), "codebook": codebook_loss.item()}
        if self.done >= self.start_gan:
            against = -self._logits(made).mean()  # Eq. 6
            weight = self._balance(loss, against)
            numbers |= {"adversarial": against.item(), "balance": weight.item()}
            loss = loss + self.adversarial * weight * against
        self.update(loss + codebook_loss)
        if self.done >= self.start_gan - 200:  # the critic trains before its loss is used
            numbers["critic"] = self._update_critic(images, made.detach())
        self._redraw(index, latents.detach(), generator)
        self.done += 1
        used = index.unique().numel()
        return {"loss": (pixels + self.perceptual * distance).item(), **numbers, "codes": float(used)}

    def _logits(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.dtype):
            return self.critic(images * 2 - 1).float()

    def _update_critic(self, images: Tensor, made: Tensor) -> float:
        """One update of the critic by the hinge loss of the released code."""
        loss = F.relu(1 - self._logits(images)).mean() + F.relu(1 + self._logits(made)).mean()
        self.critic_optimiser.param_groups[0]["lr"] = self.learning_rate() / 2
        self.critic_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_optimiser.step()
        return loss.item()

    def _balance(self, loss: Tensor, against: Tensor) -> Tensor:
        """Eq. 7: ratio of the gradient norms at the decoder's last layer."""
        last = self.model.decoder.conv_out.weight
        own, other = (torch.autograd.grad(one, last, retain_graph=True)[0].norm() for one in (loss, against))
        return (own / (other + 1e-4)).clamp(0, 1e4).detach()

    @torch.no_grad()
    def _redraw(self, index: Tensor, latents: Tensor, generator: torch.Generator) -> None:
        """Redraw codes that were not used for `STARVED` steps."""
        self.unused += 1
        self.unused[index.unique().cpu()] = 0
        starved = (self.unused >= STARVED).nonzero()[:, 0]
        if len(starved) and self.done < 0.8 * self.steps:
            flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
            drawn = torch.randint(len(flat), (len(starved),), generator=generator)
            self.model.quantize.embedding.weight[starved] = flat[drawn.to(flat.device)].to(
                self.model.quantize.embedding.weight
            )
            self.unused[starved] = 0
