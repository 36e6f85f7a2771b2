"""Train a small text-conditional latent denoiser (Ho et al. 2020, Alg. 1; Rombach et al. 2022, §3.3).

Losses are weighted as in Hang et al. 2023 ("Min-SNR", gamma 5); the result is a moving average of the weights.
Cross-attention is supervised by the objects' positions, after TokenCompose (Wang et al. 2024): a cell that shows an
object attends to that object's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.optim.swa_utils import AveragedModel

from robustclip.data.emoji_batches import Captioned
from robustclip.diffusion.fitting import Trainer, check_channels
from robustclip.diffusion.stable import SentenceStates
from robustclip.runs.devices import autocast
from robustclip.runs.rng import seeded

GROUPS: Final = 32  # of the group norms: diffusers' default
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
SNR: Final = 5.0  # gamma: signal-to-noise ratios are clamped at it
KEPT: Final = 0.999  # decay of the moving average
THINGS: Final = 4  # largest number of objects of a picture with known positions
TINY: Final = 1e-6
Parameters = tuple[Tensor, ...] | list[Tensor]


def new_denoiser(
    channels: Sequence[int] = (96, 192),
    *,
    latent: int = 8,
    size: int = 8,
    text: int = 384,
    heads: int = 4,
    seed: int = 0,
) -> Any:
    """A UNet2DConditionModel of diffusers with random weights from `seed`; each level of channels has cross-attention
    to the text, and each but the first halves the latent. Raises UsageError for channels that the group norms cannot
    divide."""
    check_channels(channels, GROUPS, "96 192")
    with seeded(seed):
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
class DenoiserTrainer(Trainer):
    """Trainer of a denoiser.

    model: a UNet2DConditionModel that predicts noise; placed: weight of the cross-attention supervision.
    """

    stateful = ("model", "average", "optimiser")
    shown = ("loss", "error", "misplaced")
    title = "training a denoiser"

    model: Any
    placed: float = 0.02
    scheduler: Any = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = DDPMScheduler.from_config(SCHEDULE)
        self.average = AveragedModel(self.model, multi_avg_fn=averaging)
        self.kept: list[Tensor] = []
        # Also halves the step's time on a CPU, where fused attention is slow backward at few cells.
        self.model.set_attn_processor(KeepsAttention(self.kept))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01)

    def step(self, batch: Encoded, generator: Generator) -> dict[str, float]:
        """One update on pictures with partially dropped captions."""
        latents = batch.latents
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        times = torch.randint(self.scheduler.config["num_train_timesteps"], (len(latents),), generator=generator)
        times = times.to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, times)
        self.kept.clear()
        with autocast(latents.device, self.dtype):
            predicted = self.model(noisy, times, batch.states, encoder_attention_mask=batch.mask).sample
        errors = F.mse_loss(predicted.float(), noise, reduction="none").flatten(1).mean(1)
        kept = self.scheduler.alphas_cumprod.to(latents.device)[times]
        ratio = kept / (1 - kept)
        denoising = (errors * ratio.clamp(max=SNR) / ratio).mean()
        placing = torch.stack([misplaced(weights, batch.words, batch.cells) for weights in self.kept]).mean()
        loss = denoising + self.placed * placing
        self.update(loss)
        self.average.update_parameters(self.model)
        self.done += 1
        self.kept.clear()
        return {"loss": denoising.item(), "error": errors.mean().item(), "misplaced": placing.item()}

    def averaged(self) -> Any:
        """The model with the averaged weights."""
        return self.average.module


@torch.no_grad()
def averaging(average: Parameters, current: Parameters, steps: Tensor | int) -> None:
    """Moving average with decay min(`KEPT`, (1 + steps) / (10 + steps)), so that initial weights are soon forgotten."""
    torch._foreach_lerp_(average, current, 1 - min(KEPT, (1 + int(steps)) / (10 + int(steps))))


class KeepsAttention:
    """An attention processor of diffusers that keeps the weights of cross-attention, (B*heads,N,L), in `kept`."""

    def __init__(self, kept: list[Tensor]) -> None:
        self.kept = kept

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
        query, key, value = (
            attn.head_to_batch_dim(layer(states))
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        weights = attn.get_attention_scores(query, key, mask)
        if encoder_hidden_states is not None:
            self.kept.append(weights)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(torch.bmm(weights, value))))


def misplaced(
    weights: Float[Tensor, "bh n l"], words: Bool[Tensor, "b g l"], cells: Float[Tensor, "b g h w"]
) -> Float[Tensor, ""]:
    """Cross-entropy between the object that a cell shows and the cell's attention to each object's words, averaged over
    heads: log 2 by chance for two objects, 0 for one. Deviation: TokenCompose has a loss per noun."""
    attention = weights.float().view(len(words), -1, *weights.shape[1:]).mean(1)
    side = round(attention.shape[1] ** 0.5)
    shown = F.adaptive_avg_pool2d(cells, side).flatten(2)
    attended = torch.einsum("bnl,bgl->bgn", attention, words.float()) + TINY
    there = words.any(2, keepdim=True)
    shares = attended / (attended * there).sum(1, keepdim=True).clamp(min=TINY)
    return -(shown * there * shares.log()).sum() / (shown * there).sum().clamp(min=TINY)


@dataclass
class Encoded:
    """Training batch of a denoiser.

    latents (B,C,h,w), scaled; states (B,L,D) of the captions' tokens and mask (B,L), true for tokens; words (B,G,L),
    true for the tokens of each object's phrase; cells (B,G,h,w), the share of a cell that shows the object.
    """

    latents: Float[Tensor, "b c h w"]
    states: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]
    words: Bool[Tensor, "b g l"]
    cells: Float[Tensor, "b g h w"]

    def drawn(self, repeat: int, drop: float, empty: tuple[Tensor, Tensor], generator: Generator) -> Encoded:
        """The batch repeated `repeat` times; the empty text's states (L,D) and mask (L) replace a share `drop` of the
        captions (Ho and Salimans 2021)."""
        parts = (self.latents, self.states, self.mask, self.words, self.cells)
        latents, states, mask, words, cells = (part.repeat(repeat, *[1] * (part.ndim - 1)) for part in parts)
        dropped = (torch.rand(len(latents), generator=generator) < drop).to(latents.device)
        states[dropped], mask[dropped], words[dropped] = empty[0].to(states), empty[1], False
        return Encoded(latents, states, mask, words, cells)


@torch.no_grad()
def encode(batch: Captioned, vae: Any, texts: SentenceStates, dtype: torch.dtype = torch.float32) -> Encoded:
    """Encode pictures and captions for a denoiser; the text tower computes in `dtype`."""
    images = batch.images.to(vae.device, memory_format=torch.channels_last)
    latents = vae.encode(images * 2 - 1).latent_dist.mean * vae.config["scaling_factor"]
    with autocast(vae.device, dtype):
        states, mask = texts.states(batch.captions)
    words = torch.zeros(len(images), THINGS, mask.shape[1], dtype=torch.bool)
    for row, phrases in enumerate(batch.phrases):
        words[row, : len(phrases)] = texts.encoder.spans(batch.captions[row], phrases, mask.shape[1])
    numbers = torch.arange(1, THINGS + 1).view(-1, 1, 1)
    cells = F.adaptive_avg_pool2d((batch.masks[:, None] == numbers).float(), latents.shape[-1])
    return Encoded(latents.float(), states.float(), mask, words.to(mask.device), cells.to(mask.device))
