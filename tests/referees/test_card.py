from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError, coded
from robustclip.referees.card import Card, Claim

CLAIM = Claim("top-5", 0.41, 0.38, 0.44, 1000, 0, "emoji/unseen-styles", "l2:1.5@20", "2025-01-31")


@pytest.fixture
def card() -> Card:
    return Card(
        name="guide",
        family="open_clip",
        architecture={"embed_dim": 8, "vision_cfg": {"timm_model_name": "resnet10t"}},
        preprocess={"size": [64, 64]},
        logit_scale=20.0,
        text_tower={"name": "encoder", "sha256": "ab"},
        weights={"image_tower.safetensors": "cd" * 32},
        threat=ThreatModel("l2", 1.5, 64),
        provenance={"recipe": "emoji", "arguments": {"steps": 3}},
        claims=[CLAIM],
    )


def test_a_card_comes_back_from_its_folder(card: Card, tmp_path: Path) -> None:
    card.save(tmp_path)
    assert Card.load(tmp_path) == card
    assert Card.load(tmp_path).threat == ThreatModel("l2", 1.5, 64)


def test_its_readable_form_tells_what_a_reader_needs(card: Card, tmp_path: Path) -> None:
    card.save(tmp_path)
    text = (tmp_path / "README.md").read_text()
    for expected in (
        "# guide",
        "L2 eps 1.5 at 64x64 (RMS 0.0135 = 3.45/255)",
        "timm resnet10t, sees 64x64 pixels",
        "| top-5 | 0.41 | 0.38 to 0.44 | 1000 | l2:1.5@20 | emoji/unseen-styles | 0 | 2025-01-31 |",
        "- recipe: emoji",
        '- arguments: `{"steps": 3}`',
        f"| image_tower.safetensors | `{'cd' * 32}` |",
        "| text tower encoder (of its tensors) | `ab` |",
        'load_referee("guide")',
    ):
        assert expected in text


def test_signing_replaces_the_same_measurement(card: Card) -> None:
    newer = Claim("top-5", 0.5, 0.4, 0.6, 1_000, 0, "emoji/unseen-styles", "l2:1.5@20", "2025-02-01")
    clean = Claim("top-5", 0.9, 0.8, 1.0, 100, 0, "emoji/unseen-styles", None, "2025-02-01")
    card.sign([newer, clean])
    assert card.claims == [newer, clean]
    fewer = Claim("top-5", 0.6, 0.2, 0.9, 10, 0, "emoji/unseen-styles", "l2:1.5@20", "2025-03-01")
    card.sign([fewer])
    assert card.claims == [newer, clean]  # a quick look puts no number in the place of a surer one


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("{", coded("not_json")),
        ("[]", coded("not_an_object", given="list")),
        (
            json.dumps({"name": "x", "colour": 1}),
            coded("wrong_entries", missing=["architecture", "family", "logit_scale", "preprocess"], unknown=["colour"]),
        ),
    ],
)
def test_what_is_no_card_is_refused(text: str, check: Any, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(UsageError, check=check):
        Card.load(tmp_path)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("no_card", folder=str(tmp_path))):
        Card.load(tmp_path)


def test_a_claim_with_a_hole_is_refused(card: Card) -> None:
    values = card.to_json()
    del values["claims"][0]["seed"]
    with pytest.raises(UsageError, check=coded("wrong_entries", missing=["seed"], unknown=[])):
        Card.from_json(values)
