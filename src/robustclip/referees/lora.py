"""Merge a LoRA adapter of an image tower into its weights (Hu et al. 2021): W + alpha/r B A."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.weights import read_weights, some, weights_file
from robustclip.runs.files import read_json

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = ("adapter_model",)
FACTOR: Final = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
RENAMED: Final = (
    (r"^blocks\.(\d+)\.attn\.qkv$", r"transformer.resblocks.\1.attn.in_proj"),
    (r"^blocks\.(\d+)\.attn\.proj$", r"transformer.resblocks.\1.attn.out_proj"),
    (r"^blocks\.(\d+)\.mlp\.fc1$", r"transformer.resblocks.\1.mlp.c_fc"),
    (r"^blocks\.(\d+)\.mlp\.fc2$", r"transformer.resblocks.\1.mlp.c_proj"),
)
"""Layers of DINO's ViT, as which DreamSim and R-CLIP (utils_lora.py) rename CLIP's, and open_clip's names."""


@dataclass(frozen=True)
class Adapter:
    """Factors A (r, in) and B (out, r) by layer, and `scale`, alpha/r, that multiplies their product."""

    path: Path
    factors: dict[str, tuple[Tensor, Tensor]]
    scale: float

    def __str__(self) -> str:
        name, (down, up) = next(iter(self.factors.items()))
        return f"rank {len(down)}, {len(self.factors)} layers, {name} of {up.shape[0]}x{down.shape[1]}"

    def fits(self, model_cfg: Mapping[str, Any]) -> bool:
        """Whether the image tower of an open_clip `model_cfg` is a ViT with layers of these shapes."""
        vision = model_cfg["vision_cfg"]
        if "timm_model_name" in vision or not isinstance(vision.get("layers", 12), int):
            return False
        width = vision.get("width", 768)
        hidden = int(width * vision.get("mlp_ratio", 4.0))
        sizes = {"in_proj": (3 * width, width), "out_proj": (width, width), "c_fc": (hidden, width)}
        sizes["c_proj"] = (width, hidden)
        for name, (down, up) in self.factors.items():
            layer = renamed(name)
            block = re.search(r"resblocks\.(\d+)\.", layer)
            if block is None or int(block[1]) >= vision.get("layers", 12):
                return False
            if sizes.get(layer.rpartition(".")[2]) != (up.shape[0], down.shape[1]):
                return False
        return True


def find(path: Path) -> Adapter | None:
    """The adapter of a PEFT folder, or of its weight file with adapter_config.json beside it; None for other files.

    Raises UsageError where the scale is not given, and for adapters that are more than LoRA of linear layers.
    """
    folder = path if path.is_dir() else path.parent
    file = weights_file(folder, WEIGHTS) if path.is_dir() else path
    if file is None or not (path.is_dir() or file.name.startswith(WEIGHTS)):
        return None
    weights = read_weights(file)
    factors: dict[str, dict[str, Tensor]] = {}
    others = []
    for name, value in weights.items():
        if (found := FACTOR.fullmatch(name)) is None:
            others.append(name)
        else:
            factors.setdefault(found[1], {})[found[2]] = value
    halves = [name for name, pair in factors.items() if set(pair) != {"A", "B"}]
    if others or halves or not factors or any(value.ndim != 2 for value in weights.values()):
        raise UsageError(
            f"{file} is not a plain LoRA adapter: it also holds {some(sorted(others + halves))}. Merge it with the "
            "library that trained it, model.merge_and_unload(), and give the merged weights",
            "strange_adapter",
            path=str(file),
        )
    pairs = {name: (pair["A"], pair["B"]) for name, pair in factors.items()}
    wrong = [name for name, (down, up) in pairs.items() if len(down) != up.shape[1]]
    if wrong:
        raise UsageError(f"{file}: the ranks of A and B differ in {some(wrong)}", "strange_adapter", path=str(file))
    return Adapter(path, pairs, _scale(folder / CONFIG, file, len(next(iter(pairs.values()))[0])))


def _scale(config: Path, file: Path, rank: int) -> float:
    """alpha/r, or alpha/sqrt(r) for rsLoRA."""
    values = read_json(config) if config.is_file() else None
    alpha = values.get("lora_alpha") if isinstance(values, dict) else None
    if not isinstance(values, dict) or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UsageError(
            f"{file} is a LoRA adapter, and lora_alpha, the scale of its product, is not in the weights: put PEFT's "
            f'{CONFIG} beside it, e.g. {{"peft_type": "LORA", "r": {rank}, "lora_alpha": {rank}}}',
            "no_adapter_config",
            path=str(file),
        )
    odd = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if values.get(key)]
    if odd or values.get("bias", "none") != "none" or values.get("r", rank) != rank:
        raise UsageError(
            f"{config} describes more than LoRA of one rank ({some(odd) or 'bias or r'}): merge it with the library "
            "that trained it, model.merge_and_unload(), and give the merged weights",
            "strange_adapter",
            path=str(config),
        )
    return float(alpha) / (rank**0.5 if values.get("use_rslora") else rank)


def renamed(name: str) -> str:
    """open_clip's name of a layer, without what wraps the tower."""
    parts = name.split(".")
    for start in range(len(parts)):
        rest = ".".join(parts[start:])
        for pattern, ours in RENAMED:
            if re.match(pattern, rest):
                return re.sub(pattern, ours, rest)
    return name


def merge(adapter: Adapter, weights: Mapping[str, Tensor], base: str) -> dict[str, Tensor]:
    """`weights` of an image tower with the adapter's products added, in float32.

    Raises UsageError, naming the layers, where the tower has no such layers or they are of another shape.
    """
    merged, lost = dict(weights), []
    for name, (down, up) in adapter.factors.items():
        key = _key(renamed(name), weights)
        if key is None or weights[key].shape != (up.shape[0], down.shape[1]):
            shape = "no such layer" if key is None else tuple(weights[key].shape)
            lost.append(f"{name} {(up.shape[0], down.shape[1])} for {shape}")
        else:
            product = adapter.scale * (up.float() @ down.float())
            merged[key] = (weights[key].float() + product.to(weights[key].device)).to(weights[key].dtype)
    if lost:
        message = f"{adapter.path} ({adapter}) does not fit {base}: {some(lost)}"
        raise UsageError(message, "adapter_of_another_model", path=str(adapter.path))
    return merged


def _key(layer: str, weights: Mapping[str, Tensor]) -> str | None:
    """The tensor of a layer: its name, whatever wraps the tower, with `.weight`, or `_weight` in attention."""
    parts = layer.split(".")
    names = (".".join(parts[start:]) for start in range(len(parts)))
    return next((name + end for name in names for end in (".weight", "_weight") if name + end in weights), None)
