"""Attacks on what a referee sees: Eq. 4 and its kin, and their control."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from robustclip.attacks import AttackSpec
from robustclip.errors import UsageError, coded
from robustclip.explanation.looks import Objective, attack, negate, noise
from robustclip.referees.base import TwoTower
from robustclip.referees.toy import toy_referee

IDS = ["a", "b", "c"]
SPECS = ["l2:1@4", "linf:8/255@4x2"]


@pytest.fixture(scope="module")
def referee() -> TwoTower:
    return toy_referee()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))


def objective_of(name: Objective, referee: TwoTower, images: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """The objective by its formula, from cosines taken one by one."""
    embeddings = referee.embed_images(images)
    mine, others = (embeddings * own).sum(1), (embeddings * other).sum(1)
    return {"negation": (1 - mine) - (1 - others), "untargeted": 1 - mine, "targeted": others}[name]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("objective", get_args(Objective))
def test_an_attack_stays_in_its_ball_and_raises_its_objective(
    objective: Objective, spec: str, referee: TwoTower, images: Tensor
) -> None:
    own, other = referee.embed_texts(IDS), referee.embed_texts([negate(text) for text in IDS])
    read = AttackSpec.parse(spec)
    moved = attack(referee, images, own, other, objective=objective, spec=read, ids=IDS, seed=0)
    assert read.threat((20, 24)).contains(moved - images, 1e-4).all()
    assert 0 <= moved.min() <= moved.max() <= 1
    before, after = (objective_of(objective, referee, some, own, other) for some in (images, moved))
    assert (after > before).all()


def test_the_negation_pulls_and_the_untargeted_only_pushes(referee: TwoTower, images: Tensor) -> None:
    own, other = referee.embed_texts(IDS), referee.embed_texts([negate(text) for text in IDS])
    spec = AttackSpec.parse("l2:2@10")
    towards = {
        name: (
            referee.embed_images(attack(referee, images, own, other, objective=name, spec=spec, ids=IDS, seed=0))
            * other
        ).sum()
        for name in get_args(Objective)
    }
    assert towards["targeted"] > towards["negation"] > towards["untargeted"]


def test_no_image_depends_on_its_batch(referee: TwoTower, images: Tensor) -> None:
    own, other = referee.embed_texts(IDS), referee.embed_texts([negate(text) for text in IDS])
    spec = AttackSpec.parse("l2:1@3")
    together = attack(referee, images, own, other, spec=spec, ids=IDS, seed=0)
    alone = attack(referee, images[2:], own[2:], other[2:], spec=spec, ids=IDS[2:], seed=0)
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=0)
    seeded = attack(referee, images, own, other, spec=spec, ids=IDS, seed=1)
    assert not torch.equal(together, seeded)


def test_what_an_objective_lacks_is_said(referee: TwoTower, images: Tensor) -> None:
    spec = AttackSpec.parse("l2:1@3")
    for objective in ("negation", "targeted"):
        with pytest.raises(UsageError, check=coded("no_targets", objective=objective)):
            attack(referee, images, referee.embed_texts(IDS), objective=objective, spec=spec, ids=IDS, seed=0)
    with pytest.raises(UsageError, check=coded("unknown_objective", given="denial")):
        attack(referee, images, referee.embed_texts(IDS), objective="denial", spec=spec, ids=IDS, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", SPECS)
def test_noise_has_the_attacks_norm_also_on_white(spec: str) -> None:
    read = AttackSpec.parse(spec)
    white = torch.ones(2, 3, 16, 16)
    moved = noise(white, read, ids=["a", "b"], seed=0)
    assert 0 <= moved.min() <= moved.max() <= 1
    torch.testing.assert_close(read.threat(16).norms(moved - white), torch.full((2,), read.eps))
    assert torch.equal(noise(white[1:], read, ids=["b"], seed=0), moved[1:])
    grey = white / 2
    assert not torch.equal(noise(grey, read, ids=["a", "b"], seed=1), noise(grey, read, ids=["a", "b"], seed=0))
