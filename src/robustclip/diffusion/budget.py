"""Memory and FLOPs of a gradient through a whole diffusion chain, counted on the meta device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustclip.diffusion.samplers import SAMPLERS, Levels, SamplerName
from robustclip.diffusion.stable import LatentDiffusion
from robustclip.errors import UsageError
from robustclip.runs.devices import free_memory, saved_bytes
from robustclip.runs.files import read_json

_log = logging.getLogger(__name__)

try:
    from diffusers import AutoencoderKL, UNet2DConditionModel
except ImportError as error:
    raise UsageError("generators are diffusers': pip install 'robustclip[synthesis]'") from error

TOKENS: Final = 77  # context length of Stable Diffusion's denoisers
FUSED: Final = 2  # times the free memory may be counted, because fused attention stores less than is counted (ours)
SD21: Final = "stable-diffusion-2.1-base"
CONFIGS: Final[dict[str, Any]] = {  # of the published model, as diffusers writes them; the rest are its defaults
    "unet": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "attention_head_dim": [5, 10, 20, 20],
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "sample_size": 512,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
}
LARGE: Final = 100_000_000  # weights of a denoiser whose budget is reported


@dataclass(frozen=True)
class Budget:
    """Budget of one picture, in bytes and FLOPs. weights: of denoiser and autoencoder; evaluation, decoding:
    activations stored for the gradient of one evaluation with guidance and one decoding; flops, decoding_flops: of
    each, forward.

    Temporary memory is not counted; attention is counted with its matrices, which fused kernels do not store.
    """

    weights: int
    evaluation: int
    decoding: int
    flops: float
    decoding_flops: float

    def peak(self, pictures: int, decoded: int = 1) -> int:
        """Peak memory of `pictures`: one evaluation, or `decoded` decodings (2 for EDICT), of each."""
        return self.weights + pictures * max(self.evaluation, decoded * self.decoding)

    def step(self, evaluations: int, decoded: int = 1) -> float:
        """FLOPs of one optimisation step of a picture without the referee: each evaluation twice forward and once
        backward, which costs as much because no weight has a gradient."""
        return 3 * evaluations * self.flops + 2 * decoded * self.decoding_flops

    def describe(self, pictures: int, evaluations: int, decoded: int = 1) -> str:
        """The budget as text."""
        return (
            f"a step takes about {pictures * self.step(evaluations, decoded) / 1e12:,.0f} TFLOP and "
            f"{self.peak(pictures, decoded) / 1e9:.1f} GB for {pictures} picture{'s' if pictures > 1 else ''}, without "
            "the referee and for any number of chain steps"
        )


def budget(
    unet: Mapping[str, Any], vae: Mapping[str, Any], size: tuple[int, int], *, dtype: torch.dtype = torch.float16
) -> Budget:
    """Budget of models with these diffusers configs, with weights and arithmetic in `dtype`, for pictures of `size`
    (height, width).
    """
    with torch.device("meta"):
        denoiser: Any = UNet2DConditionModel.from_config(dict(unet))
        autoencoder: Any = AutoencoderKL.from_config(dict(vae))
    for model in (denoiser, autoencoder):
        nn.Module.to(model, dtype).eval().requires_grad_(False)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    cells = (unet.get("in_channels", 4), size[0] // factor, size[1] // factor)
    text = torch.zeros(2, TOKENS, unet["cross_attention_dim"], dtype=dtype, device="meta")
    times = torch.zeros(2, device="meta")

    def latents(count: int) -> Tensor:
        return torch.zeros(count, *cells, dtype=dtype, device="meta", requires_grad=True)

    evaluation, flops = counted(denoiser, lambda: denoiser(latents(2), times, text).sample)
    decoding, decoding_flops = counted(autoencoder, lambda: autoencoder.decode(latents(1)).sample)
    weights = sum(one.nbytes for model in (denoiser, autoencoder) for one in model.parameters())
    return Budget(weights, evaluation, decoding, flops, decoding_flops)


def plan_tuning(
    *,
    model: Annotated[str, "a pipeline's folder, of which only configs are read, or SD 2.1-base by this name"] = SD21,
    count: Annotated[PositiveInt, "prompts"] = 700,
    samples: Annotated[PositiveInt, "samples per prompt (M)"] = 50,
    rounds: PositiveInt = 1,
    sampling_steps: PositiveInt = 100,
    by: Annotated[Literal["mi", "gap"], "selection score: mi costs no evaluation, gap 64 per sample"] = "mi",
    steps: Annotated[PositiveInt, "training steps per round"] = 300,
    batch_size: PositiveInt = 400,
    at_once: Annotated[PositiveInt, "batch elements per denoiser pass"] = 8,
    size: Annotated[PositiveInt, "height and width of samples"] = 512,
    tflops: Annotated[PositiveFloat, "throughput of a GPU; an A100 in half precision reaches about 100"] = 100.0,
) -> dict[str, float]:
    """FLOPs, hours and memory of `robustclip align mi-tune`, without weights or a network.

    robustclip plan mi-tune --samples 50 --tflops 100

    Sampling takes 2 evaluations of the denoiser per step, training 3 times one forward pass per element. MI-TUNE's
    authors report 24 hours of sampling and 8 of training on one A100 for the defaults.
    """
    configs = _configs(model)
    found = budget(configs["unet"], configs["vae"], (size, size))
    one = found.flops / 2
    drawn = rounds * count * samples
    sampling = drawn * (2 * sampling_steps + (64 if by == "gap" else 0)) * one
    training = 3 * rounds * steps * batch_size * one
    return {
        "samples": drawn,
        "sampling EFLOP": sampling / 1e18,
        "training EFLOP": training / 1e18,
        "sampling GPU hours": sampling / tflops / 3.6e15,
        "training GPU hours": training / tflops / 3.6e15,
        "GB while training": (found.weights + at_once * found.evaluation / 2) / 1e9,
    }


def plan_doodl(
    *,
    model: Annotated[str, "a pipeline's folder, of which only configs are read, or SD 2.1-base by this name"] = SD21,
    size: Annotated[PositiveInt, "height and width of pictures"] = 512,
    sampler: SamplerName = "bdia",
    chain_steps: PositiveInt = 20,
    steps: Annotated[PositiveInt, "optimisation steps"] = 50,
    batch_size: Annotated[PositiveInt, "pictures per batch"] = 1,
    tflops: Annotated[PositiveFloat, "throughput of a GPU; an A100 in half precision reaches about 100"] = 100.0,
) -> dict[str, float]:
    """Memory and time of a batch of `robustclip synthesize doodl`, without weights or a network.

    robustclip plan doodl --sampler edict --chain-steps 50

    The referee is not counted. Raises UsageError for a folder without configs, a size that is not a multiple of a
    latent's cell, and steps that do not divide a schedule of 1000.
    """
    configs = _configs(model)
    cell = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    if size % cell:
        near = max(size // cell, 1) * cell
        raise UsageError(
            f"{size} is not a multiple of a latent's {cell} pixels: give --size {near}", "size_not_divisible"
        )
    couplings = SAMPLERS[sampler](Levels.of({"num_train_timesteps": 1000}, chain_steps))
    evaluations, decoded = sum(bool(one.noise) for one in couplings), 2 if sampler == "edict" else 1
    found = budget(configs["unet"], configs["vae"], (size, size))
    flops = batch_size * found.step(evaluations, decoded)
    return {
        "evaluations a sample": evaluations,
        "weights GB": found.weights / 1e9,
        "peak GB": found.peak(batch_size, decoded) / 1e9,
        "TFLOP a step": flops / 1e12,
        "seconds a step": flops / tflops / 1e12,
        "minutes": steps * flops / tflops / 6e13,
    }


def _configs(model: str) -> dict[str, Any]:
    """The configs of denoiser and autoencoder."""
    if model == SD21:
        return CONFIGS
    return {part: read_json(Path(model) / part / "config.json") for part in CONFIGS}


def report_budget(
    model: LatentDiffusion, size: tuple[int, int], *, pictures: int, evaluations: int, decoded: int = 1
) -> None:
    """Report the cost of a step before the first one, for large denoisers.

    Raises UsageError, with the number of pictures that fit, if memory does not hold one evaluation of each.
    """
    if sum(one.numel() for one in model.unet.parameters()) < LARGE:
        return
    found = budget(model.unet.config, model.vae.config, size, dtype=model.dtype)
    _log.info(f"{model.name}: {found.describe(pictures, evaluations, decoded)}")
    free = free_memory(model.device)
    if free is not None and (needed := found.peak(pictures, decoded) - found.weights) > FUSED * free:
        fit = int(FUSED * free / (needed / pictures))
        raise UsageError(
            f"{needed / 1e9:.1f} GB for {pictures} pictures, and {free / 1e9:.1f} GB are free: give --batch-size "
            f"{max(fit, 1)}, a smaller --size, or --dtype bfloat16"
        )


def counted(model: Any, call: Callable[[], Tensor]) -> tuple[int, float]:
    """(bytes that the call stores for its gradient, without weights; its FLOPs)."""
    with FlopCounterMode(display=False) as flops:
        saved = saved_bytes(call, (*model.parameters(), *model.buffers()))
    return saved, float(flops.get_total_flops())
