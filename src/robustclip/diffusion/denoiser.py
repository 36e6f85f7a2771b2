"""A small text-conditional denoiser of latents, trained: Ho et al. 2020 Alg. 1 in latents (Rombach et al. 2022, §3.3).

Losses are weighted as in Hang et al. 2023 ("Min-SNR", gamma 5), and what is kept is a moving average of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robustclip.diffusion.fitting import rate
from robustclip.errors import UsageError
from robustclip.runs.devices import autocast

GROUPS: Final = 32  # of channels that are normalised together: diffusers' default
SCHEDULE: Final = {  # Stable Diffusion's
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SNR: Final = 5.0  # gamma: signal-to-noise ratios above it count no more
KEPT: Final = 0.999  # of the average of the weights, at each step


def new_denoiser(
    channels: Sequence[int] = (96, 192),
    *,
    latent: int = 8,
    size: int = 8,
    text: int = 384,
    heads: int = 4,
    seed: int = 0,
) -> Any:
    """A UNet2DConditionModel of diffusers with random weights that are a function of `seed`; each level of channels has
    cross-attention to the text, and each but the first halves the latent. Raises UsageError for channels that are not
    whole in groups of the norm."""
    if not channels or any(number % GROUPS for number in channels):
        raise UsageError(f"channels are multiples of {GROUPS}, one for each level, as in 96 192: not {list(channels)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=size,
            in_channels=latent,
            out_channels=latent,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * len(channels),
            up_block_types=("CrossAttnUpBlock2D",) * len(channels),
            cross_attention_dim=text,
            attention_head_dim=heads,  # diffusers' UNet takes this for the number of heads
            norm_num_groups=GROUPS,
        )


@dataclass
class DenoiserTrainer:
    """One step after the other: `step(latents, states, mask, generator)` gives the numbers of it.

    model: a UNet2DConditionModel that predicts noise.
    """

    model: Any
    steps: int
    lr: float = 1e-3
    dtype: torch.dtype = torch.float32
    done: int = 0
    scheduler: Any = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = DDPMScheduler.from_config(SCHEDULE)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(KEPT))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01)

    def step(
        self,
        latents: Float[Tensor, "b c h w"],
        states: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"],
        generator: Generator,
    ) -> dict[str, float]:
        """One update on scaled latents and the states of their captions' tokens."""
        self.optimiser.param_groups[0]["lr"] = self.lr * rate(self.done, self.steps)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        times = torch.randint(self.scheduler.config["num_train_timesteps"], (len(latents),), generator=generator)
        times = times.to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, times)
        with autocast(latents.device, self.dtype):
            found = self.model(noisy, times, states, encoder_attention_mask=mask).sample
        errors = F.mse_loss(found.float(), noise, reduction="none").flatten(1).mean(1)
        kept = self.scheduler.alphas_cumprod.to(latents.device)[times]
        ratio = kept / (1 - kept)
        loss = (errors * ratio.clamp(max=SNR) / ratio).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.average.update_parameters(self.model)
        self.done += 1
        return {"loss": loss.item(), "error": errors.mean().item()}

    def averaged(self) -> Any:
        """The model with the averaged weights."""
        return self.average.module

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises UsageError for a state of another network."""
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UsageError("the checkpoint is of another network: go on with the arguments of its run") from error
        self.done = state["done"]


@dataclass
class LatentPool:
    """Pictures that were encoded once, with the token states of their captions: what a denoiser is trained on.

    latents (N,C,h,w) float16, scaled; states (N,L,D) float16; mask (N,L), true for tokens; empty: states and mask of
    the empty text, (L,D) and (L), which takes the caption's place in a share `drop` of cases (Ho and Salimans 2021).
    """

    latents: Float[Tensor, "n c h w"]
    states: Float[Tensor, "n l d"]
    mask: Bool[Tensor, "n l"]
    empty: tuple[Float[Tensor, "l d"], Bool[Tensor, " l"]]
    drop: float = 0.1

    def batch(self, size: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`size` of them, drawn with replacement: latents and states in float32, and masks."""
        rows = torch.randint(len(self.latents), (size,), generator=generator)
        states, mask = self.states[rows].float(), self.mask[rows].clone()
        dropped = torch.rand(size, generator=generator) < self.drop
        states[dropped], mask[dropped] = self.empty[0].float(), self.empty[1]
        return self.latents[rows].float(), states, mask
