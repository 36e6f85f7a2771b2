"""Convert ViT CLIPs between open_clip and transformers' CLIPModel.

Conversions are verified on images and texts; one that changes the embeddings is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.errors import RunError, UsageError
from robustclip.referees import huggingface, openclip
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.folder import CONFIG, Towers
from robustclip.referees.huggingface import CLIPText
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.weights import load_strictly
from robustclip.runs.files import write_json

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
"""Matrices that open_clip multiplies from the right, and transformers stores as Linear weights."""
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Parts of a transformer block, except the attention's input projections, which are one matrix in open_clip."""

VISION_SIZES = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size")
TEXT_SIZES = ("layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size")
IDLE = ("patch_dropout", "output_tokens", "pad_id", "eos_id")
"""Settings without effect on a frozen tower with open_clip's usual pooling."""
EPS = 1e-5  # of every LayerNorm, in both libraries, unless a config says otherwise


def to_transformers(towers: Towers) -> dict[str, Tensor]:
    """Rename the tensors of both towers to CLIPModel's keys; unknown keys are kept."""
    return {
        **dict(_renamed(towers.image, IMAGE, "vision_model")),
        **dict(_renamed(towers.text, TEXT, "text_model")),
    }


def to_open_clip(weights: Mapping[str, Tensor]) -> Towers:
    """The inverse of `to_transformers`."""
    image = {name: value for name, value in weights.items() if name.startswith(("vision_model.", "visual_projection."))}
    text = {name: value for name, value in weights.items() if name.startswith(("text_model.", "text_projection."))}
    return Towers(_restored(image, IMAGE, "vision_model"), _restored(text, TEXT, "text_model"), {})


def clip_config(open_clip_config: Config, defaults: Config, *, eos: int) -> dict[str, Any]:
    """CLIPConfig arguments for a complete open_clip config (see `openclip.spelt_out`), compared with `defaults`.

    `eos` is the token whose state is the text's embedding. Raises UsageError for settings that CLIPModel lacks.
    """
    unsupported = [*unsupported_vision(open_clip_config, defaults), *_unsupported_text(open_clip_config, defaults)]
    if unsupported:
        raise UsageError(
            f"transformers' CLIPModel has no place for {'; '.join(unsupported)}. Export it with --format open_clip, or "
            "its image tower alone with --format timm or image-tower",
            "unsupported",
            parts=unsupported,
        )
    vision, text = open_clip_config["vision_cfg"], open_clip_config["text_cfg"]
    activation = "quick_gelu" if open_clip_config.get("quick_gelu", False) else "gelu"
    width = open_clip_config["embed_dim"]
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


def open_clip_config(config: Config) -> dict[str, Any]:
    """open_clip config of a CLIPModel's config. Raises UsageError for settings that open_clip lacks."""
    vision, text = config["vision_config"], config["text_config"]
    unsupported = []
    if vision["hidden_act"] != text["hidden_act"] or vision["hidden_act"] not in ("gelu", "quick_gelu"):
        unsupported.append(f"the activations {vision['hidden_act']} and {text['hidden_act']} (only gelu or quick_gelu)")
    unsupported += [
        f"layer_norm_eps {part['layer_norm_eps']}" for part in (vision, text) if part["layer_norm_eps"] != EPS
    ]
    if unsupported:
        message = f"an open_clip CLIP has no place for {'; '.join(unsupported)}: export it with --format hf"
        raise UsageError(message, "unsupported", parts=unsupported)
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
    """Settings of the text pooling: open_clip's default is the token of largest id, as is CLIPModel's for the id 2."""
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


def unsupported_vision(open_clip_config: Config, defaults: Config) -> Iterator[str]:
    """Differences of a config's image tower from CLIP's ViT, as text; arguments as in `clip_config`."""
    vision = open_clip_config["vision_cfg"]
    if vision.get("timm_model_name"):
        yield f"an image tower of timm ({vision['timm_model_name']})"
    elif isinstance(vision["layers"], list | tuple):
        yield "a ResNet as image tower"
    else:
        yield from _unusual("image", vision, defaults["vision_cfg"], VISION_SIZES)
        if not isinstance(vision["image_size"], int) and len(set(vision["image_size"])) > 1:
            yield f"images of {'x'.join(map(str, vision['image_size']))} pixels (only square ones)"


