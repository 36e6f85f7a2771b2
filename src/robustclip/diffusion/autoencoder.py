"""Train a small KL autoencoder (Rombach et al. 2022, §3.1).

Deviations, all ours: the perceptual distance is of a small tower's features, where theirs is LPIPS on VGG-16, and joins
late; there is no adversary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.diffusion.fitting import rate
from robustclip.errors import UsageError
from robustclip.runs.devices import autocast

GROUPS: Final = 16  # of channels that are normalised together
Features = Callable[[Tensor], Sequence[Tensor]]


def new_autoencoder(
    channels: Sequence[int] = (16, 32, 64, 96), *, latent: int = 8, blocks: int = 1, seed: int = 0
) -> Any:
    """An AutoencoderKL of diffusers with random weights that are a function of `seed`; each level of channels but the
    first halves the picture. Raises UsageError for channels that are not whole in groups of the norm."""
    levels = len(channels)
    if not channels or any(number % GROUPS for number in channels):
        raise UsageError(
            f"channels are multiples of {GROUPS}, one for each level, as in 16 32 64 96: not {list(channels)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
class AutoencoderTrainer:
    """One step after the other: `step(images, generator)` gives the numbers of it.

    model: an AutoencoderKL; features: pictures in [0,1] -> spatial features, whose distance counts `perceptual` from
    step `look` on; `kl`: weight of the divergence from N(0,I), summed over a latent and divided by the pixels' number.
    """

    model: Any
    features: Features
    steps: int
    lr: float = 1e-3
    perceptual: float = 0.25
    look: int = 0
    kl: float = 1e-6
    dtype: torch.dtype = torch.float32
    done: int = 0

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> dict[str, float]:
        """One update on pictures in [0,1]; the latents' noise comes from `generator`."""
        self.optimiser.param_groups[0]["lr"] = self.lr * rate(self.done, self.steps)
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
            seen = self._distance(made, images)
            numbers["perceptual"] = seen.item()
            loss = loss + self.perceptual * seen
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.done += 1
        return {"loss": pixels.item(), **numbers}

    def state(self) -> dict[str, Any]:
        """Training state for resumption."""
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "done": self.done}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises UsageError for a state of another network."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UsageError("the checkpoint is of another network: go on with the arguments of its run") from error
        self.done = state["done"]

    def _distance(self, made: Tensor, images: Tensor) -> Tensor:
        """Mean squared difference of features at unit length, position by position, summed over layers (as LPIPS)."""
        with autocast(made.device, self.dtype):
            found = self.features(made)
            with torch.no_grad():
                wanted = self.features(images)
        pairs = zip(found, wanted, strict=True)
        return torch.stack(
            [(F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean() for a, b in pairs]
        ).sum()


@torch.no_grad()
def latent_deviation(model: Any, images: Float[Tensor, "b 3 h w"]) -> float:
    """Standard deviation of these pictures' latents; its inverse is diffusers' scaling_factor."""
    return float(model.encode(images * 2 - 1).latent_dist.mean.float().std())
