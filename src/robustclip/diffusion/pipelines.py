"""Load diffusion models by name or from diffusers folders (model_index.json, vae/, unet/, scheduler/, text tower)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from robustclip.data import embedded
from robustclip.diffusion.fitting import WEIGHTS, write_model
from robustclip.diffusion.stable import CLIPStates, LatentDiffusion, SentenceStates, TextStates
from robustclip.errors import UsageError
from robustclip.referees.sentence import MINILM
from robustclip.referees.weights import check_finite, check_fit, load_strictly, read_weights
from robustclip.runs.devices import UNNAMED, pick_dtype
from robustclip.runs.files import is_file, new_folder, read_json, sha256, write_json

try:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
except ImportError as error:
    raise UsageError("generators are diffusers': pip install 'robustclip[synthesis]'") from error

INDEX, CARD, CONFIG = "model_index.json", "card.json", "config.json"
PARTS: Final = ("vae", "unet", "scheduler")


def diffusion_names() -> list[str]:
    """Names of the embedded diffusion models."""
    return list(embedded.folders("generators", INDEX))


def load_diffusion(
    given: str | Path,
    device: str | torch.device = "cpu",
    *,
    dtype: str | torch.dtype | None = None,
    slicing: bool = False,
    checkpointing: bool = False,
) -> LatentDiffusion:
    """A latent diffusion model by its embedded name, or from a pipeline's folder as diffusers writes it.

    `dtype` is what it computes in, see `diffusion_dtype`.

    Raises UsageError for a folder that lacks a part or has another in its place, and weights that are not safetensors
    or do not fit the config; RunError for damaged weights and NaN or infinity.
    """
    folder = embedded.folders("generators", INDEX).get(str(given), Path(given))
    if not is_file(folder / INDEX):
        names = ", ".join(diffusion_names()) or "none"
        raise UsageError(
            f"there is no diffusion model {str(given)[:200]!r}: give a pipeline's folder with {INDEX} (as diffusers' "
            f"save_pretrained writes it), or a name ({names}){embedded.hint(given)}",
            "unknown_diffusion_model",
            given=given,
        )
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UsageError(
                f"{folder} has no {part}/: a pipeline has {', '.join(f'{one}/' for one in PARTS)}. Save it whole, with "
                "pipeline.save_pretrained(FOLDER, safe_serialization=True)",
                "missing_part",
                part=part,
            )
    dtype = diffusion_dtype(dtype, device)
    scheduler = _scheduler(folder / "scheduler")
    vae = load_vae(folder / "vae", device)
    unet = load_model(folder / "unet", UNet2DConditionModel).to(device)
    texts = _texts(folder).to(device)
    return LatentDiffusion(
        vae,
        unet,
        scheduler,
        texts,
        name=folder.name,
        dtype=dtype,
        slicing=slicing,
        checkpointing=checkpointing,
    ).to(device)


def diffusion_dtype(dtype: str | torch.dtype | None, device: str | torch.device) -> torch.dtype:
    """The dtype that a diffusion model computes in: the named one; float32 for "auto", "measure" and None.

    Raises UsageError for an unknown name.
    """
    return pick_dtype("float32" if dtype is None or dtype in UNNAMED else dtype, device)


def load_vae(folder: Path, device: str | torch.device = "cpu") -> Any:
    """A frozen AutoencoderKL from its folder; see `load_diffusion`."""
    return load_model(folder, AutoencoderKL).to(device)


def load_model(folder: Path, kind: Any) -> Any:
    """A model of diffusers from its folder: config.json and safetensors, in float32, frozen, in eval mode."""
    config = _config(folder, kind.__name__)
    try:
        with torch.device("meta"):  # so that no config allocates memory
            model: Any = kind.from_config(config)
    except Exception as error:  # a malformed config can raise any exception
        message = f"{folder / CONFIG} is not a config of {kind.__name__} ({str(error)[:200]})"
        raise UsageError(message, "not_a_config", path=folder / CONFIG) from error
    _fill(model, folder, WEIGHTS)
    return model.eval().requires_grad_(False)


def save_diffusion(
    folder: Path, vae: Any, unet: Any, schedule: Mapping[str, Any], card: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write a pipeline folder atomically; its card names the embedded text tower. Raises UsageError if the path
    exists."""
    with new_folder(folder) as draft:
        for name, model in (("vae", vae), ("unet", unet)):
            (draft / name).mkdir()
            write_model(model, draft / name, half=half)
        DDIMScheduler.from_config(dict(schedule)).save_config(draft / "scheduler")
        parts = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel", "scheduler": "DDIMScheduler"}
        index = {
            "_class_name": "StableDiffusionPipeline",
            **{name: ["diffusers", kind] for name, kind in parts.items()},
        }
        nothing = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
        write_json(draft / INDEX, {**index, **{name: [None, None] for name in nothing}})
        hashes = {f"{name}/{WEIGHTS}": sha256(draft / name / WEIGHTS) for name in ("vae", "unet")}
        write_json(draft / CARD, {**card, "text_tower": MINILM, "weights_sha256": hashes})


