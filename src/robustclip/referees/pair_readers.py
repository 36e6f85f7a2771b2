"""Load pair readers (BLIP-2) by name or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from robustclip.data import embedded
from robustclip.errors import UsageError
from robustclip.referees import blip2_full
from robustclip.referees.base import FAMILIES
from robustclip.referees.blip2 import Blip2
from robustclip.referees.blip2_full import is_library_folder, load_full, load_library
from robustclip.referees.blip2_mini import build_mini
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.folder import refuse_other_files
from robustclip.referees.registry import find, load_referee
from robustclip.referees.smoothed import fingerprint
from robustclip.referees.weights import digest, load_strictly, read_weights, write_weights
from robustclip.runs.files import is_file, sha256, write_text

FAMILY: Final = "blip2-mini"
WEIGHTS, VOCABULARY = "model.safetensors", "vocab.txt"
TOWER: Final = "vision.trunk."  # prefix of weights that are loaded by the tower's name
LARGEST: Final = 4096  # bound of sizes in a card, against excessive memory


def pair_reader_names() -> list[str]:
    """The pair readers that come with the package."""
    return list(embedded.folders("pair_readers", CARD_FILE))


def load_pair_reader(name_or_folder: str | Path, device: str | torch.device = "cpu") -> Blip2:
    """Load a pair reader by its embedded or registered name, or from a folder: of `save_mini`, of `robustclip convert
    lavis-blip2`, or transformers' Blip2ForImageTextRetrieval, which has no captioning loss. Frozen, in eval mode.

    Raises UsageError for a name or folder that is not a pair reader's, and for an invalid card; RunError for damaged
    weights, and for files that are not the card's.
    """
    return _load(_folder_of(name_or_folder), name_or_folder).to(device).eval().requires_grad_(False)


def _load(folder: Path, name_or_folder: str | Path) -> Blip2:
    if is_library_folder(folder):
        return load_library(folder)
    if not is_file(folder / CARD_FILE):
        raise UsageError(
            f"there is no pair reader {str(name_or_folder)[:200]!r}: give a folder, or a name "
            f"({', '.join(pair_reader_names())}){embedded.hint(name_or_folder)}"
        )
    card = Card.load(folder)
    if card.family not in FAMILIES:
        raise UsageError(
            f"{folder} holds a referee of the family {card.family}, which does not read pairs: robustclip.load_referee "
            f"loads it. Pair readers: {', '.join(pair_reader_names())}, and folders of robustclip convert lavis-blip2"
        )
    return load_full(folder, card) if card.family == blip2_full.FAMILY else _load_mini(folder, card)


def save_mini(reader: Blip2, folder: Path, tower: str, sizes: dict[str, int], *, provenance: dict[str, Any]) -> Card:
    """Write card, vocabulary and weights in half precision. The image tower is not among them: the card names the CLIP
    that it is of, and its fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value for name, value in reader.state_dict().items() if _is_own(name)}
    write_weights(folder / WEIGHTS, weights, half=True)
    write_text(folder / VOCABULARY, "\n".join(_entries(reader)) + "\n")
    own = fingerprint(load_referee(tower))
    card = Card(
        name=reader.card.name,
        family=FAMILY,
        architecture={"tower": tower, "fingerprint": own, **sizes},
        preprocess=reader.preprocess.config(),
        logit_scale=1 / reader.temperature.item(),
        weights={WEIGHTS: sha256(folder / WEIGHTS), VOCABULARY: sha256(folder / VOCABULARY)},
        provenance=provenance,
    )
    card.save(folder, usage=USAGE.format(name=card.name))
    return card


USAGE: Final = """from robustclip.referees.pair_readers import load_pair_reader

reader = load_pair_reader("{name}")  # or the path of this folder
reader.matching_logits(images, ["a yellow banana and a blue butterfly"])"""


def pair_fingerprint(reader: Blip2) -> str:
    """SHA-256 of all its weights."""
    return digest(reader.state_dict())


def _load_mini(folder: Path, card: Card) -> Blip2:
    described = card.architecture
    names = ("hidden", "layers", "heads", "queries", "shared")
    sizes = {name: described.get(name) for name in names}
    if not all(type(size) is int and 0 < size <= LARGEST for size in sizes.values()):
        raise UsageError(f"{folder / CARD_FILE} has no whole sizes ({', '.join(names)}): write the folder again")
    tower = load_referee(str(described.get("tower")))
    if fingerprint(tower) != described.get("fingerprint"):
        raise UsageError(
            f"{folder} was trained on the image tower of another {described.get('tower')!r} than the one of that name "
            "here: train it again (robustclip robustify pretrain/emoji-blip2)"
        )
    for name in (WEIGHTS, VOCABULARY):
        if not is_file(folder / name):
            raise UsageError(f"{folder} has no {name}: give a whole folder")
    refuse_other_files(folder, card)
    vocabulary = (folder / VOCABULARY).read_text(encoding="utf-8").rstrip("\n").split("\n")
    reader = build_mini(tower, vocabulary, {name: int(str(size)) for name, size in sizes.items()}, card=card)
    weights = {name: value.float() for name, value in read_weights(folder / WEIGHTS).items()}
    weights |= {name: value for name, value in reader.state_dict().items() if not _is_own(name)}
    load_strictly(reader, weights, source=str(folder / WEIGHTS), hint="Give a whole folder, or train it again")
    return reader


def _is_own(name: str) -> bool:
    return not name.startswith((TOWER, "preprocess."))


def _entries(reader: Blip2) -> list[str]:
    vocabulary = reader.tokenizer.tokenizer.get_vocab()
    return sorted(vocabulary, key=lambda token: vocabulary[token])


def is_pair_reader(name_or_folder: str | Path) -> bool:
    """Whether a name or folder is a pair reader's."""
    folder = _folder_of(name_or_folder)
    if is_library_folder(folder):
        return True
    return is_file(folder / CARD_FILE) and Card.load(folder).family in FAMILIES


def _folder_of(name_or_folder: str | Path) -> Path:
    """The folder of an embedded or registered name, or the folder itself."""
    shipped = embedded.folders("pair_readers", CARD_FILE)
    if str(name_or_folder) in shipped:
        return shipped[str(name_or_folder)]
    entry = find(str(name_or_folder))
    return Path(name_or_folder) if entry is None else entry.existing_folder()
