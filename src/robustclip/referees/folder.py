"""Read and write referee folders: weights, open_clip config and card.

    card.json, README.md          the card, for programs and for people
    open_clip_config.json         model_cfg and preprocess_cfg
    image_tower.safetensors       the image tower, keys as in open_clip below `visual.`; the card names the text tower
    open_clip_model.safetensors   or both towers, as plain open_clip loads them

A referee of transformers is saved as transformers saves it, with the card beside.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustclip.errors import RunError, UsageError
from robustclip.referees import base, toy
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.smoothed import refuse_smoothed
from robustclip.referees.towers import Towers, join_towers, split_towers
from robustclip.referees.weights import load_strictly, read_weights, write_weights
from robustclip.runs.files import sha256, write_json

CONFIG = "open_clip_config.json"
IMAGE_TOWER = "image_tower.safetensors"
FULL = "open_clip_model.safetensors"


def save_referee(referee: TwoTower, folder: Path, *, half: bool = False, card: Card | None = None) -> Card:
    """Write a referee's folder, and return its card as written (with the hashes of the files).

    `card` takes the place of the referee's own; `half` rounds weights to float16. A text tower that is found by name
    (the sentence encoder of the installed package) is named, not written. Each file is replaced atomically, the card
    last.
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

    open_clip finds the config of a transformers text tower by path: the one of the folder, or of `final`, where the
    folder is going to be moved.
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
    """Load a folder that save_referee or the export wrote, on the CPU, frozen and in eval mode.

    Every file that is loaded must be the one whose hash the card holds, and so must a text tower that is found by name;
    `checked` False leaves that to the caller. Raises UsageError when it is not a referee's folder or its weights do not
    fit its card, RunError when a file that the card names is missing, truncated or another one.
    """
    folder = Path(folder)
    card = Card.load(folder)
    refuse_other_files(folder, card, hashes=checked)
    referee = _load(folder, card)
    if checked and card.text_tower is not None and referee.text_tower.source() != card.text_tower:
        raise RunError(
            f"{folder} was made with another text tower than the {card.text_tower['name']} that is installed: "
            f"install the version it was made with. To compare: robustclip referees verify {folder}"
        )
    return referee


def refuse_other_files(folder: Path, card: Card, *, hashes: bool = True) -> None:
    """Raise RunError unless the weight files exist and match the card's hashes."""
    missing = [name for name in card.weights if not (folder / name).is_file()]
    if missing or not card.weights:
        lacks = f"missing {', '.join(missing)}" if missing else "its card names no weights"
        raise RunError(f"{folder} is incomplete ({lacks}): write or copy it again")
    others = [name for name, digest in card.weights.items() if hashes and sha256(folder / name) != digest]
    if others:
        raise RunError(
            f"{', '.join(others)} in {folder} is not the file that the card was written for (its sha256 differs): "
            f"copy the folder again from where it came. To compare: robustclip referees verify {folder}"
        )


def _vouched(folder: Path, card: Card, name: str) -> Path:
    """The path of a weight file that the card names. Raises RunError where it vouches for another."""
    if name not in card.weights:
        raise RunError(f"the card of {folder} names {', '.join(card.weights)}, and no {name}: write it again")
    return folder / name


def _load(folder: Path, card: Card) -> TwoTower:
    if card.family == "transformers":
        from robustclip.referees import huggingface

        return huggingface.load_folder(folder, card)
    if card.family == toy.FAMILY:
        referee = toy.from_architecture(card.architecture)
        path = _vouched(folder, card, IMAGE_TOWER)
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
    raise UsageError(f"{folder}: no referee here is of the family {card.family!r}; known: open_clip, transformers, toy")


def _write_config(card: Card, folder: Path, *, text_model: str | None = None) -> None:
    model_cfg = deepcopy(card.architecture)
    if text_model is not None:
        model_cfg["text_cfg"]["hf_model_name"] = text_model
    if card.logit_bias is not None:
        model_cfg["init_logit_bias"] = card.logit_bias
    write_json(folder / CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": card.preprocess})


def _current(referee: TwoTower, card: Card | None) -> Card:
    """The given card, or the referee's own, with the numbers that the referee has now."""
    refuse_smoothed(referee.image_tower, "has no weights of its own to save", "save its base, and smooth that")
    return replace(
        card or referee.card,
        preprocess=referee.preprocess.config(),
        logit_scale=referee.logit_scale,
        logit_bias=referee.logit_bias,
        text_tower=referee.text_tower.source(),
    )


def _sealed(card: Card, folder: Path, files: list[str]) -> Card:
    """Write the card of a folder whose weight `files` are written, with their hashes, and return it."""
    for stale in {IMAGE_TOWER, FULL} - set(files):  # of another kind of referee, saved here before
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
        image = read_weights(_vouched(folder, card, IMAGE_TOWER))
    else:
        raise UsageError(f"{folder} holds an image tower only, and its card names no text tower that is found by name")
    tower = load_image_tower(card.architecture, image, source=str(folder))
    preprocess = Preprocess.from_config(card.preprocess)
    referee = TwoTower(
        tower, text_tower, preprocess, card=card, logit_scale=card.logit_scale, logit_bias=card.logit_bias
    )
    return referee.eval().requires_grad_(False)
