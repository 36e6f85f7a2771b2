"""Folders of pair readers: what is written is read back, and what is none says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustclip.data import embedded
from robustclip.errors import RunError, UsageError, coded
from robustclip.referees import registry
from robustclip.referees.base import FAMILIES
from robustclip.referees.blip2 import Blip2
from robustclip.referees.blip2_full import FAMILY as FULL
from robustclip.referees.blip2_full import bert_tokenizer
from robustclip.referees.card import Card
from robustclip.referees.pair_readers import (
    FAMILY,
    is_pair_reader,
    load_pair_reader,
    move_to_tower,
    new_mini,
    pair_fingerprint,
    save_mini,
    vocabulary_of,
)
from robustclip.referees.registry import load_referee

from .tiny_blip2 import tiny_blip2

SIZES = {"hidden": 16, "layers": 2, "heads": 2, "queries": 3, "shared": 8}
TEXTS = ["a red fish", "a blue hat"]


@pytest.fixture(scope="module")
def reader() -> Blip2:
    clip = load_referee("emoji-vanilla")
    card = Card("tiny", FAMILY, {}, clip.preprocess.config(), 1.0)
    found = new_mini(clip, ["a red fish, and a blue hat"] * 3, **SIZES, card=card)
    return found.eval().requires_grad_(False)


@pytest.fixture
def folder(reader: Blip2, tmp_path: Path) -> Path:
    save_mini(reader, tmp_path / "mini", "emoji-vanilla", SIZES, provenance={"made": "here"})
    return tmp_path / "mini"


@pytest.fixture(scope="module")
def published() -> Any:
    """transformers' model of a tiny size."""
    return tiny_blip2(len(bert_tokenizer()))


@pytest.fixture
def theirs(published: Any, tmp_path: Path) -> Path:
    published.save_pretrained(tmp_path / "hf")
    bert_tokenizer().tokenizer.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@torch.no_grad()
def test_a_folder_gives_back_the_reader_in_half_precision(reader: Blip2, folder: Path) -> None:
    found = load_pair_reader(folder)
    assert found.can_caption
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(found.pair_losses(images, TEXTS), reader.pair_losses(images, TEXTS), atol=2e-2, rtol=0)
    assert pair_fingerprint(found) == pair_fingerprint(reader)
    assert found.card.provenance == {"made": "here"}
    written = load_file(folder / "model.safetensors")
    assert not any("trunk" in name for name in written)  # which its card names instead
    assert "load_pair_reader" in (folder / "README.md").read_text()


def test_its_vocabulary_is_that_of_the_captions(folder: Path) -> None:
    """Words of three uses whole, in order of the alphabet behind letters; others are spelt."""
    found = load_pair_reader(folder)
    assert vocabulary_of(["red fish", "red fish", "red hat"])[-1] == "red"
    ids, mask = found.tokenizer(["a red dish"], torch.device("cpu"))
    tokens = found.tokenizer.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    assert tokens == ["[CLS]", "a", "red", "d", "##i", "##s", "##h", "[SEP]"]
    assert mask.all()


def test_a_registered_name_is_a_name(folder: Path) -> None:
    registry.add(folder, name="mine")
    assert is_pair_reader("mine")
    assert load_pair_reader("mine").card.name == "tiny"
    with pytest.raises(UsageError, match="holds a BLIP-2"):
        load_referee("mine")


def test_where_a_clip_is_asked_for_a_pair_reader_says_where_it_goes(folder: Path, theirs: Path) -> None:
    for path in (folder, theirs):
        assert is_pair_reader(path)
        with pytest.raises(UsageError, check=coded("not_a_clip", folder=str(path))):
            load_referee(path)
    assert {FULL, FAMILY} == set(FAMILIES)


def test_an_embedded_pair_reader_is_none_of_the_referees(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pair_readers").mkdir()
    shutil.copytree(folder, tmp_path / "pair_readers" / folder.name)
    monkeypatch.setattr(embedded, "root", lambda: tmp_path)
    assert folder.name not in [entry.name for entry in registry.list_referees()]
    with pytest.raises(UsageError, check=coded("not_a_clip")):
        load_referee(folder.name)


def test_where_a_pair_reader_is_asked_for_a_clip_says_what_loads_it(tmp_path: Path) -> None:
    assert not is_pair_reader("emoji-vanilla")
    with pytest.raises(UsageError, check=coded("not_a_pair_reader", family="open_clip")):
        load_pair_reader("emoji-vanilla")
    for nothing in ("nobody", "", str(tmp_path), "x" * 5000, "a\0b"):
        assert not is_pair_reader(nothing)
        with pytest.raises(UsageError, check=coded("unknown_pair_reader", given=nothing)):
            load_pair_reader(nothing)


def test_files_that_are_not_the_cards_are_refused(reader: Blip2, folder: Path) -> None:
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text().replace("red", "fed"))
    with pytest.raises(RunError, check=coded("other_hash", names=["vocab.txt"])):
        load_pair_reader(folder)
    save_mini(reader, folder, "emoji-vanilla", SIZES, provenance={})
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "itm_head.bias": weights["itm_head.bias"] + 1}, folder / "model.safetensors")
    with pytest.raises(RunError, check=coded("other_hash", names=["model.safetensors"])):
        load_pair_reader(folder)


def test_the_tower_of_a_whole_reader_is_not_exchanged(theirs: Path) -> None:
    tower = load_referee("emoji-robust")
    with pytest.raises(UsageError) as caught:
        move_to_tower(theirs, tower, tower.card)
    assert caught.value.code == "not_a_mini"


def test_sizes_that_cannot_be_are_refused(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    for name, size, code in (
        ("heads", 3, "heads_do_not_divide"),
        ("queries", 0, "not_sizes"),
        ("layers", 1, "does_not_fit"),
    ):
        card["architecture"] |= SIZES | {name: size}
        (folder / "card.json").write_text(json.dumps(card))
        with pytest.raises(UsageError, check=coded(code)):
            load_pair_reader(folder)


@torch.no_grad()
def test_a_folder_of_transformers_in_many_files(published: Any, theirs: Path) -> None:
    images = torch.rand(2, 3, 16, 16)
    whole = load_pair_reader(theirs).matching_logits(images, TEXTS)
    (theirs / "model.safetensors").unlink()
    published.save_pretrained(theirs, max_shard_size="20KB")
    assert len(list(theirs.glob("*.safetensors"))) > 1
    torch.testing.assert_close(load_pair_reader(theirs).matching_logits(images, TEXTS), whole)
    index = theirs / "model.safetensors.index.json"
    described = json.loads(index.read_text())
    described["weight_map"]["query_tokens"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(described))
    with pytest.raises(UsageError, check=coded("outside_folder")):
        load_pair_reader(theirs)
    index.unlink()
    with pytest.raises(UsageError, check=coded("missing_file")):
        load_pair_reader(theirs)
