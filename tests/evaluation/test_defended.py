"""A planted defence: it looks at a quarter of the pixels, which it rounds at random. The colour referee's margin of 0.2
in the mean of 64 pixels ends at an L2 distance of 0.1 * sqrt(2 * 64) = 1.131, and in the mean of 16 at 0.566. An L2
attack of 0.8 on the whole image spreads evenly, 0.4 on what the defence looks at: the static attack fails.

And a base whose gradient misleads: pixels have a ripple sin(2 pi x / 0.1), in whose next trough an attack is stuck,
within 0.05 of where it began. Noise of deviation 0.1 averages the ripple out, by exp(-(2 pi)^2 / 2)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustclip.attacks import AttackSpec
from robustclip.evaluation import evaluate
from robustclip.evaluation.attacked import classify_under_attack
from robustclip.evaluation.zeroshot import predictions
from robustclip.referees.defended import Defence, defended, straight_through
from robustclip.referees.similarity import all_cosines, class_embeddings
from robustclip.referees.smoothed import smoothed

LEVELS = 32


class RoundedQuarter(Defence):
    """The middle 4x4 pixels, rounded up or down at random; `masked`: without a gradient of use."""

    name = "rounded-quarter"
    draws = 4

    def __init__(self, *, masked: bool = False) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, embed, images: Tensor, noise: torch.Generator) -> Tensor:
        drawn = torch.rand(images.shape[1:], generator=noise)

        def rounded(pixels: Tensor) -> Tensor:
            return (LEVELS * pixels + drawn).floor() / LEVELS

        seen = rounded(images) if self.masked else straight_through(rounded, images)
        return embed(seen[:, :, 2:6, 2:6])


def accuracy(referee, images: Tensor, attack: str, *, static: bool) -> float:
    classes, targets = class_embeddings(referee, ["red", "green", "blue"]), torch.zeros(len(images), dtype=torch.long)
    clean = predictions(all_cosines(referee, images, classes, batch_size=4), targets)
    assert clean.ranks.tolist() == [0] * len(images)
    ids = [str(place) for place in range(len(images))]
    settings = {"clean": clean, "batch_size": 4, "seed": 0, "ids": ids, "static": static}
    after = classify_under_attack(referee, images, targets, classes, AttackSpec.parse(attack), **settings)
    return float((after.ranks == 0).float().mean())


@pytest.mark.parametrize("attack", ["l2:0.8@20", "l2:0.8@apgd-ce:20"])
def test_an_attack_that_knows_the_defence_fells_what_a_static_one_does_not(colour_referee, plain, attack: str) -> None:
    referee = defended(colour_referee(), RoundedQuarter())
    images = plain((0.6, 0.4, 0.0)).expand(4, -1, -1, -1)

    assert accuracy(referee, images, attack, static=True) == 1
    assert accuracy(referee, images, attack, static=False) == 0


def test_without_bpda_the_adaptive_attack_finds_no_gradient(colour_referee, plain) -> None:
    referee = defended(colour_referee(), RoundedQuarter(masked=True))
    images = plain((0.6, 0.4, 0.0)).expand(4, -1, -1, -1)

    assert accuracy(referee, images, "l2:0.8@20", static=False) == 1


class Rippled(nn.Module):
    """Mean colour of pixels with a ripple of period 0.1."""

    def forward(self, images: Tensor) -> Tensor:
        return (images + 0.05 * torch.sin(20 * math.pi * images)).mean((2, 3))


def test_smoothing_over_a_gradient_that_misleads_falls_to_an_attack_through_noise(colour_referee, plain) -> None:
    referee = smoothed(colour_referee(tower=Rippled()), sigma=0.1, samples=16)
    images = plain((0.6, 0.4, 0.0)).expand(4, -1, -1, -1)

    assert accuracy(referee, images, "l2:1.6@20", static=True) == 1
    assert accuracy(referee, images, "l2:1.6@20", static=False) == 0


def test_evaluate_reports_the_gap_of_a_smoothed_referee(colour_referee, colour_folder) -> None:
    referee = smoothed(colour_referee(tower=Rippled()), sigma=0.1, samples=16)

    report = evaluate([referee], data=colour_folder, attack=["l2:1.6@20"])

    name = referee.card.name
    static, adaptive = (report.row(name, "top-1", attack).value for attack in ("static l2:1.6@20", "l2:1.6@20"))
    assert (static, adaptive) == (0.75, 0.5)  # the red of 0.6 falls; the blue was wrong before
    assert report.row(name, "top-1, static minus adaptive", "l2:1.6@20").value == 0.25


def test_attacks_resume_with_the_same_noise(colour_referee, plain) -> None:
    referee = defended(colour_referee(), RoundedQuarter())
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 2 + plain((0.3, 0.2, 0.0)) / 2
    classes = class_embeddings(referee, ["red", "green", "blue"])
    clean = predictions(all_cosines(referee, images, classes, batch_size=6), targets := torch.zeros(6).long())
    found: list[Tensor] = []

    class Kept:
        """A page that holds the first batch from the second call on."""

        stored: dict = {}  # noqa: RUF012

        def recall(self, turn: int, ids):
            return self.stored.get(tuple(ids)) if "0" in ids else None

        def keep(self, turn: int, ids, predicted) -> None:
            self.stored[tuple(ids)] = predicted

    for _ in range(2):
        settings = {"clean": clean, "batch_size": 2, "seed": 0, "ids": list("012345"), "page": Kept()}
        attack = AttackSpec.parse("l2:0.3@5")
        found.append(classify_under_attack(referee, images, targets, classes, attack, **settings).ranks)
    assert torch.equal(*found)


def test_evaluate_reports_static_and_adaptive_accuracy_and_their_gap(colour_referee, colour_folder) -> None:
    base = colour_referee()
    referee = defended(base, RoundedQuarter())

    report = evaluate([base, referee], data=colour_folder, attack=["l2:0.79@20"])

    name = referee.card.name
    static, adaptive = (report.row(name, "top-1", attack).value for attack in ("static l2:0.79@20", "l2:0.79@20"))
    gap = report.row(name, "top-1, static minus adaptive", "l2:0.79@20")
    assert (static, adaptive) == (0.75, 0.5)  # the red of 0.6 falls; the blue was wrong before
    assert (gap.value, gap.n) == (0.25, 4)
    assert gap.low <= gap.value <= gap.high
    assert report.row(name, "top-1", "worst l2:0.79").value == adaptive
    assert not [row for row in report.rows if row.referee == base.card.name and "static" in row.attack + row.metric]
    assert report.row(name, "top-1", "l2:0.79@20", "difference").against == base.card.name
