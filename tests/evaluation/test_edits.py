"""Texts under character edits, by a referee that counts letters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustclip.attacks.text import Score
from robustclip.data.images import save_image
from robustclip.errors import UsageError
from robustclip.evaluation import evaluate, retrieval
from robustclip.referees.base import TextTower, TwoTower
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess


class Letters(TextTower):
    """The numbers of r, g and b in a text."""

    width = 3

    def forward(self, texts: list[str]) -> Tensor:
        return torch.tensor([[float(text.count(letter)) for letter in "rgb"] for text in texts]).reshape(-1, 3)


class MeanColour(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def referee() -> TwoTower:
    preprocess = Preprocess(8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    card = Card(name="letters", family="toy", architecture={}, preprocess={}, logit_scale=10.0)
    return TwoTower(MeanColour(), Letters(), preprocess, card=card, logit_scale=10.0)


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        colour = torch.tensor([float(name[0] == letter) for letter in "rgb"]).view(3, 1, 1)
        save_image(colour.expand(3, 8, 8), folder / name / "0.png")
    return folder


def test_two_edits_of_three_letters_change_the_answer_and_one_does_not(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", "rrr", "ggg", "bbb")
    report = evaluate([referee()], data=data, tasks=["edits"], device="cpu", out=tmp_path / "out")
    rows = {row.attack: row.value for row in report.rows if row.kind == "value"}
    assert rows["clean"] == rows["edits:1"] == rows["random edits:1"] == 1  # rrg is still red
    assert rows["edits:2"] == 0  # rgg is green
    answers = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    texts = {(one["attack"], one["id"]): one["text"] for one in answers}
    assert texts["clean", "rrr"] == "rrr"
    assert sorted(texts["edits:1", "rrr"]) in (["g", "r", "r"], ["b", "r", "r"])
    assert len(set(texts["edits:2", "rrr"])) == 2
    margins = {(one["attack"], one["id"]): one["margin"] for one in answers}
    assert margins["edits:1", "rrr"] == pytest.approx((2 - 1) / 5**0.5)  # of (2, 1, 0) to red and green
    again = evaluate([referee()], data=data, tasks=["edits"], device="cpu")
    assert [row.value for row in again.rows] == [row.value for row in report.rows]


def test_a_set_of_one_text_has_nothing_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        evaluate([referee()], data=folder_of(tmp_path / "data", "rrr"), tasks=["edits"], device="cpu")


def test_a_text_is_attacked_until_it_fails_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rrr that one edit does not move is tried at one place, then at all; what two edits move stays as it is."""
    tried: list[tuple[int, list[str]]] = []
    charmer = retrieval.charmer

    def watched(texts: list[str], score: Score, *, places: int) -> list[str]:
        tried.append((places, texts))
        return charmer(texts, score, places=places)

    monkeypatch.setattr(retrieval, "charmer", watched)
    data = folder_of(tmp_path / "data", "rrr", "g", "bbb")
    report = evaluate([referee()], data=data, tasks=["edits"], device="cpu")
    assert {row.attack: row.value for row in report.rows if row.kind == "value"}["edits:1"] == pytest.approx(2 / 3)
    once, all_places, twice = tried[:3]
    assert once == (1, ["bbb", "g", "rrr"])  # g becomes r at its only good place
    assert all_places == (20, ["bbb", "rrr"])
    assert twice[0] == 1
    assert len(twice[1]) == 2
    assert "g" not in twice[1]
