"""What a claim says of how it was measured: in fields, or on an older card in its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from robustclip.errors import UsageError
from robustclip.evaluation.claims import measured, task_of
from robustclip.referees.card import Card, Claim
from robustclip.referees.toy import toy_referee

CLAIM = Claim("top-1", 0.5, 0.4, 0.6, 100, 0, "emoji/unseen-styles", None, "2026-01-01")


@pytest.mark.parametrize(
    ("name", "task", "how"),
    [
        ("top-5", "zero-shot", {"labels": "all"}),
        ("top-5 of 200 present", "zero-shot", {"labels": "present"}),
        ("top-1 of 12 labels", "zero-shot", {"labels": 12}),
        ("low-frequency share", "gradients", {}),
        ("image to text recall@1", "retrieval", {}),
        ("pointing game (gradcam)", "maps", {"method": "gradcam", "layer": None}),
        ("overlap of top 20% (gradcam++ at trunk.3)", "maps", {"method": "gradcam++", "layer": "trunk.3"}),
        ("ROAD minus a centre blob's (smoothgrad)", "faithfulness", {"method": "smoothgrad", "layer": None}),
        ("PAG score (judge emoji-judge, 10 names)", "pag", {"judge": "emoji-judge"}),
        ("PAG score minus a's (judge b, 10 names)", "pag", {"judge": "b", "baseline": "a"}),
    ],
)
def test_older_claims_tell_it_in_their_names(name: str, task: str, how: dict[str, Any]) -> None:
    assert task_of(replace(CLAIM, name=name)) == (task, how)


def test_newer_claims_tell_it_in_fields_whatever_their_name() -> None:
    claim = replace(CLAIM, name="PAG score (judge b, 10 names)", task="maps", how={"method": "gradcam"})
    assert task_of(claim) == ("maps", {"method": "gradcam"})


@pytest.mark.parametrize(
    ("task", "how"),
    [("zero-shot", {"templates": "/etc/passwd"}), ("corruptions", {}), ("maps", {"out": "/tmp/x"}), ("", {})],
)
def test_a_claim_gives_no_other_arguments(task: str, how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot be measured again"):
        measured(toy_referee(), replace(CLAIM, task=task, how=how), "cpu")


def test_cards_with_and_without_the_fields_come_back() -> None:
    newer = replace(CLAIM, task="zero-shot", how={"labels": 12})
    card = Card("mine", "toy", {}, {}, 1.0, claims=[CLAIM, newer])
    older, written = card.to_json()["claims"]
    assert not {"task", "how"} & set(older)
    assert (written["task"], written["how"]) == ("zero-shot", {"labels": 12})
    preprocess = toy_referee().card.preprocess
    assert Card.from_json(card.to_json() | {"preprocess": preprocess}).claims == [CLAIM, newer]
    for how in ({"labels": [1]}, {"labels": 1.5}, "labels"):
        with pytest.raises(UsageError, match="how"):
            Card.from_json(card.to_json() | {"preprocess": preprocess, "claims": [written | {"how": how}]})
