"""Latent diffusion models (Rombach et al. 2022) in diffusers' format: encode, decode, predict noise; and
the token states of a text tower that condition it."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Final, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustclip.canvases.latents import check_whole
from robustclip.errors import UsageError
from robustclip.referees.base import check_images, of_transformers
from robustclip.referees.sentence import SentenceEncoder
from robustclip.referees.weights import digest
from robustclip.runs.devices import autocast

_log = logging.getLogger(__name__)

try:
    from diffusers import DDIMScheduler
except ImportError as error:
    raise UsageError("generators are diffusers': pip install 'robustclip[synthesis]'") from error

LENGTH: Final = 24  # tokens, of the embedded denoiser's context


@dataclass(frozen=True)
class Conditioning:
    """Token states (T,N,D) of T texts, and mask (T,N), true for tokens to attend to; None: all."""

    states: Float[Tensor, "t n d"]
    mask: Bool[Tensor, "t n"] | None = None

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, index: Any) -> Conditioning:
        """The texts at `index`, possibly repeated."""
        return Conditioning(self.states[index], None if self.mask is None else self.mask[index])

    def joined(self, other: Conditioning) -> Conditioning:
        """These texts followed by those of `other`."""
        masks = None if self.mask is None or other.mask is None else torch.cat([self.mask, other.mask])
        return Conditioning(torch.cat([self.states, other.states]), masks)


class TextStates(ABC, nn.Module):
    """A frozen text tower's token states. Texts beyond `context` tokens are truncated, with one note for each text."""

    width: int
    context: int

    @property
    @abstractmethod
    def tower(self) -> Any:
        """The transformers model, for adapters."""

    @abstractmethod
    def count_tokens(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text before truncation."""

    @abstractmethod
    def states(self, texts: list[str]) -> tuple[Float[Tensor, "t n d"], Bool[Tensor, "t n"] | None]:
        """Token states, and the mask of tokens to attend to."""

    def forward(self, texts: list[str]) -> Conditioning:
        for text, count in zip(texts, self.count_tokens(list(texts)), strict=True):
            if count > self.context:
                self._note_cut(text, count)
        return Conditioning(*self.states(list(texts)))

    def _note_cut(self, text: str, count: int) -> None:
        noted: set[str] = self.__dict__.setdefault("noted", set())
        if text not in noted:
            noted.add(text)
            _log.warning(
                f"{text[:60]!r}... has {count} tokens, of which this diffusion model reads {self.context}: the end is "
                "cut"
            )


@final
class SentenceStates(TextStates):
    """Token states of the embedded text tower, MiniLM."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SentenceEncoder()
        self.width, self.context = self.encoder.width, LENGTH

    @property
    def tower(self) -> Any:
        return self.encoder.transformer

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self.encoder.count_tokens(texts)

    def states(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        return self.encoder.token_states(texts, self.context)


@final
class CLIPStates(TextStates):
    """Stable Diffusion's token states: last hidden states of a CLIPTextModel at all positions, with padding."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.width = int(model.config.hidden_size)
        self.context = int(model.config.max_position_embeddings)
        self._tokenizing = threading.Lock()  # a fast tokenizer keeps its padding and truncation as state

    @property
    def tower(self) -> Any:
        return self.model

    def count_tokens(self, texts: list[str]) -> list[int]:
        with self._tokenizing:
            return of_transformers(self.tokenizer, texts)

    def states(self, texts: list[str]) -> tuple[Tensor, None]:
        with self._tokenizing:
            ids = self.tokenizer(
                texts, padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
            )["input_ids"]
        return self.model(ids.to(self.model.device)).last_hidden_state, None


PREDICTIONS: Final = ("epsilon", "v_prediction", "sample")


@final
class LatentDiffusion(nn.Module):
    """A frozen AutoencoderKL, UNet2DConditionModel and text tower for pictures in [0,1].

    factor: pixels per latent cell along a side; channels: of a latent; steps: of the schedule; alphas_cumprod:
    (steps,), alpha-bar, the share of the signal's variance after each; prediction: the UNet's prediction type.

    The UNet computes in dtype, under autocast if its weights are float32; the autoencoder in the dtype of its weights.
    Half-precision weights, `slicing` (pictures are decoded singly) and `checkpointing` (the decoder's activations are
    recomputed in the backward pass) save memory.
    """

    alphas_cumprod: Float[Tensor, " t"]

    def __init__(
        self,
        vae: Any,
        unet: Any,
        scheduler: Any,
        texts: TextStates,
        *,
        name: str = "",
        dtype: torch.dtype = torch.float32,
        slicing: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.vae, self.unet, self.texts = vae, unet, texts
        # Without its private keys, which would restore its defaults over our values.
        self.scheduler_config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        self.prediction = str(scheduler.config["prediction_type"])
        if self.prediction not in PREDICTIONS:
            message = f"this model predicts {self.prediction!r}, and this library takes {', '.join(PREDICTIONS)}"
            raise UsageError(message, "unknown_prediction", prediction=self.prediction)
        if unet.config.get("time_cond_proj_dim") is not None:
            raise UsageError(
                "this denoiser was distilled for guidance that it takes as an input (time_cond_proj_dim), and has no "
                "prediction without the prompt: give the model that it was distilled from",
                "distilled_guidance",
            )
        self.name = name
        self.dtype = dtype
        self.checkpointing = checkpointing
        config = vae.config
        self.factor = 2 ** (len(config["block_out_channels"]) - 1)
        self.channels = int(config["latent_channels"])
        self.scale = float(config["scaling_factor"])
        self.shift = float(config.get("shift_factor") or 0.0)
        expected = (self.channels, texts.width)
        if (unet.config["in_channels"], unet.config["cross_attention_dim"]) != expected:
            actual = f"{unet.config['in_channels']} channels and texts of {unet.config['cross_attention_dim']}"
            raise UsageError(
                f"the denoiser is of {actual}, latents have {expected[0]} channels and texts are of {expected[1]}: "
                "give parts of one model"
            )
        self.steps = int(scheduler.config["num_train_timesteps"])
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.clone().float())
        if slicing:
            vae.enable_slicing()
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    @property
    def fingerprint(self) -> str:
        """sha256 of the denoiser's weights and of the adapters of denoiser and text tower."""
        adapted = {name: one for name, one in self.texts.state_dict().items() if "lora_" in name}
        return digest(self.unet.state_dict() | adapted)

    def whole_cells(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size rounded down to multiples of the cell, with a note. Raises UsageError if it is smaller than a
        cell."""
        height, width = (side // self.factor * self.factor for side in size)
        if not height or not width:
            raise UsageError(
                f"a picture of {size[0]}x{size[1]} is smaller than a cell of this model, {self.factor}x{self.factor} "
                f"pixels: give e.g. --size {8 * self.factor}"
            )
        if (height, width) != size:
            _log.warning(
                f"{size[0]}x{size[1]} is not whole in cells of {self.factor} pixels: painting {height}x{width}"
            )
        return height, width

    def encode(self, images: Float[Tensor, "p 3 H W"]) -> Float[Tensor, "p c h w"]:
        """Pictures in [0,1] as scaled latents, the means of their distributions, float32.

        Raises UsageError for sides that are not multiples of the cell.
        """
        check_images(images)
        check_whole(images.shape[-2:], self.factor, "cells")
        mean = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist.mean
        return (mean.float() - self.shift) * self.scale

    def decode(self, latents: Float[Tensor, "p c h w"]) -> Float[Tensor, "p 3 H W"]:
        """Pictures of scaled latents, float32, not clamped to [0,1]."""
        codes = (latents / self.scale + self.shift).to(self.vae.dtype)
        if self.checkpointing and codes.requires_grad:
            made = checkpoint(lambda latents: self.vae.decode(latents).sample, codes, use_reentrant=False)
        else:
            made = self.vae.decode(codes).sample
        return (made.float() + 1) / 2

    def embed_prompts(self, texts: list[str]) -> Conditioning:
        """Text states that the UNet attends to; long texts are truncated, with a note."""
        return self.texts(texts)

    def predict_noise(
        self,
        noisy: Float[Tensor, "p c h w"],
        times: Int[Tensor, " p"],
        conditioning: Conditioning,
        unconditional: Conditioning,
        guidance: float,
    ) -> Float[Tensor, "p c h w"]:
        """The noise in latents at these steps of the schedule, by classifier-free guidance (Ho and Salimans 2021):
        without + guidance * (with_text - without). float32, or float64 of a float64 UNet; differentiable in the latents
        and the conditionings.

        Raises UsageError for a guidance below 0.
        """
        check_guidance(guidance)
        if guidance == 1:
            return self._noise(noisy, times, conditioning)
        with_text, without = self.predict_both(noisy, times, conditioning, unconditional)
        return without + guidance * (with_text - without)

    def predict_both(
        self,
        noisy: Float[Tensor, "p c h w"],
        times: Int[Tensor, " p"],
        conditioning: Conditioning,
        unconditional: Conditioning,
    ) -> tuple[Float[Tensor, "p c h w"], Float[Tensor, "p c h w"]]:
        """The noise in latents with text and without, float32, in one pass; differentiable."""
        count = len(noisy)
        both = unconditional.rows(torch.zeros(count, dtype=torch.long)).joined(conditioning)
        without, with_text = self._noise(torch.cat([noisy, noisy]), torch.cat([times, times]), both).split(count)
        return with_text, without

    def _noise(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        output = self._run(noisy, times, conditioning)
        if self.prediction == "epsilon":
            return output
        kept = self.alphas_cumprod[times].view(-1, 1, 1, 1)
        if self.prediction == "sample":
            return (noisy - kept.sqrt() * output) / (1 - kept).sqrt()
        return kept.sqrt() * output + (1 - kept).sqrt() * noisy  # Salimans and Ho 2022: v = sqrt(a) e - sqrt(1 - a) x

    @torch.no_grad()
    def sample(
        self, prompts: list[str], *, size: tuple[int, int], steps: int, guidance: float, generators: list[Generator]
    ) -> Float[Tensor, "p 3 H W"]:
        """Pictures of the prompts in [0,1] by DDIM (Song et al. 2021), each from its generator's noise.

        The scheduler reads the UNet's own prediction, so that schedules of zero terminal SNR (Lin et al. 2024) are
        sampled as in diffusers. Raises UsageError for more steps than the schedule has, and for a model that predicts
        noise at a step without signal.
        """
        if not 0 < steps <= self.steps:
            message = f"{steps} steps of a schedule of {self.steps}: give 1 to {self.steps}, e.g. 50"
            raise UsageError(message, "out_of_range", argument="steps", given=steps, most=self.steps)
        room = self.steps - 1 - (steps - 1) * (self.steps // steps)  # none for all steps, of which 1,000 would be one
        own = {"clip_sample": False, "steps_offset": min(1, room)}  # as diffusers' StableDiffusionPipeline sets both
        scheduler: Any = DDIMScheduler.from_config({**self.scheduler_config, **own})
        scheduler.set_timesteps(steps, device=self.device)
        if self.prediction == "epsilon" and bool((self.alphas_cumprod[scheduler.timesteps] == 0).any()):
            raise UsageError(
                "this scheduler starts at a step without signal (rescale_betas_zero_snr), where a model that predicts "
                "noise cannot predict a picture: use a model with prediction_type v_prediction, or set "
                'rescale_betas_zero_snr to false or timestep_spacing to "leading" in its scheduler_config.json',
                "no_signal",
            )
        shape = (self.channels, *(side // self.factor for side in size))
        drawn = [torch.randn(shape, generator=one, device=one.device).to(self.device) for one in generators]
        latents = torch.stack(drawn)
        conditioning, empty = self.embed_prompts(prompts), self.embed_prompts([""])
        for time in scheduler.timesteps:
            times = torch.full((len(latents),), int(time), device=self.device)
            output = self._guided(latents, times, conditioning, empty, guidance)
            latents = scheduler.step(output, time, latents).prev_sample
        return self.decode(latents).clamp(0, 1)

    def _guided(
        self, noisy: Tensor, times: Tensor, conditioning: Conditioning, unconditional: Conditioning, guidance: float
    ) -> Tensor:
        """The UNet's own prediction, guided. Noise, velocity and signal are affine in one another at a step, so that
        guidance of any of them is the same."""
        check_guidance(guidance)
        if guidance == 1:
            return self._run(noisy, times, conditioning)
        both = unconditional.rows(torch.zeros(len(noisy), dtype=torch.long)).joined(conditioning)
        without, with_text = self._run(torch.cat([noisy, noisy]), torch.cat([times, times]), both).chunk(2)
        return without + guidance * (with_text - without)

    def _run(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        own = self.unet.dtype
        mixed = autocast(noisy.device, self.dtype) if own == torch.float32 else nullcontext()
        with mixed:
            states = conditioning.states.to(own)
            output = self.unet(noisy.to(own), times, states, encoder_attention_mask=conditioning.mask).sample
        return output.to(torch.promote_types(own, torch.float32))


def check_guidance(guidance: float) -> float:
    """The guidance. Raises UsageError for a negative or infinite one."""
    if not 0 <= guidance < float("inf"):
        raise UsageError(
            f"guidance {guidance:g} would lead away from the text: give 0 (no text), 1 (the text alone) or more, as in "
            "--guidance 30",
            "out_of_range",
            argument="guidance",
            given=guidance,
        )
    return guidance


Guidance = Annotated[float, AfterValidator(check_guidance)]


def base_digest(module: nn.Module) -> str:
    """sha256 of a network's own weights, whatever adapters it has."""
    state = module.state_dict().items()
    return digest({name.replace(".base_layer", ""): one for name, one in state if "lora_" not in name})
