"""Convert ViT CLIPs between open_clip and transformers' CLIPModel.

What comes out is compared with what went in, on images and texts: a conversion that would change a number is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.errors import RunError, UsageError
from robustclip.referees import clip_keys, huggingface, openclip
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.folder import CONFIG
from robustclip.referees.huggingface import CLIPText
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.towers import Towers
from robustclip.referees.weights import load_strictly
from robustclip.runs.files import write_json

TOLERANCE = 1e-5
"""Largest difference of a component of two unit embeddings in float32 that counts as rounding."""
TEXTS = ["a cat", "Two DOGS on a lawn, one of them asleep", "", "naïve café, 123 🙂", "a very long text " * 40]
"""What two text towers are compared on: capitals, nothing, accents, emoji, and more than fits."""


def as_transformers(referee: TwoTower) -> TwoTower:
    """The referee as a CLIPModel of transformers, on the CPU, with its card; itself where it is one.

    Embeddings agree within `TOLERANCE`, checked here. Raises UsageError where transformers has no such architecture.
    """
    if referee.card.family == huggingface.FAMILY:
        return referee
    _refuse_others(referee)
    tokens, merges = openclip.byte_pairs()
    described = openclip.spelt_out(referee.card.architecture) | {"init_logit_bias": referee.logit_bias}
    config = clip_keys.clip_config(described, openclip.spelt_out({}), eos=max(tokens.values()))
    if not openclip.has_byte_pairs(referee.text_tower):
        raise UsageError(
            f"the tokenizer of {referee.card.name} is not CLIP's own, which is what a CLIPModel folder holds: export "
            "it with --format open_clip"
        )
    tokenizer = huggingface.clip_tokenizer(tokens, merges, described["text_cfg"]["context_length"])
    towers = Towers(dict(referee.image_tower.state_dict()), openclip.text_weights(referee.text_tower), {})
    converted = huggingface.new_clip(
        config,
        clip_keys.to_transformers(towers),
        tokenizer,
        _cropping(referee, "floor"),
        referee.logit_scale,
        referee.card.name,
    )
    return _same(converted, referee)


def as_open_clip(referee: TwoTower) -> TwoTower:
    """The referee as a model of open_clip, on the CPU, with its card; itself where it is one.

    Embeddings agree within `TOLERANCE`, checked here. Raises UsageError where open_clip has no such architecture.
    """
    if referee.card.family == openclip.FAMILY:
        return referee
    _refuse_others(referee)
    text_tower = referee.text_tower
    if not isinstance(text_tower, CLIPText):
        raise UsageError(f"{referee.card.name} has no text tower of transformers: it cannot become one of open_clip")
    if beyond := referee.preprocess.beyond_open_clip():
        raise UsageError(
            f"open_clip's preprocessing has no place for {beyond}: export {referee.card.name} as --format hf"
        )
    model_cfg = clip_keys.model_cfg(referee.card.architecture["config"])
    image_tower = openclip.build_image_tower(model_cfg)
    towers = clip_keys.to_open_clip({**referee.image_tower.state_dict(), **text_tower.state_dict()})
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
    """The largest difference of a component between the unit embeddings of two image towers of the same pixels."""
    return _largest(*(tower(pixels.to(next(tower.parameters()).device)) for tower in (one, other)))


def probe(referee: TwoTower, count: int = 4) -> Float[Tensor, "b 3 h w"]:
    """Images of noise, normalised as the referee's image tower takes them."""
    noise = torch.rand(count, 3, *referee.image_size, generator=torch.Generator().manual_seed(0))
    return referee.preprocess(noise.to(referee.device))


def refuse_difference(name: str, what: str, found: float) -> None:
    """Raise RunError where a conversion changed the numbers."""
    if not found <= TOLERANCE:
        raise RunError(
            f"{name} as {what} embeds otherwise: a unit vector differs by {found:.2g}, more than rounding "
            f"({TOLERANCE:g}). Nothing was written; export it with --format open_clip, and please report this"
        )


def _same(converted: TwoTower, referee: TwoTower) -> TwoTower:
    """`converted` under the card of `referee`, once both are seen to embed alike."""
    texts = _largest(converted.embed_texts(TEXTS), referee.embed_texts(TEXTS))
    images = difference(converted.image_tower, referee.image_tower, probe(referee))
    refuse_difference(referee.card.name, f"a model of {converted.card.family}", max(texts, images))
    converted.card = replace(
        referee.card, family=converted.card.family, architecture=converted.card.architecture, weights={}
    )
    return converted


def _cropping(referee: TwoTower, crop: str) -> Preprocess:
    """The referee's preprocessing, which cuts as the other library does."""
    return Preprocess.from_config(referee.preprocess.config() | {"crop": crop})


def _largest(one: Tensor, other: Tensor) -> float:
    return (unit(one).cpu() - unit(other).cpu()).abs().max().item()


def _has_byte_pairs(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers has the tokens of CLIP's own; the last two have other names there."""
    *tokens, first, last = openclip.byte_pairs()[0].items()
    named = tokenizer.get_vocab()
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id} == {first[1], last[1]}
    return special and len(named) == len(tokens) + 2 and all(named.get(token) == index for token, index in tokens)


def _refuse_others(referee: TwoTower) -> None:
    if referee.card.family not in (openclip.FAMILY, huggingface.FAMILY):
        raise UsageError(f"{referee.card.name} is a {referee.card.family}: other libraries have nothing like it")
