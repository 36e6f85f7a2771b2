"""Key mapping of ViT CLIPs between open_clip and transformers' CLIPModel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.towers import Towers

Config = Mapping[str, Any]

IMAGE = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelt so in transformers
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}
TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
TRANSPOSED = ("proj", "text_projection")
"""Matrices that open_clip multiplies from the right, and transformers keeps in a Linear."""
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Parts of a transformer block; the attention's three input projections, one matrix in open_clip, stand apart."""

VISION_SIZES = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size")
TEXT_SIZES = ("layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size")
IDLE = ("patch_dropout", "output_tokens", "pad_id", "eos_id")
"""Settings that change no embedding of a frozen tower with open_clip's usual pooling."""
EPS = 1e-5  # of every LayerNorm, in both libraries, unless a config says otherwise


def to_transformers(towers: Towers) -> dict[str, Tensor]:
    """The tensors of both towers under CLIPModel's names; a name that it has no place for stays as it is."""
    return {
        **dict(_renamed(towers.image, IMAGE, "vision_model")),
        **dict(_renamed(towers.text, TEXT, "text_model")),
    }


def to_open_clip(weights: Mapping[str, Tensor]) -> Towers:
    """The inverse of `to_transformers`."""
    image = {name: value for name, value in weights.items() if name.startswith(("vision_model.", "visual_projection."))}
    text = {name: value for name, value in weights.items() if name.startswith(("text_model.", "text_projection."))}
    return Towers(_restored(image, IMAGE, "vision_model"), _restored(text, TEXT, "text_model"), {})


def clip_config(model_cfg: Config, defaults: Config, *, eos: int) -> dict[str, Any]:
    """What CLIPConfig is built from, for an open_clip config in which every setting is spelt out, as in `defaults`.

    `eos` is the token whose state is the text's embedding. Raises UsageError saying what CLIPModel has no place for.
    """
    strange = [*strange_vision(model_cfg, defaults), *_strange_text(model_cfg, defaults)]
    if strange:
        raise UsageError(
            f"transformers' CLIPModel has no place for {'; '.join(strange)}. Export it with --format open_clip, or "
            "its image tower alone with --format timm or image-tower"
        )
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    activation = "quick_gelu" if model_cfg.get("quick_gelu", False) else "gelu"
    width = model_cfg["embed_dim"]
    return {
        "projection_dim": width,
        "vision_config": {
            **_tower(vision, heads=vision["width"] // vision["head_width"], activation=activation),
            "projection_dim": width,
            "image_size": _side(vision["image_size"]),
            "patch_size": vision["patch_size"],
        },
        "text_config": {
            **_tower(text, heads=text["heads"], activation=activation),
            "projection_dim": width,
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": eos - 1,
            "eos_token_id": eos,
            "pad_token_id": eos,  # as OpenAI's tokenizer pads; what follows the first one is not looked at
        },
    }


def model_cfg(config: Config) -> dict[str, Any]:
    """The open_clip config of a CLIPModel's config. Raises UsageError saying what open_clip has no place for."""
    vision, text = config["vision_config"], config["text_config"]
    strange = []
    if vision["hidden_act"] != text["hidden_act"] or vision["hidden_act"] not in ("gelu", "quick_gelu"):
        strange.append(f"the activations {vision['hidden_act']} and {text['hidden_act']} (only gelu or quick_gelu)")
    strange += [f"layer_norm_eps {part['layer_norm_eps']}" for part in (vision, text) if part["layer_norm_eps"] != EPS]
    if strange:
        raise UsageError(f"an open_clip CLIP has no place for {'; '.join(strange)}: export it with --format hf")
    return {
        "embed_dim": config["projection_dim"],
        "quick_gelu": vision["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            **_sizes(vision),
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "patch_size": vision["patch_size"],
            "image_size": vision["image_size"],
        },
        "text_cfg": {
            **_sizes(text),
            "heads": text["num_attention_heads"],
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            **_pooling(text),
        },
    }


def _pooling(text: Config) -> dict[str, Any]:
    """Which token's state is the text: open_clip's usual choice is the largest id, as is CLIPModel's for the id 2."""
    eos = text["eos_token_id"]
    return {} if eos in (2, text["vocab_size"] - 1) else {"pool_type": "eos", "eos_id": eos}


def _tower(part: Config, *, heads: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": part["width"],
        "intermediate_size": int(part["width"] * part["mlp_ratio"]),
        "num_hidden_layers": part["layers"],
        "num_attention_heads": heads,
        "hidden_act": activation,
        "layer_norm_eps": EPS,
    }


def _sizes(part: Config) -> dict[str, Any]:
    return {
        "layers": part["num_hidden_layers"],
        "width": part["hidden_size"],
        "mlp_ratio": part["intermediate_size"] / part["hidden_size"],
    }


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])


def strange_vision(model_cfg: Config, defaults: Config) -> Iterator[str]:
    """How a config's image tower is not the ViT of the CLIP paper, in words; arguments as in `clip_config`."""
    vision = model_cfg["vision_cfg"]
    if vision.get("timm_model_name"):
        yield f"an image tower of timm ({vision['timm_model_name']})"
    elif isinstance(vision["layers"], list | tuple):
        yield "a ResNet as image tower"
    else:
        yield from _unusual("image", vision, defaults["vision_cfg"], VISION_SIZES)
        if not isinstance(vision["image_size"], int) and len(set(vision["image_size"])) > 1:
            yield f"images of {'x'.join(map(str, vision['image_size']))} pixels (only square ones)"


def _strange_text(model_cfg: Config, defaults: Config) -> Iterator[str]:
    text = model_cfg["text_cfg"]
    if text.get("hf_model_name"):
        yield f"the text tower {text['hf_model_name']}"
    else:
        yield from _unusual("text", text, defaults["text_cfg"], TEXT_SIZES)
    if model_cfg.get("init_logit_bias") is not None:
        yield "a logit bias"


def _unusual(tower: str, part: Config, defaults: Config, sizes: tuple[str, ...]) -> Iterator[str]:
    for name, value in part.items():
        known = name in sizes or name in IDLE or name.startswith(("timm_", "hf_model_", "hf_p"))
        if not known and value != defaults.get(name):
            yield f"{name}={value!r} of the {tower} tower"


def _renamed(weights: Mapping[str, Tensor], names: Mapping[str, str], model: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items():
        if name in names:
            yield names[name], value.T if name in TRANSPOSED else value
        elif found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name):
            layer, part, kind = found.groups()
            block = f"{model}.encoder.layers.{layer}"
            if part == "attn.in_proj":
                for letter, rows in zip("qkv", value.chunk(3), strict=True):
                    yield f"{block}.self_attn.{letter}_proj.{kind}", rows
            else:
                yield f"{block}.{BLOCK.get(part, part)}.{kind}", value
        else:
            yield name, value


def _restored(weights: Mapping[str, Tensor], names: Mapping[str, str], model: str) -> dict[str, Tensor]:
    whole, parts = {theirs: ours for ours, theirs in names.items()}, {theirs: ours for ours, theirs in BLOCK.items()}
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in whole:
            found[whole[name]] = value.T if whole[name] in TRANSPOSED else value
        elif inside := re.fullmatch(rf"{model}\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            layer, part, kind = inside.groups()
            block = f"transformer.resblocks.{layer}"
            if part == "self_attn.q_proj":
                rows = [weights[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
                found[f"{block}.attn.in_proj_{kind}"] = torch.cat(rows)
            elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
                found[f"{block}.{parts.get(part, part)}.{kind}"] = value
        else:
            found[name] = value
    return found
