"""Build towers with fake tensors: shapes and dtypes without memory.

So a step of a tower of two billion weights can be counted in seconds on a laptop, and nothing is fetched for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from robustclip.attacks.threat import height_and_width
from robustclip.errors import UsageError
from robustclip.referees import registry
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.folder import CONFIG
from robustclip.referees.openclip import (
    bare_text_tower,
    build_image_tower,
    builtin_config,
    has_sentence_encoder,
    tag_quick_gelu,
    tags,
)
from robustclip.referees.sentence import SentenceEncoder
from robustclip.runs.files import read_json


@dataclass(frozen=True)
class Blueprint:
    """A CLIP without weights: open_clip's config of it, and the pixels (h, w) it sees."""

    name: str
    model_cfg: Mapping[str, Any]
    size: tuple[int, int]

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return int(self.model_cfg["embed_dim"])


@dataclass(frozen=True)
class Imagined:
    """The towers of a blueprint on fake tensors; use them inside `with imagined.mode:`. The text tower is real where
    it is the sentence encoder, and None where its config would have to be fetched."""

    image_tower: nn.Module
    text_tower: nn.Module | None
    context_length: int
    mode: FakeTensorMode = field(default_factory=FakeTensorMode)


def blueprint(start: str, architecture: str | None = None) -> Blueprint:
    """What `load_referee(start)` would load, as far as it can be known without its weights.

    Raises UsageError for names that say nothing without a network or a file's weights, with what to give instead.
    """
    if architecture is not None:
        return _of_config(start, builtin_config(architecture))
    entry = registry.find(start)
    folder = Path(start.removeprefix("local-dir:")).expanduser() if entry is None else entry.existing_folder()
    if (folder / CARD_FILE).is_file():
        card = Card.load(folder)
        if card.family != "open_clip":
            raise UsageError(
                f"{start} is a referee of the family {card.family}, whose towers a plan cannot build: {_INSTEAD}"
            )
        return Blueprint(start, card.architecture, height_and_width(tuple(card.preprocess["size"])))
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        if not (isinstance(config, dict) and isinstance(config.get("model_cfg"), dict)):
            raise UsageError(f"{folder / CONFIG} is no config of open_clip: it has no model_cfg")
        return _of_config(start, config["model_cfg"], config.get("preprocess_cfg", {}).get("size"))
    architecture, _, tag = start.partition(":")
    if tag and architecture not in ("hf-hub", "timm", "local-dir"):
        model_cfg = builtin_config(architecture)
        if tag_quick_gelu(architecture, tag) is None:
            known = [name for name in tags() if name.startswith(f"{architecture}:")]
            raise UsageError(f"open_clip has no weights {start}; it has {', '.join(known) or 'none of that kind'}")
        return _of_config(start, model_cfg)
    raise UsageError(f"what {start} is cannot be known without fetching or opening it: {_INSTEAD}")


_INSTEAD = (
    "give --start ARCHITECTURE:TAG of the same architecture (e.g. ViT-B-32:openai), an embedded or exported "
    "referee, or --architecture NAME where the recipe has that flag"
)


def imagine(design: Blueprint, prepare: Callable[[nn.Module], None]) -> Imagined:
    """Build both towers of a blueprint out of nothing; `prepare` makes the image tower ready to train.

    Raises UsageError for a config that open_clip refuses.
    """
    mode = FakeTensorMode()
    image_tower = without_memory(lambda: build_image_tower(design.model_cfg), mode, prepare)
    text_cfg = design.model_cfg.get("text_cfg", {})
    if has_sentence_encoder(design.model_cfg):
        text_tower: nn.Module | None = _sentence_encoder()
    elif "hf_model_name" in text_cfg or not text_cfg:
        text_tower = None
    else:
        text_tower = without_memory(lambda: bare_text_tower(design.model_cfg), mode)
    return Imagined(image_tower, text_tower, int(text_cfg.get("context_length", 77)), mode)


@cache
def _sentence_encoder() -> SentenceEncoder:
    """The one that every plan of an embedded referee counts; nobody changes it."""
    return SentenceEncoder()


def without_memory(
    build: Callable[[], nn.Module], mode: FakeTensorMode, prepare: Callable[[nn.Module], None] = lambda _: None
) -> nn.Module:
    """The module that `build` makes and `prepare` changes, on fake CPU tensors. It is made on the meta device, since
    constructors may read a number back from a tensor that they put on the CPU themselves, which fake ones refuse."""
    with torch.device("meta"):
        module = build()
        prepare(module)
    with mode:
        for child in module.modules():
            for name, parameter in child.named_parameters(recurse=False):
                setattr(child, name, nn.Parameter(_like(parameter), parameter.requires_grad))
            for name, buffer in child.named_buffers(recurse=False):
                setattr(child, name, _like(buffer))
    return module


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _of_config(name: str, model_cfg: Mapping[str, Any], size: Any = None) -> Blueprint:
    size = size or model_cfg["vision_cfg"].get("image_size", 224)
    return Blueprint(name, model_cfg, height_and_width(size if isinstance(size, int) else tuple(size)))
