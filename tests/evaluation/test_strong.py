"""The colour referee is a linear classifier: who is first depends on the mean colour m alone, by the signs of
(t_a - t_b) . m, for all its cosines share a length. So the nearest image of another answer is known: over 64 pixels it
lies at 8 * (t_a - t_b) . m / |t_a - t_b| in L2, and at (t_a - t_b) . m / |t_a - t_b|_1 in L-inf."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchattacks", reason="the evaluation extra is not installed")
from robustclip.attacks import AttackSpec
from robustclip.errors import RunError, UsageError, coded
from robustclip.evaluation import attacked as evaluation
from robustclip.evaluation.attacked import classify_under_attack
from robustclip.evaluation.zeroshot import Predictions, predictions
from robustclip.referees.similarity import all_cosines, class_embeddings

WORDS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "grey": (1.0, 1.0, 1.0)}
BAND = 0.03  # relative: how near to the boundary an attack of 100 steps must come


@pytest.fixture
def colours(plain) -> Tensor:
    """Images far enough from 0 and 1 that the pixel range is in nobody's way."""
    drawn = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    return plain(*(0.3 + 0.4 * drawn).tolist())


def under_attack(referee, images: Tensor, targets: Tensor, spec: str, **options) -> tuple[Predictions, Predictions]:
    """(clean, attacked)."""
    classes = class_embeddings(referee, list(referee.text_tower.words))
    clean = predictions(all_cosines(referee, images, classes, batch_size=16), targets)
    settings = {"clean": clean, "batch_size": 16, "seed": 0, "ids": [str(i) for i in range(len(images))]} | options
    return clean, classify_under_attack(referee, images, targets, classes, AttackSpec.parse(spec), **settings)


def distances(images: Tensor, words: list[str], targets: Tensor, norm: str) -> Tensor:
    """From each image to the nearest one with another answer."""
    texts = torch.nn.functional.normalize(torch.tensor([WORDS[word] for word in words]), dim=1)
    apart = texts[targets][:, None] - texts[None]
    margins = (apart * images.mean((2, 3))[:, None]).sum(2)
    found = 8 * margins / apart.norm(dim=2) if norm == "l2" else margins / apart.abs().sum(2)
    return found.nan_to_num(torch.inf).amin(1)  # 0 / 0 for the answer itself


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("kind", "count", "within"),
    [
        ("apgd-ce", 2, 1 - BAND),
        ("apgd-dlr", 3, 1 - BAND),
        ("apgd-t", 4, 1 - BAND),
        ("autoattack-light", 4, 1 - BAND),
        ("square:400", 2, 0.25),  # draws squares, of which a plain image needs all
    ],
)
def test_exactly_the_images_nearer_than_eps_fall(
    colour_referee, colours: Tensor, norm: str, kind: str, count: int, within: float
) -> None:
    words = list(WORDS)[:count]
    referee = colour_referee(words={word: WORDS[word] for word in words})
    targets = all_cosines(referee, colours, class_embeddings(referee, words), batch_size=40).argmax(1)
    far = distances(colours, words, targets, norm)
    eps = float(far.quantile(0.5))

    clean, attacked = under_attack(referee, colours, targets, f"{norm}:{eps:.6f}@{kind}")

    assert clean.ranks.eq(0).all()
    fallen = attacked.ranks > 0
    assert not fallen[far > eps * 1.001].any()
    assert (far < eps * within).sum() >= 3
    assert fallen[far < eps * within].all()
    assert (attacked.top[fallen, 0] != targets[fallen]).all()
    assert (attacked.top[~fallen] == clean.top[~fallen]).all()


def test_each_part_gets_what_is_still_standing(colour_referee, colours: Tensor, monkeypatch) -> None:
    referee = colour_referee(words=WORDS)
    targets = torch.zeros(40, dtype=torch.long)
    targets[:20] = all_cosines(referee, colours[:20], class_embeddings(referee, list(WORDS)), batch_size=20).argmax(1)
    given: list[tuple[str, int]] = []
    attack = evaluation.library_attack

    def record(images: Tensor, *arguments, **options):
        given.append((options["attack"], len(images)))
        short = options | {"steps": 3}
        return attack(images, *arguments, **short)

    monkeypatch.setattr(evaluation, "library_attack", record)
    clean, attacked = under_attack(referee, colours, targets, "l2:2@autoattack", batch_size=40)

    assert [name for name, _ in given] == ["apgd", "apgd-t", "fab-t", "square"]
    assert given[0][1] == int((clean.ranks == 0).sum()) < 40
    assert all(before >= after for (_, before), (_, after) in pairwise(given))
    assert given[1][1] < given[0][1]
    wrong = clean.ranks > 0
    assert torch.equal(attacked.ranks[wrong], clean.ranks[wrong])
    assert torch.equal(attacked.top[wrong], clean.top[wrong])


def test_images_depend_on_seed_attack_and_ids_alone(colour_referee, plain, monkeypatch) -> None:
    moved: list[Tensor] = []
    inside = evaluation.check_inside
    monkeypatch.setattr(evaluation, "check_inside", lambda x, y, threat: (moved.append(y), inside(x, y, threat)))
    referee, targets = colour_referee(words=WORDS), torch.full((2,), 3)
    images = plain((0.7, 0.4, 0.3), (0.7, 0.4, 0.3))  # grey, and red at a distance of 0.94
    before = torch.get_rng_state()

    for options in ({}, {}, {"seed": 1}, {"ids": ["1", "0"]}):
        under_attack(referee, images, targets, "l2:2@apgd-ce:5", **options)
        torch.rand(3)

    torch.set_rng_state(before)
    under_attack(referee, images, targets, "l2:2@apgd-ce:5")
    assert torch.equal(torch.get_rng_state(), before), "the global generator was moved"
    first, again, seeded, renamed, last = moved
    assert torch.equal(first, again)
    assert torch.equal(first, last)
    assert not torch.equal(first, seeded)
    assert not torch.equal(first, renamed)


def test_every_attacked_image_is_checked(colour_referee, colours: Tensor, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "library_attack", lambda images, *_, **__: (images + 0.2).clamp(0, 1))

    with pytest.raises(RunError, check=coded("outside_threat_model")):
        under_attack(colour_referee(words=WORDS), colours, torch.full((40,), 3), "l2:1@apgd-ce")


def test_few_labels_are_refused(colour_referee, colours: Tensor) -> None:
    with pytest.raises(UsageError, check=coded("too_few_labels", labels=3, fewest=4)):
        under_attack(colour_referee(), colours, torch.zeros(40, dtype=torch.long), "l2:1@autoattack")