def _unsupported_text(open_clip_config: Config, defaults: Config) -> Iterator[str]:
    text = open_clip_config["text_cfg"]
    if text.get("hf_model_name"):
        yield f"the text tower {text['hf_model_name']}"
    else:
        yield from _unusual("text", text, defaults["text_cfg"], TEXT_SIZES)
    if open_clip_config.get("init_logit_bias") is not None:
        yield "a logit bias"


def _unusual(tower: str, part: Config, defaults: Config, sizes: tuple[str, ...]) -> Iterator[str]:
    for name, value in part.items():
        ignored = name in sizes or name in IDLE or name.startswith(("timm_", "hf_model_", "hf_p"))
        if not ignored and value != defaults.get(name):
            yield f"{name}={value!r} of the {tower} tower"


def _renamed(weights: Mapping[str, Tensor], names: Mapping[str, str], model: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items():
        if name in names:
            yield names[name], value.T if name in TRANSPOSED else value
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name):
            layer, part, kind = match.groups()
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
    restored: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in whole:
            restored[whole[name]] = value.T if whole[name] in TRANSPOSED else value
        elif inside := re.fullmatch(rf"{model}\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            layer, part, kind = inside.groups()
            block = f"transformer.resblocks.{layer}"
            if part == "self_attn.q_proj":
                rows = [weights[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
                restored[f"{block}.attn.in_proj_{kind}"] = torch.cat(rows)
            elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
                restored[f"{block}.{parts.get(part, part)}.{kind}"] = value
        else:
            restored[name] = value
    return restored


TOLERANCE = 1e-5
"""Largest component difference of two unit embeddings in float32 that counts as rounding."""
TEXTS = ["a cat", "Two DOGS on a lawn, one of them asleep", "", "naïve café, 123 🙂", "a very long text " * 40]
"""Texts for the comparison of text towers: capitals, empty, accents, emoji, and beyond the context length."""


def as_transformers(referee: TwoTower) -> TwoTower:
    """Convert a referee to transformers' CLIPModel, on the CPU, with its card; unchanged if it is one.

    Verifies that embeddings agree within `TOLERANCE`. Raises UsageError if transformers has no such architecture.
    """
    if referee.card.family == huggingface.FAMILY:
        return referee
    _refuse_others(referee)
    tokens, merges = openclip.byte_pairs()
    described = openclip.spelt_out(referee.card.architecture) | {"init_logit_bias": referee.logit_bias}
    config = clip_config(described, openclip.spelt_out({}), eos=max(tokens.values()))
    if not openclip.has_byte_pairs(referee.text_tower):
        raise UsageError(
            f"the tokenizer of {referee.card.name} is not CLIP's own, which is what a CLIPModel folder holds: export "
            "it with --format open_clip"
        )
    tokenizer = huggingface.clip_tokenizer(tokens, merges, described["text_cfg"]["context_length"])
    towers = Towers(dict(referee.image_tower.state_dict()), openclip.text_weights(referee.text_tower), {})
    converted = huggingface.new_clip(
        config,
        to_transformers(towers),
        tokenizer,
        _cropping(referee, "floor"),
        referee.logit_scale,
        referee.card.name,
    )
    return _same(converted, referee)


def as_open_clip(referee: TwoTower) -> TwoTower:
    """Convert a referee to an open_clip model, on the CPU, with its card; unchanged if it is one.

    Verifies that embeddings agree within `TOLERANCE`. Raises UsageError if open_clip has no such architecture.
    """
    if referee.card.family == openclip.FAMILY:
        return referee
    _refuse_others(referee)
    text_tower = referee.text_tower
    if not isinstance(text_tower, CLIPText):
        raise UsageError(f"{referee.card.name} has no text tower of transformers: it cannot become one of open_clip")
    if beyond := referee.preprocess.beyond_open_clip():
        message = f"open_clip's preprocessing has no place for {beyond}: export {referee.card.name} as --format hf"
        raise UsageError(message, "unsupported", parts=[beyond])
    model_cfg = open_clip_config(referee.card.architecture["config"])
    image_tower = openclip.build_image_tower(model_cfg)
    towers = to_open_clip({**referee.image_tower.state_dict(), **text_tower.state_dict()})
    load_strictly(image_tower, towers.image, source=f"{referee.card.name} as a model of open_clip")
    tokenizer = text_tower.tokenizer
    with TemporaryDirectory() as scratch:  # open_clip reads tokenizers from folders only
        if not _has_byte_pairs(tokenizer):
            model_cfg["text_cfg"]["hf_tokenizer_name"] = referee.card.name
            tokenizer.save_pretrained(scratch)
        write_json(Path(scratch) / CONFIG, {"model_cfg": model_cfg})
        text = openclip.build_text_tower(model_cfg, towers.text, source=f"local-dir:{scratch}")
    converted = openclip.as_referee(
        image_tower,
        text,
        _cropping(referee, "round"),
        model_cfg,
        referee.card.name,
        referee.logit_scale,
        referee.logit_bias,
    )
    return _same(converted, referee)


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, pixels: Float[Tensor, "b 3 h w"]) -> float:
    """The largest component difference of the unit embeddings of two image towers on the same pixels."""
    return _largest(*(tower(pixels.to(next(tower.parameters()).device)) for tower in (one, other)))


def probe(referee: TwoTower, count: int = 4) -> Float[Tensor, "b 3 h w"]:
    """Noise images, normalised for the referee's image tower."""
    noise = torch.rand(count, 3, *referee.image_size, generator=torch.Generator().manual_seed(0))
    return referee.preprocess(noise.to(referee.device))


def refuse_difference(name: str, what: str, largest: float) -> None:
    """Raise RunError if a conversion changed the embeddings."""
    if not largest <= TOLERANCE:
        raise RunError(
            f"{name} as {what} embeds differently: a unit vector differs by {largest:.2g}, more than rounding "
            f"({TOLERANCE:g}). Nothing was written; export it with --format open_clip, and please report this",
            "embeds_differently",
            difference=largest,
        )


def _same(converted: TwoTower, referee: TwoTower) -> TwoTower:
    """`converted` with the card of `referee`, after verifying that their embeddings agree."""
    texts = _largest(converted.embed_texts(TEXTS), referee.embed_texts(TEXTS))
    images = difference(converted.image_tower, referee.image_tower, probe(referee))
    refuse_difference(referee.card.name, f"a model of {converted.card.family}", max(texts, images))
    converted.card = replace(
        referee.card, family=converted.card.family, architecture=converted.card.architecture, weights={}
    )
    return converted


def _cropping(referee: TwoTower, crop: str) -> Preprocess:
    """The referee's preprocessing with the other library's rounding of crops."""
    return Preprocess.from_config(referee.preprocess.config() | {"crop": crop})


def _largest(one: Tensor, other: Tensor) -> float:
    return (unit(one).cpu() - unit(other).cpu()).abs().max().item()


def _has_byte_pairs(tokenizer: Any) -> bool:
    """Whether a transformers tokenizer has CLIP's tokens; start and end tokens have other names there."""
    *tokens, first, last = openclip.byte_pairs()[0].items()
    vocab = tokenizer.get_vocab()
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id} == {first[1], last[1]}
    return special and len(vocab) == len(tokens) + 2 and all(vocab.get(token) == index for token, index in tokens)


def _refuse_others(referee: TwoTower) -> None:
    if referee.card.family not in (openclip.FAMILY, huggingface.FAMILY):
        message = f"{referee.card.name} is a {referee.card.family}, which other libraries lack"
        raise UsageError(message, "unsupported_family", family=referee.card.family)
