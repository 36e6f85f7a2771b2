"""Recognise a weight file by the names, shapes and types of its tensors."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees import conversion, lora
from robustclip.referees.folder import LOGITS, Towers, split_towers
from robustclip.referees.openclip import architectures_where, build_image_tower, builtin_config, exists_with_quick_gelu
from robustclip.referees.released import all_released
from robustclip.referees.weights import check_fit, read_weights, some

_log = logging.getLogger(__name__)

QUICK = "-quickgelu"
OF_TRANSFORMERS = ("vision_model.", "visual_projection.", "text_model.", "text_projection.")


@dataclass(frozen=True)
class Recognised:
    """What a file is: `layout` in words, the open_clip `architectures` whose image tower has exactly its tensors (the
    twins with QuickGELU left out), the `dtype` of most tensors, entries of `released` of that layout and architecture,
    and `asked`, what no tensor tells."""

    layout: str
    architectures: tuple[str, ...]
    dtype: str
    released: tuple[str, ...]
    asked: tuple[str, ...]

    def __str__(self) -> str:
        fits = f" of {self.architectures[0]}" if self.architectures else " of no architecture that open_clip has"
        return f"{self.layout}{fits}, {self.dtype}"


def recognise(path: Path) -> Recognised:
    """Describe a weight file or a LoRA adapter's folder. Raises UsageError and RunError as `read_weights` does."""
    adapter = lora.find(path)
    if adapter is None:
        return _of(read_weights(path), path)
    names = tuple(architectures_where(adapter.fits))
    found = tuple(name for name, entry in all_released().items() if entry.layout == "LoRA adapter")
    dtype = str(next(iter(adapter.factors.values()))[0].dtype).removeprefix("torch.")
    return Recognised(f"a LoRA adapter ({adapter})", names, dtype, found, ("the model it was trained from",))


def named(weights: Mapping[str, Tensor], path: Path) -> str:
    """The architecture of a file that says none, and a note of what was recognised. Raises UsageError where no
    architecture has its shapes."""
    found = _of(weights, path)
    if not found.architectures:
        raise UsageError(
            f"{path} does not say its architecture: {fitting(towers_of(weights, (), path).image, '')}. Say which, "
            f'load_referee("{path}", architecture="ViT-B-32", quick_gelu=False), as its makers trained it; a tower of '
            f'timm alone is load_referee("timm:MODEL", pretrained="{path}")',
            "unknown_architecture",
            path=str(path),
        )
    fits = f"; released ones like it: {some(list(found.released))}" if found.released else ""
    _log.info(f"{path.name}: {found}{fits}")
    return found.architectures[0]


def towers_of(weights: Mapping[str, Tensor], image_names: Iterable[str], path: Path) -> Towers:
    """The tensors by tower in open_clip's names, also of a file in the names of transformers' CLIPModel."""
    if not any(name.startswith("vision_model.") for name in weights):
        return split_towers(weights, image_names, source=path)
    ours = conversion.to_open_clip(
        {name: value for name, value in weights.items() if not name.endswith("embeddings.position_ids")}
    )
    rest = {name: value for name, value in weights.items() if name in LOGITS}
    left = [name for name in weights if not name.startswith(OF_TRANSFORMERS) and name not in LOGITS]
    return Towers(ours.image, ours.text, rest, tuple(left))


def _of(weights: Mapping[str, Tensor], path: Path) -> Recognised:
    towers = towers_of(weights, (), path)
    names = _exact(towers)
    architecture = names[0] if names else None
    layout = "a full CLIP" if towers.text else "an image tower alone"
    released = tuple(
        name
        for name, entry in all_released().items()
        if architecture is not None
        and entry.architecture == architecture
        and entry.layout != "LoRA adapter"
        and (not towers.text or entry.layout != "image tower file")
    )
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in towers.image.values())
    asked = ["the text tower"] if not towers.text else []
    if architecture is not None and exists_with_quick_gelu(architecture):
        asked.append("QuickGELU or not")
    dtype = dtypes.most_common(1)[0][0] if dtypes else "no tensors"
    return Recognised(layout, tuple(names), dtype, released, tuple(asked))


def _exact(towers: Towers) -> list[str]:
    """Architectures whose image tower has exactly these tensors, and a text tower of the same sizes where there is one;
    the plainest name first."""
    near = architectures_where(lambda cfg: "multimodal_cfg" not in cfg and _near(towers.image, cfg))
    configs = {name: builtin_config(name) for name in near if not name.endswith(QUICK)}
    fits = [name for name, cfg in configs.items() if _has_tensors(towers.image, cfg) and _reads(towers.text, cfg)]
    return sorted(fits, key=lambda name: ("hf_model_name" in configs[name]["text_cfg"], len(name), name))


def _has_tensors(image: Mapping[str, Tensor], model_cfg: Mapping[str, Any]) -> bool:
    with torch.device("meta"):
        try:
            check_fit(build_image_tower(model_cfg), image, source="")
        except UsageError:
            return False
    return True


def _reads(text: Mapping[str, Tensor], model_cfg: Mapping[str, Any]) -> bool:
    """Whether a text tower of open_clip's own has the sizes of `model_cfg`; anything where there is none."""
    words, places = text.get("token_embedding.weight"), text.get("positional_embedding")
    cfg = model_cfg["text_cfg"]
    if not text or words is None or places is None:
        return not text or "hf_model_name" in cfg
    sizes = (cfg.get("vocab_size", 49408), cfg.get("width", 512)), cfg.get("context_length", 77)
    return (tuple(words.shape), len(places)) == sizes


def fitting(image: Mapping[str, Tensor], architecture: str) -> str:
    """Which architectures have an image tower of these shapes, as a sentence for an error."""
    names = architectures_where(lambda model_cfg: _fits(image, model_cfg))
    if names:
        near = get_close_matches(architecture, names, n=5, cutoff=0.0)
        return f"Architectures with an image tower of these shapes: {', '.join(near)}"
    return "No ViT or ResNet of open_clip has an image tower of these shapes"


def _near(image: Mapping[str, Tensor], model_cfg: Mapping[str, Any]) -> bool:
    """`_fits`, or a ConvNeXt of timm where the file holds one: its shapes show only once it is built."""
    timm = str(model_cfg["vision_cfg"].get("timm_model_name", ""))
    return _fits(image, model_cfg) or (timm.startswith("convnext") and "trunk.stages.0.blocks.0.gamma" in image)


def _fits(image: Mapping[str, Tensor], model_cfg: Mapping[str, Any]) -> bool:
    vision = model_cfg["vision_cfg"]
    layers = vision.get("layers", 12)
    if "timm_model_name" in vision:
        return False  # its shapes show only once it is built
    if isinstance(layers, list):
        found = [len({name.split(".")[1] for name in image if name.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
        head = image.get("attnpool.c_proj.weight")
        return found == layers and head is not None and head.shape[0] == model_cfg["embed_dim"]
    stem, head, positions = image.get("conv1.weight"), image.get("proj"), image.get("positional_embedding")
    if stem is None or head is None or positions is None or stem.ndim != 4:
        return False
    blocks = {name.split(".")[2] for name in image if name.startswith("transformer.resblocks.")}
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    grid = [side // patch for side in (size if isinstance(size, list) else [size, size])]
    return (
        stem.shape[0] == vision.get("width", 768)
        and stem.shape[-1] == patch
        and len(blocks) == layers
        and head.shape[-1] == model_cfg["embed_dim"]
        and positions.shape[0] == grid[0] * grid[1] + 1
    )
