"""The fields of a claim that say how it was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.evaluation import evaluate
from robustclip.evaluation.claims import HOW, measured
from robustclip.evaluation.named import UNSIGNED
from robustclip.evaluation.tasks import TASKS
from robustclip.referees.card import Card, Claim
from robustclip.referees.folder import save_referee
from robustclip.referees.toy import toy_referee

CLAIM = Claim("top-1", 0.5, 0.4, 0.6, 100, 0, "emoji/unseen-styles", None, "2026-01-01")


@pytest.mark.parametrize(
    ("task", "how"),
    [("zero-shot", {"templates": "/etc/passwd"}), ("corruptions", {}), ("maps", {"out": "/tmp/x"}), ("", {})],
)
def test_a_claim_gives_no_other_arguments(task: str, how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, check=coded("not_measurable", task=task)):
        measured(toy_referee(), replace(CLAIM, task=task, how=how), "cpu")


def test_what_is_signed_can_be_measured_again() -> None:
    refused = "certification"  # with sign
    assert set(HOW) == set(TASKS) - {*UNSIGNED, refused}


def test_the_fields_come_back_from_a_card() -> None:
    claims = [CLAIM, replace(CLAIM, task="zero-shot", how={"labels": 12})]
    card = Card("mine", "toy", {}, {}, 1.0, claims=claims)
    older, written = card.to_json()["claims"]
    assert (written["task"], written["how"]) == ("zero-shot", {"labels": 12})
    preprocess = toy_referee().card.preprocess
    assert Card.from_json(card.to_json() | {"preprocess": preprocess}).claims == claims
    del older["task"], older["how"]
    again = Card.from_json(card.to_json() | {"preprocess": preprocess, "claims": [older]})
    with pytest.raises(UsageError, check=coded("not_measurable")):
        measured(toy_referee(), again.claims[0], "cpu")
    for how in ({"labels": [1]}, {"labels": 1.5}, "labels"):
        with pytest.raises(UsageError, check=coded("invalid_entries")):
            Card.from_json(card.to_json() | {"preprocess": preprocess, "claims": [written | {"how": how}]})


def test_a_recall_of_captions_is_measured_again_on_as_many_images(tmp_path: Path) -> None:
    drawn = torch.Generator().manual_seed(0)
    for number in range(12):  # of 4 captions
        save_image(torch.rand(3, 16, 16, generator=drawn), tmp_path / "data" / f"{number:02}.png")
        (tmp_path / "data" / f"{number:02}.txt").write_text(f"picture {number % 4}\n")
    save_referee(toy_referee(), tmp_path / "toy")
    evaluate([tmp_path / "toy"], data=tmp_path / "data", tasks=["retrieval"], sign=True, device="cpu")
    for claim in Card.load(tmp_path / "toy").claims:
        of_captions = claim.name.startswith("text to image")
        assert (claim.n, claim.how) == ((4, {"images": 12}) if of_captions else (12, {}))
        assert measured(toy_referee(), claim, "cpu") == claim.value


def test_a_claim_of_resized_images_is_measured_again_at_that_size(tmp_path: Path) -> None:
    drawn = torch.Generator().manual_seed(0)
    for number in range(6):
        save_image(torch.rand(3, 32, 32, generator=drawn), tmp_path / "data" / "ab"[number % 2] / f"{number}.png")
    save_referee(toy_referee(), tmp_path / "toy")
    evaluate([tmp_path / "toy"], data=tmp_path / "data", tasks=["gradients"], size=8, sign=True, device="cpu")
    [claim] = Card.load(tmp_path / "toy").claims
    assert claim.how == {"size": 8}
    assert measured(toy_referee(), claim, "cpu") == claim.value
    assert measured(toy_referee(), replace(claim, how={}), "cpu") != claim.value
