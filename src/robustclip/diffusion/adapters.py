"""Low-rank adapters of a diffusion model's denoiser and text tower, by peft, in diffusers' LoRA format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import nn

from robustclip.diffusion.stable import LatentDiffusion, base_digest
from robustclip.errors import UsageError
from robustclip.runs.files import is_file, new_folder, read_json, sha256, write_json
from robustclip.runs.rng import seeded

try:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict
except ImportError as error:
    raise UsageError("adapters are peft's, of diffusers' models: pip install 'robustclip[align]'") from error

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
CARD: Final = "card.json"
TARGETS: Final = ("to_k", "to_q", "to_v", "to_out.0")
"""The attention projections that MI-TUNE adapts."""
TEXT_TARGETS: Final = (
    *("q_proj", "k_proj", "v_proj", "out_proj"),
    *("query", "key", "value", "attention.output.dense"),
)
"""The same of CLIP's text towers and of BERT's."""


def add_adapter(
    model: LatentDiffusion, *, rank: int = 32, alpha: int = 32, dora: bool = True, text: bool = False, seed: int = 0
) -> list[nn.Parameter]:
    """Add adapters to the attention projections of a frozen denoiser and, with `text`, of its text tower.

    Returns the trainable parameters. Adapters start as the identity. `dora` decomposes weights
    into magnitude and direction (Liu et al. 2024); without it, and on the text tower, adapters are LoRA. Raises
    UsageError if the denoiser has adapters.
    """
    if getattr(model.unet, "peft_config", None):
        raise UsageError("this denoiser has an adapter already: merge it first (`merge_adapter`)")
    config = partial(LoraConfig, r=rank, lora_alpha=alpha, init_lora_weights="gaussian")
    with seeded(seed):
        model.unet.add_adapter(config(use_dora=dora, target_modules=list(TARGETS)))
        if text:  # LoRA: transformers' load_adapter, which diffusers calls, drops DoRA's magnitudes
            model.texts.tower.add_adapter(config(target_modules=list(TEXT_TARGETS)))
    trained = dict(trainable(model))
    # MI-TUNE's release parses --use_dora and trains LoRA: check the layers.
    assert dora == any("lora_magnitude_vector" in name for name in trained)
    return list(trained.values())


def trainable(model: LatentDiffusion) -> list[tuple[str, nn.Parameter]]:
    """The adapters' parameters by name."""
    towers = (*model.unet.named_parameters(), *model.texts.named_parameters(prefix="text_encoder"))
    return [(name, one) for name, one in towers if one.requires_grad]


def save_adapter(model: LatentDiffusion, folder: Path, card: Mapping[str, Any]) -> None:
    """Write the adapter as a folder that diffusers' `load_lora_weights` reads, with a card; atomic.

    Raises UsageError if the path exists.
    """
    layers: dict[str, Any] = {}
    for name, module in (("unet", model.unet), ("text_encoder", model.texts.tower)):
        if getattr(module, "peft_config", None):
            config = module.peft_config["default"].to_dict()
            metadata = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
            layers |= {f"{name}_lora_layers": get_peft_model_state_dict(module, adapter_name="default")}
            layers |= {f"{name}_lora_adapter_metadata": metadata}
    with new_folder(folder) as draft:
        StableDiffusionPipeline.save_lora_weights(draft, **layers)
        described = {"base": model.name, "weights_sha256": sha256(draft / WEIGHTS)}
        described |= {"base_sha256": base_digest(model.unet), "text_sha256": base_digest(model.texts.tower)}
        write_json(draft / CARD, {**card, **described})


def load_adapter(model: LatentDiffusion, folder: str | Path) -> None:
    """Add a saved adapter to a diffusion model's denoiser and, if it has weights for it, text tower; frozen.

    Raises UsageError for a folder without adapter, an adapter of another model, and weights that differ from the card.
    """
    folder = Path(folder)
    if not is_file(folder / WEIGHTS):
        raise UsageError(f"{str(folder)[:200]} holds no adapter: give a folder with {WEIGHTS}, as `align` writes it")
    card = read_json(folder / CARD) if is_file(folder / CARD) else {}
    if card.get("weights_sha256") not in (None, sha256(folder / WEIGHTS)):
        raise UsageError(f"{folder / WEIGHTS} is not the file that its card describes: copy the folder again")
    for key, part, module in (
        ("base_sha256", "denoiser", model.unet),
        ("text_sha256", "text tower", model.texts.tower),
    ):
        if card.get(key) not in (None, base_digest(module)):
            raise UsageError(
                f"{folder} adapts the {part} of {card.get('base')}, and {model.name} has another: load it on the former"
            )
    try:
        model.unet.load_lora_adapter(folder, prefix="unet", weight_name=WEIGHTS, use_safetensors=True)
        state, _, metadata = StableDiffusionPipeline.lora_state_dict(
            folder, weight_name=WEIGHTS, use_safetensors=True, return_lora_metadata=True
        )
        texts, config = (_below("text_encoder.", one or {}) for one in (state, metadata))
        if texts:  # as diffusers does, which accepts only CLIP towers
            model.texts.tower.load_adapter(adapter_state_dict=texts, peft_config=LoraConfig(**config))
    except (RuntimeError, ValueError, KeyError) as error:
        raise UsageError(f"the adapter of {folder} does not fit this denoiser: {str(error)[:200]}") from error
    model.requires_grad_(False)


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): one for name, one in values.items() if name.startswith(prefix)}


def merge_adapter(model: LatentDiffusion) -> None:
    """Merge the denoiser's adapter into its weights in place, and remove it."""
    model.unet.fuse_lora()
    model.unet.unload_lora()
    model.requires_grad_(False)
