"""Read and write referee folders: weights, open_clip config and card.

    card.json, README.md          the card, as JSON and as Markdown
    open_clip_config.json         model_cfg and preprocess_cfg
    image_tower.safetensors       the image tower, keys as in open_clip below `visual.`; the card names the text tower
    open_clip_model.safetensors   or both towers, as plain open_clip loads them

Referees of transformers are saved in its own layout, with the card.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustclip.errors import RunError, UsageError
from robustclip.referees import base, toy
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.smoothed import refuse_wrapped
from robustclip.referees.weights import COUNTER, load_strictly, read_weights, some, write_weights
from robustclip.runs.files import sha256, write_json

IMAGE_PREFIXES = ("model.", "visual.")
PLAIN_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer.", "ln_final.")
"""Prefixes of the text tower's keys in open_clip's CLIP; its CustomTextCLIP has `text.` before them."""
LOGITS = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class Towers:
    """A checkpoint's tensors by tower: `image` with open_clip's `visual.` removed, `text` with `text.` removed.

    `text` is empty for an image tower alone; `rest` holds logit_scale and logit_bias, if present; `left_out` names the
    tensors of neither tower, such as a classifier's.
    """

    image: dict[str, Tensor]
    text: dict[str, Tensor]
    rest: dict[str, Tensor]
    left_out: tuple[str, ...] = ()


def split_towers(
    weights: Mapping[str, Tensor], image_names: Iterable[str] = (), *, source: Path | None = None
) -> Towers:
    """Sort a checkpoint's tensors by tower; a full CLIP or an image tower alone is recognised by its keys.

    The CLIP may have a prefix (a Lightning module's attribute), found by the `visual.` below it. For an image tower
    alone, the prefix is found by `image_names`, the expected names of its tensors. Raises UsageError for colliding
    keys, and for a file, `source`, with two CLIPs or two such image towers.
    """
    names = list(weights)
    below = {
        "".join(f"{part}." for part in parts[: parts.index("visual")])
        for name in names
        if "visual" in (parts := name.split("."))
    }
    prefix = "" if "" in below else _only(below, source)
    inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    outside = tuple(sorted(name for name in names if not name.startswith(prefix)))
    if not below or all(name.startswith("visual.") for name in inside):
        return _image_alone(inside, outside, set(image_names), source)
    image, text, rest, left_out = {}, {}, {}, list(outside)
    for name, value in inside.items():
        if name.startswith("visual."):
            image[name.removeprefix("visual.")] = value
        elif name.startswith("text."):
            text[name.removeprefix("text.")] = value
        elif name.startswith(PLAIN_TEXT):
            text[name] = value
        elif name in LOGITS:
            rest[name] = value
        else:
            left_out.append(prefix + name)
    for name in LOGITS:  # a module around the CLIP may hold them itself
        if name not in rest and name in left_out:
            rest[name] = weights[name]
            left_out.remove(name)
    twice = [name for name in inside if name.startswith(PLAIN_TEXT) and f"text.{name}" in inside]
    if twice:
        message = f"the checkpoint has a text tower twice, with and without the prefix `text.` ({some(twice)})"
        raise UsageError(message, "text_tower_twice", names=twice)
    text.pop("transformer.embeddings.position_ids", None)  # a buffer that older versions of transformers saved
    return Towers(image, text, rest, tuple(left_out))


def _image_alone(image: dict[str, Tensor], outside: tuple[str, ...], expected: set[str], source: Path | None) -> Towers:
    while prefix := next((p for p in IMAGE_PREFIXES if image and all(name.startswith(p) for name in image)), None):
        image = {name.removeprefix(prefix): value for name, value in image.items()}
    longest = max(expected, key=len, default="")
    below = {name.removesuffix(longest) for name in image if longest and f".{name}".endswith(f".{longest}")}
    below = {prefix for prefix in below if all(prefix + name in image for name in expected)}
    if not below:
        return Towers(image, {}, {}, outside)
    prefix = "" if "" in below else _only(below, source)
    kept = {name: image[prefix + name] for name in expected}
    counts = {name.removeprefix(prefix) for name in image if name.endswith(COUNTER) and name.startswith(prefix)}
    kept |= {name: image[prefix + name] for name in counts}
    left_out = (name for name in image if name.removeprefix(prefix) not in kept)
    return Towers(kept, {}, {}, (*outside, *sorted(left_out)))


def _only(prefixes: set[str], source: Path | None) -> str:
    """The only prefix. Raises UsageError if there are several."""
    if len(prefixes) > 1:
        one = sorted(prefixes)[0]
        place = "PATH" if source is None else repr(str(source))
        raise UsageError(
            f"the checkpoint holds {len(prefixes)} models, below {some(sorted(prefixes))}. Write the one you mean:\n"
            "from safetensors.torch import save_file\n"
            "from robustclip.referees.weights import read_weights\n"
            f"weights = read_weights({place})\n"
            f"save_file({{k.removeprefix({one!r}): v for k, v in weights.items() if k.startswith({one!r})}}, "
            "'one.safetensors')",
            "several_models",
            below=sorted(prefixes),
        )
    return next(iter(prefixes), "")


def join_towers(towers: Towers, *, custom_text: bool) -> dict[str, Tensor]:
    """The inverse of split_towers, in the key layout of open_clip's CLIP, or of its CustomTextCLIP."""
    text = "text." if custom_text else ""
    return {
        **{f"visual.{name}": value for name, value in towers.image.items()},
        **{f"{text}{name}": value for name, value in towers.text.items()},
        **towers.rest,
    }


CONFIG = "open_clip_config.json"
IMAGE_TOWER = "image_tower.safetensors"
FULL = "open_clip_model.safetensors"


def save_referee(referee: TwoTower, folder: Path, *, half: bool = False, card: Card | None = None) -> Card:
    """Write a referee's folder, and return its card with the files' hashes.

    `card` replaces the referee's own; `half` rounds weights to float16. A text tower that is loaded by name (the
    sentence encoder of the installed package) is named, not written. Each file is replaced atomically, the card last.
    """
    folder = Path(folder)
    card = _current(referee, card)
    if card.family == "transformers":
        from robustclip.referees import huggingface

        return _sealed(card, folder, huggingface.save_folder(referee, folder, half=half))
    if card.family == "open_clip" and referee.text_tower.source() is None:
        return save_full(referee, folder, half=half, card=card)
    write_weights(folder / IMAGE_TOWER, referee.image_tower.state_dict(), half=half)
    if card.family == "open_clip":
        _write_config(card, folder)
    return _sealed(card, folder, [IMAGE_TOWER])


def save_full(
    referee: TwoTower, folder: Path, *, half: bool = False, card: Card | None = None, final: Path | None = None
) -> Card:
    """Write both towers of an open_clip referee so that plain open_clip loads the folder; returns the card as written.

    open_clip finds the config of a transformers text tower by path: that of the folder, or `final` if the folder will
    be moved there.
    """
    from robustclip.referees.openclip import has_custom_text, save_text_files, text_weights

    folder = Path(folder)
    card = replace(_current(referee, card), text_tower=None)  # its weights are in the folder
    rest = {"logit_scale": torch.tensor(referee.logit_scale).log()}
    if referee.logit_bias is not None:
        rest["logit_bias"] = torch.tensor(referee.logit_bias)
    towers = Towers(dict(referee.image_tower.state_dict()), text_weights(referee.text_tower), rest)
    write_weights(folder / FULL, join_towers(towers, custom_text=has_custom_text(card.architecture)), half=half)
    has_config = save_text_files(referee.text_tower, folder)
    _write_config(card, folder, text_model=str((final or folder).resolve()) if has_config else None)
    return _sealed(card, folder, [FULL])


def load_referee_folder(folder: Path, *, checked: bool = True) -> TwoTower:
    """Load a folder written by save_referee or the export, on the CPU, frozen and in eval mode.

    Hashes of files, and of a text tower loaded by name, are checked against the card unless `checked` is False. Raises
    UsageError if it is not a referee's folder or its weights do not fit its card, RunError if a file of the card is
    missing, truncated or different.
    """
    folder = Path(folder)
    card = Card.load(folder)
    refuse_other_files(folder, card, hashes=checked)
    referee = _load(folder, card)
    if checked and card.text_tower is not None and referee.text_tower.source() != card.text_tower:
        raise RunError(
            f"{folder} was made with another text tower than the installed {card.text_tower['name']}: install the "
            f"version it was made with. To compare: robustclip referees verify {folder}",
            "other_text_tower",
            name=card.text_tower["name"],
        )
    return referee


def refuse_other_files(folder: Path, card: Card, *, hashes: bool = True) -> None:
    """Raise RunError unless the weight files exist and match the card's hashes."""
    missing = [name for name in card.weights if not (folder / name).is_file()]
    if missing or not card.weights:
        lacks = f"missing {', '.join(missing)}" if missing else "its card names no weights"
        raise RunError(f"{folder} is incomplete ({lacks}): write or copy it again", "incomplete", missing=missing)
    others = [name for name, digest in card.weights.items() if hashes and sha256(folder / name) != digest]
    if others:
        raise RunError(
            f"{', '.join(others)} in {folder} is not the file that the card was written for (its sha256 differs): "
            f"copy the folder again from where it came. To compare: robustclip referees verify {folder}",
            "other_hash",
            names=others,
        )


def _named_file(folder: Path, card: Card, name: str) -> Path:
    """The path of a weight file. Raises RunError if the card does not name it."""
    if name not in card.weights:
        raise RunError(f"the card of {folder} names {', '.join(card.weights)}, and no {name}: write it again")
    return folder / name


def _load(folder: Path, card: Card) -> TwoTower:
    if card.family == "transformers":
        from robustclip.referees import huggingface

        return huggingface.load_folder(folder, card)
    if card.family == toy.FAMILY:
        referee = toy.from_architecture(card.architecture)
        path = _named_file(folder, card, IMAGE_TOWER)
        load_strictly(referee.image_tower, read_weights(path), source=str(path))
        preprocess = Preprocess.from_config(card.preprocess)
        scale, bias = card.logit_scale, card.logit_bias
        towers = (referee.image_tower, referee.text_tower, preprocess)
        return TwoTower(*towers, card=card, logit_scale=scale, logit_bias=bias).eval().requires_grad_(False)
    if card.family == "open_clip":
        return _load_open_clip(folder, card)
    if card.family == "timm":
        raise UsageError(
            f"{folder} holds an image tower for timm, and no referee: timm.create_model('local-dir:{folder}', "
            "pretrained=True). Export the referee again with --format open_clip"
        )
    if card.family in base.FAMILIES:
        raise base.not_a_clip(folder)
    message = f"{folder}: no referee here is of the family {card.family!r}; known: open_clip, transformers, toy"
    raise UsageError(message, "unknown_family", family=card.family)


def _write_config(card: Card, folder: Path, *, text_model: str | None = None) -> None:
    model_cfg = deepcopy(card.architecture)
    if text_model is not None:
        model_cfg["text_cfg"]["hf_model_name"] = text_model
    if card.logit_bias is not None:
        model_cfg["init_logit_bias"] = card.logit_bias
    write_json(folder / CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": card.preprocess})


def _current(referee: TwoTower, card: Card | None) -> Card:
    """The given card, or the referee's own, with the numbers that the referee has now."""
    refuse_wrapped(referee.image_tower, "has no weights of its own to save", "save its base")
    return replace(
        card or referee.card,
        preprocess=referee.preprocess.config(),
        logit_scale=referee.logit_scale,
        logit_bias=referee.logit_bias,
        text_tower=referee.text_tower.source(),
    )


def _sealed(card: Card, folder: Path, files: list[str]) -> Card:
    """Write the card of a folder whose weight `files` are written, with their hashes, and return it."""
    for stale in {IMAGE_TOWER, FULL} - set(files):  # of a referee of another kind
        (folder / stale).unlink(missing_ok=True)
    card = replace(card, weights={name: sha256(folder / name) for name in files})
    card.save(folder)
    return card


def _load_open_clip(folder: Path, card: Card) -> TwoTower:
    from robustclip.referees.openclip import build_text_tower, has_sentence_encoder, load_image_tower
    from robustclip.referees.sentence import SentenceEncoder

    text_tower: Any
    if FULL in card.weights:
        towers = split_towers(read_weights(folder / FULL))
        text_tower = build_text_tower(card.architecture, towers.text, source=f"local-dir:{folder}", folder=folder)
        image = towers.image
    elif has_sentence_encoder(card.architecture):
        text_tower = SentenceEncoder(context_length=card.architecture["text_cfg"].get("context_length", 77))
        image = read_weights(_named_file(folder, card, IMAGE_TOWER))
    else:
        message = f"{folder} holds an image tower only, and its card names no text tower that is found by name"
        raise UsageError(message, "no_text_tower", source=str(folder))
    tower = load_image_tower(card.architecture, image, source=str(folder))
    preprocess = Preprocess.from_config(card.preprocess)
    referee = TwoTower(
        tower, text_tower, preprocess, card=card, logit_scale=card.logit_scale, logit_bias=card.logit_bias
    )
    return referee.eval().requires_grad_(False)