def _scheduler(folder: Path) -> Any:
    path = folder / "scheduler_config.json"
    if not is_file(path):
        message = f"{folder} has no {path.name}: it says how noise was added in training; save the pipeline whole"
        raise UsageError(message, "missing_file", path=path)
    config = read_json(path)
    stated = config.get("prediction_type") if isinstance(config, dict) else None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind is not None and kind not in ("DDIMScheduler", *DDIMScheduler._compatibles):  # diffusers' own list
        raise UsageError(
            f"{path} is of a {str(kind)[:60]}, whose noise levels are not DDIM's: give a Stable Diffusion 1.x or 2.x "
            "pipeline, whose scheduler has betas (DDIM, DDPM, PNDM, Euler, DPM-Solver and their kin)"
        )
    try:
        return DDIMScheduler.from_config({**config, "prediction_type": stated or "epsilon"})
    except Exception as error:
        raise UsageError(
            f"{path} is not a config of a scheduler ({str(error)[:200]})", "not_a_config", path=path
        ) from error


def _texts(folder: Path) -> TextStates:
    """The folder's text tower, or the embedded one if the card names it."""
    if (folder / "text_encoder").is_dir():
        return CLIPStates(_text_encoder(folder / "text_encoder"), _tokenizer(folder / "tokenizer"))
    card = read_json(folder / CARD) if is_file(folder / CARD) else {}
    if card.get("text_tower") != MINILM:
        message = f"{folder} has no text_encoder/, and no {CARD} that names a text tower: save the pipeline whole"
        raise UsageError(message, "missing_part", part="text_encoder")
    return SentenceStates()


def _text_encoder(folder: Path) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = _config(folder, "CLIPTextModel")
    try:
        with torch.device("meta"):  # so that no config allocates memory
            bare: Any = CLIPTextModel(CLIPTextConfig.from_dict(config))
    except Exception as error:
        raise UsageError(f"{folder / CONFIG} is not a config of a CLIPTextModel ({str(error)[:200]})") from error
    weights, source = _read(folder, "model.safetensors")
    weights = _like(weights, bare.state_dict())
    check_fit(bare, weights, source=source, hint="Give a whole folder, or save it again")
    model: Any = CLIPTextModel(CLIPTextConfig.from_dict(config))  # with buffers that are not in the file
    load_strictly(model, weights, source=source)
    return model


def _like(weights: dict[str, torch.Tensor], names: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Keys with or without the prefix `text_model.`, which versions of transformers differ in."""
    prefix = "text_model."
    if any(name.startswith(prefix) for name in names):
        return {name if name.startswith(prefix) else f"{prefix}{name}": value for name, value in weights.items()}
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise UsageError(
            f"{folder} contains no CLIP tokenizer ({str(error)[:200]}): save the pipeline whole"
        ) from error


def _config(folder: Path, kind: str) -> dict[str, Any]:
    if not is_file(folder / CONFIG):
        raise UsageError(f"{folder} has no {CONFIG}: give a whole pipeline's folder, as diffusers writes it")
    config = read_json(folder / CONFIG)
    named = (
        config.get("_class_name") or (config.get("architectures") or [None])[0] if isinstance(config, dict) else None
    )
    if named != kind:
        message = f"{folder} holds a {str(named)[:60]} instead of a {kind}: give a Stable Diffusion pipeline"
        raise UsageError(message, "other_class", found=named, expected=kind)
    return config


def _fill(model: nn.Module, folder: Path, name: str) -> None:
    """Load weights into a model on the meta device."""
    weights, source = _read(folder, name)
    check_fit(model, weights, source=source, hint="Give a whole folder, or save it again")
    model.load_state_dict(weights, assign=True)
    check_finite(model, source=source)


def _read(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], str]:
    """Weights in float32 by current names, and their file."""
    stem = name.removesuffix(".safetensors")
    path = next((one for one in (folder / name, folder / f"{stem}.fp16.safetensors") if is_file(one)), None)
    if path is None:
        raise UsageError(
            f"{folder} has no {name}: weights are loaded from safetensors only; save the pipeline with "
            "safe_serialization=True",
            "no_weights",
            folder=folder,
        )
    weights = {key: value for key, value in read_weights(path).items() if not key.endswith("position_ids")}
    return {_renamed(key): value.float() for key, value in weights.items()}, str(path)


OLD: Final = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an autoencoder's attention layers in folders of 2022, and their current names."""


def _renamed(key: str) -> str:
    parts = key.split(".")
    if "attentions" in parts and len(parts) > 2 and parts[-2] in OLD:
        parts[-2] = OLD[parts[-2]]
    return ".".join(parts)
