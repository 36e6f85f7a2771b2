"""The margin of the colour referee is known: red over green by 0.2 in the mean of 64 pixels is lost by taking 0.1 from
one and adding it to the other, which costs an L2 distance of 0.1 * sqrt(2 * 64) = 1.131."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustclip.attacks import AttackSpec
from robustclip.attacks.spec import check_inside, random_perturbation
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import RunError, coded
from robustclip.evaluation.attacked import classify_under_attack, cosines_under_noise
from robustclip.evaluation.zeroshot import Predictions, predictions
from robustclip.referees.similarity import all_cosines, class_embeddings


def under_attack(referee, images: Tensor, targets: Tensor, spec: str, **options) -> tuple[Predictions, Predictions]:
    """(clean, attacked)."""
    classes = class_embeddings(referee, list(referee.text_tower.words))
    clean = predictions(all_cosines(referee, images, classes, batch_size=2), targets)
    ids = [str(place) for place in range(len(images))]
    settings = {"clean": clean, "batch_size": 2, "seed": 0, "ids": ids} | options
    return clean, classify_under_attack(referee, images, targets, classes, AttackSpec.parse(spec), **settings)


@pytest.mark.parametrize(("eps", "rank"), [(1.1, 0), (1.2, 1)])
def test_an_image_falls_where_the_margin_ends(colour_referee, plain, eps: float, rank: int) -> None:
    two_words = colour_referee(words={"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0)})

    clean, attacked = under_attack(two_words, plain((0.6, 0.4, 0.0)), torch.tensor([0]), f"l2:{eps}@40")

    assert clean.ranks.tolist() == [0]
    assert attacked.ranks.tolist() == [rank]
    assert attacked.top[0, 0] == rank  # the answer changed with it


def test_noise_of_the_same_norm_does_not_fell_it(colour_referee, plain) -> None:
    referee = colour_referee()
    classes = class_embeddings(referee, ["red", "green", "blue"])
    images = plain((0.6, 0.4, 0.0)).expand(20, -1, -1, -1)

    scores = cosines_under_noise(referee, images, classes, AttackSpec.parse("l2:1.2@1"), batch_size=8, seed=0)

    assert predictions(scores, torch.zeros(20, dtype=torch.long)).ranks.tolist() == [0] * 20


def test_an_image_that_is_wrong_untouched_stays_as_it_was(colour_referee, plain) -> None:
    words = {name: (1.0, 0.1 * place, 0.0) for place, name in enumerate("abcdefg")}
    referee = colour_referee(words=words)
    images = plain((0.5, 0.0, 0.0), (0.5, 0.0, 0.0))
    towers_view = torch.tensor([6, 0])  # the farthest text, out of the first five; and the nearest

    clean, attacked = under_attack(referee, images, towers_view, "l2:3@5")

    assert clean.ranks.tolist() == [6, 0]
    assert attacked.ranks[0] == 6
    torch.testing.assert_close(attacked.top[0], clean.top[0])
    assert attacked.ranks[1] > 0


def test_restarts_never_raise_accuracy_and_answers_repeat(colour_referee) -> None:
    tower = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.GELU(), nn.Linear(16, 3))
    drawn = torch.Generator().manual_seed(0)
    for weight in tower.parameters():
        nn.init.normal_(weight, std=0.3, generator=drawn)
    referee = colour_referee(tower=tower)
    images = torch.rand(24, 3, 8, 8, generator=drawn)
    targets = torch.randint(3, (24,), generator=drawn)

    clean, once = under_attack(referee, images, targets, "l2:0.2@2")
    _, again = under_attack(referee, images, targets, "l2:0.2@2")
    _, thrice = under_attack(referee, images, targets, "l2:0.2@2x3")

    assert torch.equal(once.ranks, again.ranks)
    assert bool((once.ranks >= clean.ranks).all())
    assert bool((thrice.ranks >= once.ranks).all())
    assert once.ranks.sum() > clean.ranks.sum()


def test_the_referee_gets_its_mode_back(colour_referee, plain) -> None:
    referee = colour_referee(tower=nn.Sequential(nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten())).train()

    _, attacked = under_attack(referee, plain((0.9, 0.0, 0.0)), torch.tensor([0]), "l2:0.1@2")

    assert referee.image_tower.training
    assert attacked.ranks.shape == (1,)


@pytest.mark.parametrize(
    "moved",
    [
        torch.full((1, 3, 4, 4), 0.8),  # 0.3 * sqrt(48) = 2.08 away
        torch.full((1, 3, 4, 4), float("nan")),
    ],
)
def test_an_attack_that_left_its_ball_is_a_fault_of_the_run(moved: Tensor) -> None:
    images = torch.full((1, 3, 4, 4), 0.5)

    with pytest.raises(RunError, check=coded("outside_threat_model"), match="L2 eps 1 at 4x4"):
        check_inside(images, moved, ThreatModel("l2", 1, 4))


def test_an_attack_that_left_the_pixel_range_is_a_fault_of_the_run() -> None:
    images = torch.full((1, 3, 4, 4), 0.999)

    with pytest.raises(RunError, match=r"pixels in \[1.001, 1.001\]"):
        check_inside(images, images + 0.002, ThreatModel("l2", 1, 4))
    check_inside(images, images + 0.001, ThreatModel("l2", 1, 4))


@pytest.mark.parametrize(("norm", "eps"), [("l2", 1.5), ("linf", 4 / 255)])
@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
def test_the_control_has_exactly_the_norm_even_on_white(norm, eps: float, shade: float) -> None:
    images = torch.full((3, 3, 16, 16), shade)
    threat = ThreatModel(norm, eps, 16)

    moved = random_perturbation(images, threat, seed=0, indices=torch.arange(3))

    torch.testing.assert_close(threat.norms(moved - images), torch.full((3,), eps), rtol=1e-4, atol=0)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


def test_the_control_of_an_image_depends_on_its_index_alone() -> None:
    images = torch.full((4, 3, 8, 8), 0.5)
    threat = ThreatModel("l2", 1.0, 8)

    together = random_perturbation(images, threat, seed=0, indices=torch.arange(4))
    alone = random_perturbation(images[2:3], threat, seed=0, indices=torch.tensor([2]))

    assert torch.equal(together[2:3], alone)
    assert not torch.equal(together[2], together[3])
    assert not math.isclose(float(together[0, 0, 0, 0]), 0.5)


def test_every_attacked_image_is_checked(colour_referee, plain, monkeypatch) -> None:
    monkeypatch.setattr("robustclip.attacks.spec.pgd", lambda images, *_, **__: (images + 0.2).clamp(0, 1))

    with pytest.raises(RunError, check=coded("outside_threat_model")):
        under_attack(colour_referee(), plain((0.6, 0.4, 0.0)), torch.tensor([0]), "l2:1@1")
