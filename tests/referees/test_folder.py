from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import RunError, UsageError, coded
from robustclip.referees import huggingface
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.checkpoints import load_checkpoint
from robustclip.referees.folder import load_referee_folder, save_full, save_referee
from robustclip.referees.toy import toy_referee
from robustclip.runs.files import sha256

TEXTS = ["a cat", "two dogs"]


@pytest.fixture
def open_clip_referee(open_clip_model: Any, architecture: str, tmp_path: Path) -> TwoTower:
    torch.save(open_clip_model.state_dict(), tmp_path / "tiny.pt")
    return load_checkpoint(tmp_path / "tiny.pt", architecture, quick_gelu=True)


def same(one: TwoTower, other: TwoTower, images: Tensor) -> bool:
    """Bit-equal embeddings, and the same numbers beside them."""
    return (
        torch.equal(one.embed_images(images), other.embed_images(images))
        and torch.equal(one.embed_texts(TEXTS), other.embed_texts(TEXTS))
        and (one.logit_scale, one.logit_bias, one.image_size) == (other.logit_scale, other.logit_bias, other.image_size)
    )


def test_an_image_tower_with_a_named_text_tower(sentence_referee: TwoTower, images: Tensor, tmp_path: Path) -> None:
    sentence_referee.logit_scale = 31.7
    card = save_referee(sentence_referee, tmp_path)
    assert set(card.weights) == {"image_tower.safetensors"}
    assert card.weights["image_tower.safetensors"] == sha256(tmp_path / "image_tower.safetensors")
    assert card.text_tower is not None
    assert card.text_tower["name"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert set(load_file(tmp_path / "image_tower.safetensors")) == set(sentence_referee.image_tower.state_dict())
    loaded = load_referee_folder(tmp_path)
    assert same(loaded, sentence_referee, images)
    assert loaded.card == card
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_both_towers_of_open_clip(open_clip_referee: TwoTower, images: Tensor, tmp_path: Path) -> None:
    card = save_referee(open_clip_referee, tmp_path / "saved")
    assert set(card.weights) == {"open_clip_model.safetensors"}
    assert card.architecture["quick_gelu"]
    assert same(load_referee_folder(tmp_path / "saved"), open_clip_referee, images)


def test_both_towers_with_the_sentence_encoder_need_no_package(
    sentence_referee: TwoTower, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_full(sentence_referee, tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    monkeypatch.setattr("robustclip.referees.sentence.package_folder", lambda: pytest.fail("the package was asked for"))
    assert same(load_referee_folder(tmp_path / "moved"), sentence_referee, images)


def test_a_toy(images: Tensor, tmp_path: Path) -> None:
    toy = toy_referee(seed=5)
    save_referee(toy, tmp_path)
    assert same(load_referee_folder(tmp_path), toy, images)


def test_a_clip_of_transformers(images: Tensor, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    toy = toy_referee()
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30522},
        vision_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32},
        projection_dim=6,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    from robustclip.referees.sentence import package_folder

    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(package_folder() / file, tmp_path / "clip")
    referee = huggingface.load_folder(tmp_path / "clip")
    with torch.no_grad():
        referee.image_tower.get_submodule("visual_projection").weight.mul_(2)  # type: ignore[operator]
    card = save_referee(referee, tmp_path / "saved")
    assert set(card.weights) == {"model.safetensors"}
    assert same(load_referee_folder(tmp_path / "saved"), referee, images)
    plain = transformers.CLIPModel.from_pretrained(tmp_path / "saved", local_files_only=True)
    torch.testing.assert_close(plain.logit_scale.exp().item(), referee.logit_scale)
    mixed = TwoTower(referee.image_tower, toy_referee(width=6).text_tower, referee.preprocess, card=referee.card)
    with pytest.raises(UsageError, check=coded("text_tower_unsupported")):
        save_referee(mixed, tmp_path / "mixed")
    assert toy.card.family == "toy"


def test_half_precision_halves_the_file_and_loads_as_float32(
    sentence_referee: TwoTower, images: Tensor, tmp_path: Path
) -> None:
    full = save_referee(sentence_referee, tmp_path / "full")
    half = save_referee(sentence_referee, tmp_path / "half", half=True)
    sizes = [(tmp_path / name / "image_tower.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert full.weights != half.weights
    loaded = load_referee_folder(tmp_path / "half")
    assert next(loaded.image_tower.parameters()).dtype == torch.float32
    torch.testing.assert_close(loaded.embed_images(images), sentence_referee.embed_images(images), atol=5e-3, rtol=0)


def test_bias_threat_and_provenance_are_kept(sentence_referee: TwoTower, tmp_path: Path) -> None:
    sentence_referee.logit_bias = -10.0
    card = replace(sentence_referee.card, threat=ThreatModel("l2", 1.5, 64), provenance={"recipe": "emoji"})
    save_referee(sentence_referee, tmp_path, card=card)
    loaded = load_referee_folder(tmp_path)
    assert loaded.logit_bias == -10.0
    assert loaded.card.threat == ThreatModel("l2", 1.5, 64)
    assert loaded.card.provenance == {"recipe": "emoji"}
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["init_logit_bias"] == -10.0


def test_saving_over_another_kind_leaves_one_weight_file(sentence_referee: TwoTower, tmp_path: Path) -> None:
    save_full(sentence_referee, tmp_path)
    save_referee(sentence_referee, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["image_tower.safetensors"]


def test_broken_folders(sentence_referee: TwoTower, tmp_path: Path) -> None:
    card = save_referee(sentence_referee, tmp_path)
    replace(card, family="blip").save(tmp_path)
    with pytest.raises(UsageError, check=coded("unknown_family", family="blip")):
        load_referee_folder(tmp_path)
    replace(card, architecture=card.architecture | {"text_cfg": {}}).save(tmp_path)
    with pytest.raises(UsageError, check=coded("no_text_tower")):
        load_referee_folder(tmp_path)
    replace(card, weights={}).save(tmp_path)
    with pytest.raises(RunError, check=coded("incomplete", missing=[])):
        load_referee_folder(tmp_path)
    card.save(tmp_path)
    (tmp_path / "image_tower.safetensors").unlink()
    with pytest.raises(RunError, check=coded("incomplete", missing=["image_tower.safetensors"])):
        load_referee_folder(tmp_path)


def test_another_file_than_the_cards_is_refused_with_the_way_out(sentence_referee: TwoTower, tmp_path: Path) -> None:
    card = save_referee(sentence_referee, tmp_path)
    (tmp_path / "image_tower.safetensors").write_bytes((tmp_path / "image_tower.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, check=coded("other_hash", names=["image_tower.safetensors"])):
        load_referee_folder(tmp_path)
    load_referee_folder(tmp_path, checked=False)
    card = save_referee(sentence_referee, tmp_path)
    replace(card, text_tower={"name": "x", "sha256": "0"}).save(tmp_path)
    with pytest.raises(RunError, check=coded("other_text_tower", name="x")):
        load_referee_folder(tmp_path)


def test_weights_that_do_not_fit_the_card(sentence_referee: TwoTower, tmp_path: Path) -> None:
    card = save_referee(sentence_referee, tmp_path)
    vision = card.architecture["vision_cfg"] | {"timm_model_name": "test_resnet"}
    replace(card, architecture=card.architecture | {"vision_cfg": vision}).save(tmp_path)
    with pytest.raises(UsageError, check=coded("does_not_fit")):
        load_referee_folder(tmp_path)
    assert Card.load(tmp_path).architecture["vision_cfg"]["timm_model_name"] == "test_resnet"
