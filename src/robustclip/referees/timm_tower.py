"""Export an image tower as a timm model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from robustclip.errors import UsageError
from robustclip.referees import conversion, openclip
from robustclip.referees.base import TwoTower
from robustclip.referees.weights import load_strictly

Config = Mapping[str, Any]

WEIGHTS = "model.safetensors"
VIT = "vit_base_patch32_clip_224"
"""timm's ViT with CLIP's pre-norm; the config records sizes and activation as arguments."""

OF_OTHER_WEIGHTS = (
    "tag",
    "url",
    "hf_hub_id",
    "license",
    "origin_url",
    "paper_ids",
    "paper_name",
    "notes",
    "description",
)
"""Entries of timm's config that describe its published weights."""


def timm_model(referee: TwoTower) -> Any:
    """The image tower as a timm model, on the CPU and in eval mode: (B,3,h,w) normalised pixels to (B,D) embeddings.

    The projection to D is timm's classifier. Verifies that unit embeddings agree within `conversion.TOLERANCE`. Raises
    UsageError if timm has no such model.
    """
    referee = conversion.as_open_clip(referee)
    described = openclip.spelt_out(referee.card.architecture)
    vision = described["vision_cfg"]
    build: Callable[[TwoTower, Config], Any] = _of_timm if vision["timm_model_name"] else _of_open_clip
    model = build(referee, described).eval().requires_grad_(False)
    largest = conversion.difference(model, referee.image_tower, conversion.probe(referee))
    conversion.refuse_difference(referee.card.name, f"timm's {model.default_cfg['architecture']}", largest)
    model.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in OF_OTHER_WEIGHTS}
    return model


def save_timm(referee: TwoTower, folder: Path, *, half: bool = False) -> list[str]:
    """Write a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`; returns the names of weight files.

    config.json holds the arguments that build the model, and mean, std, input size and interpolation, for
    `timm.data.resolve_model_data_config`.
    """
    model = timm_model(referee)
    values = referee.preprocess.config()
    data = {
        "input_size": (3, *values["size"]),
        "mean": tuple(values["mean"]),
        "std": tuple(values["std"]),
        "interpolation": values["interpolation"],
        "crop_pct": 1.0,
        "crop_mode": {"shortest": "center", "squash": "squash", "longest": "border"}[values["resize_mode"]],
    }
    save_for_hf(model.half() if half else model, str(folder), safe_serialization=True, data_config=data)
    return [WEIGHTS]


def _of_timm(referee: TwoTower, described: Config) -> Any:
    """A timm tower of open_clip: the weights below `trunk.`, and its linear projection, if any."""
    vision, width = described["vision_cfg"], described["embed_dim"]
    proj, pool = vision["timm_proj"], vision["timm_pool"]
    if proj not in ("", "none", "linear") or pool.endswith("_attn"):
        raise _refused(f"{vision['timm_model_name']} with timm_proj={proj!r} and timm_pool={pool!r}")
    weights = referee.image_tower.state_dict()
    trunk = {name.removeprefix("trunk."): value for name, value in weights.items() if name.startswith("trunk.")}
    options: dict[str, Any] = {"global_pool": pool} if pool else {}
    model: Any = timm.create_model(vision["timm_model_name"], num_classes=0 if proj == "none" else width, **options)
    if proj == "linear":
        classifier = model.get_classifier()
        name = next((name for name, module in model.named_modules() if module is classifier), "")
        if not isinstance(classifier, nn.Linear):
            raise _refused(f"{vision['timm_model_name']} with a classifier that is not a linear projection")
        trunk[f"{name}.weight"] = weights["head.proj.weight"]
        trunk[f"{name}.bias"] = weights.get("head.proj.bias", torch.zeros(width))
    load_strictly(model, trunk, source=f"{referee.card.name} as timm's {vision['timm_model_name']}")
    return model


def _of_open_clip(referee: TwoTower, described: Config) -> Any:
    """open_clip's ViT, with timm's own conversion of weights."""
    vision = described["vision_cfg"]
    unsupported = list(conversion.unsupported_vision(described, openclip.spelt_out({})))
    if unsupported:
        raise _refused("; ".join(unsupported))
    sizes: dict[str, Any] = {
        "embed_dim": vision["width"],
        "depth": vision["layers"],
        "num_heads": vision["width"] // vision["head_width"],
        "mlp_ratio": vision["mlp_ratio"],
        "patch_size": vision["patch_size"],
        "img_size": referee.image_size[0],
        "num_classes": described["embed_dim"],
    }
    if described.get("quick_gelu", False):
        sizes["act_layer"] = "quick_gelu"
    model: Any = timm.create_model(VIT, **sizes)
    weights = {f"visual.{name}": value for name, value in referee.image_tower.state_dict().items()}
    load_strictly(model, checkpoint_filter_fn(weights, model), source=f"{referee.card.name} as timm's {VIT}")
    return model


def _refused(what: str) -> UsageError:
    return UsageError(
        f"timm has no model like {what}: export the tower with --format image-tower, or both with --format open_clip",
        "unsupported",
        parts=what,
    )
