"""Low-rank adapters of a diffusion model's denoiser, by peft, in diffusers' LoRA format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from robustclip.diffusion.stable import LatentDiffusion
from robustclip.errors import UsageError
from robustclip.referees.weights import digest
from robustclip.runs.files import is_file, new_folder, read_json, sha256, write_json

try:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict
except ImportError as error:
    raise UsageError("adapters are peft's, of diffusers' models: pip install 'robustclip[align]'") from error

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
CARD: Final = "card.json"
TARGETS: Final = ("to_k", "to_q", "to_v", "to_out.0")
"""The attention projections that MI-TUNE adapts."""


def add_adapter(
    model: LatentDiffusion, *, rank: int = 32, alpha: int = 32, dora: bool = True, seed: int = 0
) -> list[nn.Parameter]:
    """Put adapters on the attention projections of a frozen denoiser; its trainable parameters, the adapters' alone.

    At first they change nothing. `dora` decomposes weights into magnitude and direction (Liu et al. 2024); without it
    they are LoRA's. Raises UsageError for a denoiser that has adapters.
    """
    if getattr(model.unet, "peft_config", None):
        raise UsageError("this denoiser has an adapter already: merge it first (`merge_adapter`)")
    config = LoraConfig(
        r=rank, lora_alpha=alpha, use_dora=dora, init_lora_weights="gaussian", target_modules=list(TARGETS)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.unet.add_adapter(config)
    trained = dict(trainable(model))
    # MI-TUNE's release parses --use_dora and trains LoRA: what was asked for is checked on the layers.
    assert dora == any("lora_magnitude_vector" in name for name in trained)
    return list(trained.values())


def trainable(model: LatentDiffusion) -> list[tuple[str, nn.Parameter]]:
    """The adapters' parameters by name."""
    return [(name, one) for name, one in model.unet.named_parameters() if one.requires_grad]


def base_digest(model: LatentDiffusion) -> str:
    """sha256 of the denoiser's own weights, whatever adapters it has."""
    state = model.unet.state_dict().items()
    return digest({name.replace(".base_layer", ""): one for name, one in state if "lora_" not in name})


def save_adapter(model: LatentDiffusion, folder: Path, card: Mapping[str, Any]) -> None:
    """Write the adapter as a folder that diffusers' `load_lora_weights` reads, with a card; whole or not at all.

    Raises UsageError where something has that name.
    """
    config = model.unet.peft_config["default"].to_dict()
    metadata = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    with new_folder(folder) as draft:
        StableDiffusionPipeline.save_lora_weights(
            draft, unet_lora_layers=get_peft_model_state_dict(model.unet), unet_lora_adapter_metadata=metadata
        )
        kept = {"base": model.name, "base_sha256": base_digest(model), "weights_sha256": sha256(draft / WEIGHTS)}
        write_json(draft / CARD, {**card, **kept})


def load_adapter(model: LatentDiffusion, folder: str | Path) -> None:
    """Put a saved adapter on a diffusion model's denoiser, frozen.

    Raises UsageError for a folder without one, an adapter of another denoiser, and weights that are not the card's.
    """
    folder = Path(folder)
    if not is_file(folder / WEIGHTS):
        raise UsageError(f"{str(folder)[:200]} holds no adapter: give a folder with {WEIGHTS}, as `align` writes it")
    card = read_json(folder / CARD) if is_file(folder / CARD) else {}
    if card.get("weights_sha256") not in (None, sha256(folder / WEIGHTS)):
        raise UsageError(f"{folder / WEIGHTS} is not the file that its card describes: copy the folder again")
    if card.get("base_sha256") not in (None, base_digest(model)):
        raise UsageError(
            f"{folder} adapts the denoiser of {card.get('base')}, and {model.name} has another: load it on the former"
        )
    try:
        model.unet.load_lora_adapter(folder, prefix="unet", weight_name=WEIGHTS, use_safetensors=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UsageError(f"the adapter of {folder} does not fit this denoiser: {str(error)[:200]}") from error
    model.requires_grad_(False)


def merge_adapter(model: LatentDiffusion) -> None:
    """Add the adapter to the denoiser's own weights, in place; nothing of it is left."""
    model.unet.fuse_lora()
    model.unet.unload_lora()
    model.requires_grad_(False)
