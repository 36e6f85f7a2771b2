"""The masking checks: an honest referee passes, and for each check there is one that fails it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustclip import evaluate
from robustclip.attacks import AttackSpec, attacking
from robustclip.data.examples import Examples, read_examples
from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.evaluation import masking
from robustclip.evaluation.masking import CHECKS, Subject, checks, rises_above
from robustclip.evaluation.named import Setting, load_named
from robustclip.evaluation.report import Check
from robustclip.evaluation.zeroshot import Candidates
from robustclip.referees.base import TwoTower

Build = Callable[..., TwoTower]
SPEC = AttackSpec.parse("l2:0.5@20")
BLACK_BOX, FAR, MONOTONE, TRANSFER, FLAT = CHECKS


class MeanColour(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Levels(nn.Module):
    """Sees 8 levels of a colour: rounding has no gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return (images.mean((2, 3)) * 8).round() / 8 + 0 * images.mean((2, 3))


class CoarseInput(nn.Module):
    """Sees 8 levels of each pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return ((images * 8).round() / 8 + 0 * images).mean((2, 3))


class Noisy(nn.Module):
    """Adds to each colour noise that no gradient tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + 0.05 * torch.randn(len(images), 3, generator=self.stream)


class Rugged(nn.Module):
    """Red minus green, d, becomes d + P/2 sin(2 pi (d - 0.2) / P), with a true gradient.

    From d = 0.2 five steps of P/2 for each colour come down at the same phase of the next waves, where the answer is
    another. Smaller steps stay in the first valley, at d' = 0.2 - 0.30 P - 0.47 P, above 0 for P = 0.15.
    """

    PERIOD = 0.15

    def forward(self, images: Tensor) -> Tensor:
        red, green, _ = images.mean((2, 3)).unbind(1)
        apart = red - green
        wave = apart + self.PERIOD / 2 * (2 * torch.pi * (apart - 0.2) / self.PERIOD).sin()
        return torch.stack([(1 + wave) / 2, (1 - wave) / 2, torch.zeros_like(wave)], 1)


class Blind(nn.Module):
    """Names its pictures whatever is done to them."""

    def forward(self, images: Tensor) -> Tensor:
        place = images.detach().mean((2, 3)).argmax(1)
        return torch.eye(3)[place] + 0 * images.mean((2, 3))


class Steep(nn.Module):
    """Answers by a staircase, and gives the gradient of something else, a hundred times too small."""

    def forward(self, images: Tensor) -> Tensor:
        colour = images.mean((2, 3))
        stairs = colour + 0.3 * (40 * colour).sin()
        return stairs.detach() + 0.01 * (colour - colour.detach())


@pytest.fixture
def examples(colour_folder: Path) -> Examples:
    return read_examples(colour_folder, size=8, limit=None, seed=0)


@pytest.fixture
def emoji_24() -> Examples:
    return read_examples("emoji/unseen-styles", size=None, limit=24, seed=0)


@pytest.fixture
def crowd(tmp_path: Path, plain: Callable[..., Tensor]) -> Examples:
    """Twelve red pictures with some green in them, and a green one: enough to tell a difference from chance."""
    for place in range(12):
        save_image(plain((0.6, 0.4, 0.0))[0], tmp_path / "crowd" / "red" / f"{place:02}.png")
    save_image(plain((0.4, 0.6, 0.0))[0], tmp_path / "crowd" / "green" / "a.png")
    return read_examples(tmp_path / "crowd", size=8, limit=None, seed=0)


def setting(examples: Examples) -> Setting:
    return Setting(
        examples=examples,
        attacks=[],
        templates=["{}"],
        present_only=False,
        batch_size=4,
        dtype=torch.float32,
        seed=0,
    )


def found(
    referee: TwoTower, examples: Examples, spec: AttackSpec = SPEC, others: list[tuple[str, TwoTower]] | None = None
) -> dict[str, Check]:
    among = Candidates.among(examples.label_names, examples.labels)
    return {check.name: check for check in checks("it", referee, setting(examples), among, spec, others or [])}


def test_an_honest_referee_passes_all(colour_referee: Build, examples: Examples) -> None:
    answers = found(colour_referee(), examples, others=[("other", colour_referee(name="other", logit_scale=3.0))])
    assert {name: check.passed for name, check in answers.items()} == dict.fromkeys(CHECKS, True)


def test_a_referee_without_gradients_has_a_flat_loss(colour_referee: Build, examples: Examples) -> None:
    check = found(colour_referee(tower=Levels()), examples)[FLAT]
    assert check.passed is False
    assert check.numbers == "100.0% of the images have no gradient"


@pytest.mark.parametrize(("tower", "scale"), [(CoarseInput(), 10.0), (MeanColour(), 10_000.0), (Noisy(), 10.0)])
def test_coarse_inputs_saturated_logits_and_noise_are_told(
    tower: nn.Module, scale: float, colour_referee: Build, crowd: Examples
) -> None:
    among = Candidates.among(crowd.label_names, crowd.labels)
    subject = Subject.of("it", colour_referee(tower=tower, logit_scale=scale), setting(crowd), among, SPEC)
    assert masking.not_flat(subject, subject.right, ())[0] is False


@pytest.mark.parametrize("scale", [1.0, 100.0])  # CLIP's own, where answers are sure and float32 has few levels left
def test_sure_answers_alone_are_no_fault(scale: float, colour_referee: Build, examples: Examples) -> None:
    among = Candidates.among(examples.label_names, examples.labels)
    words = {"red": (1.0, 0.8, 0.8), "green": (0.8, 1.0, 0.8), "blue": (0.8, 0.8, 1.0)}
    referee = colour_referee(words=words, logit_scale=scale)
    subject = Subject.of("it", referee, setting(examples), among, SPEC)
    passed, told = masking.not_flat(subject, subject.right, ())
    assert passed, told


def test_a_gradient_that_is_not_the_loss_s_own_is_told(colour_referee: Build, examples: Examples) -> None:
    check = found(colour_referee(tower=Steep()), examples)[FLAT]
    assert check.passed is False
    assert "a finite difference along it is" in check.numbers


def test_a_referee_that_withstands_everything_is_not_believed(colour_referee: Build, examples: Examples) -> None:
    check = found(colour_referee(tower=Blind()), examples)[FAR]
    assert check.passed is False
    assert check.numbers.startswith("top-1 in l2:0.5: 75.0%")


def test_a_stronger_black_box_is_told(colour_referee: Build, crowd: Examples) -> None:
    """Square needs no gradients, and finds what PGD does not."""
    wide = AttackSpec.parse("linf:0.3@20")
    check = found(colour_referee(tower=Levels()), crowd, wide)[BLACK_BOX]
    assert check.passed is False
    assert check.numbers.endswith("linf:0.3@20 100.0%")
    assert found(colour_referee(), crowd, wide)[BLACK_BOX].passed is True


def test_what_square_cannot_do_is_left_out(colour_referee: Build, crowd: Examples) -> None:
    """A single label, among which there is nothing to search for."""
    among = Candidates(["red"], torch.zeros(len(crowd), dtype=torch.long))
    told = {check.name: check for check in checks("it", colour_referee(), setting(crowd), among, SPEC)}
    assert told[BLACK_BOX].passed is None
    assert "at least 2 labels" in told[BLACK_BOX].numbers
    assert told[FAR].passed is False  # one label is always the first


def test_more_steps_that_break_less_are_told(colour_referee: Build, crowd: Examples) -> None:
    check = found(colour_referee(tower=Rugged()), crowd, AttackSpec.parse("linf:0.15@20"))[MONOTONE]
    assert check.passed is False, check.numbers
    assert check.numbers.startswith("top-1 by steps 5: 0.0%, 20: ")


def test_transfer_is_stronger_against_a_referee_that_hides_its_gradients(
    colour_referee: Build, crowd: Examples
) -> None:
    """Its own gradients break nothing; those of its honest sister break what can be broken."""
    sister, wide = colour_referee(name="sister"), AttackSpec.parse("linf:0.3@20")
    check = found(colour_referee(tower=Levels()), crowd, wide, [("sister", sister)])[TRANSFER]
    assert check.passed is False
    assert check.numbers.startswith("PGD on sister leaves 0.0%, linf:0.3@20 ")


def test_without_another_referee_transfer_says_nothing(colour_referee: Build, examples: Examples) -> None:
    check = found(colour_referee(), examples)[TRANSFER]
    assert check.passed is None
    assert "give one, or a --masking-source" in check.numbers


def test_an_embedded_guide_has_slopes_and_is_no_harder_for_others(emoji_24: Examples) -> None:
    [guide, vanilla] = load_named(["emoji-robust", "emoji-vanilla"], device=torch.device("cpu"))
    among = Candidates.among(emoji_24.label_names, emoji_24.labels, present_only=True)
    spec = AttackSpec.parse("l2:1.5@5")
    with attacking(guide.referee):
        subject = Subject.of(guide.name, guide.referee, setting(emoji_24), among, spec)
        left = subject.attacked(spec)
        assert 0 < left.mean() < subject.right.mean()
        assert masking.not_flat(subject, left, ())[0] is True
        coarse = replace(subject, setting=replace(subject.setting, dtype=torch.bfloat16))
        assert masking.not_flat(coarse, left, ()) == masking.not_flat(subject, left, ())
        assert masking.transfer(subject, left, [(vanilla.name, vanilla.referee)])[0] is True


def test_flat_backgrounds_are_no_fault(emoji_24: Examples) -> None:
    """Of equal neighbours a maximum has two slopes: without noise those of this guide are off by a tenth."""
    [guide] = load_named(["emoji-vanilla"], device=torch.device("cpu"))
    among = Candidates.among(emoji_24.label_names, emoji_24.labels, present_only=True)
    with attacking(guide.referee):
        subject = Subject.of(guide.name, guide.referee, setting(emoji_24), among, AttackSpec.parse("l2:1.5@5"))
        lengths, found_slopes = (torch.cat(part) for part in zip(*masking.slopes_of(subject), strict=True))
    assert float((found_slopes / lengths - 1).abs().median()) < 0.05


@pytest.mark.slow
def test_an_embedded_guide_passes_all() -> None:
    report = evaluate(["emoji-robust"], limit=24, labels="present", attack=["l2:1.5@20"], masking=True, device="cpu")
    assert {check.name: check.passed for check in report.checks} == dict.fromkeys(CHECKS, True)


def test_nothing_is_said_of_a_referee_that_is_never_right(colour_referee: Build, examples: Examples) -> None:
    words = dict.fromkeys(("red", "green", "blue"), (1.0, 1.0, 1.0))  # all alike, and a tie is not right
    answers = found(colour_referee(words=words), examples)
    assert {check.numbers for check in answers.values()} == {"no clean image is classified correctly"}
    assert {check.passed for check in answers.values()} == {None}


def some(share: float) -> NDArray[np.bool_]:
    return np.arange(100) < 100 * share


def test_a_rise_within_chance_is_none() -> None:
    assert not rises_above(some(0.51), some(0.5))
    assert rises_above(some(0.6), some(0.5))


def test_the_checks_look_at_pgd(colour_referee: Build, examples: Examples) -> None:
    with pytest.raises(UsageError, match=r"give l2:0\.5@20"):
        found(colour_referee(), examples, spec=AttackSpec.parse("l2:0.5@apgd-ce"))


def test_a_report_with_checks(colour_referee: Build, colour_folder: Path, tmp_path: Path) -> None:
    pair = [colour_referee(), colour_referee(name="other")]
    report = evaluate(pair, data=colour_folder, size=8, attack=["l2:0.5@20"], masking=True, out=tmp_path / "out")
    assert len(report.checks) == 10
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "masking checks: 10 of 10 passed" in table
    assert '"checks"' in (tmp_path / "out" / "evaluation.json").read_text()


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"masking": True}, coded("no_attack")),
        ({"masking_source": "emoji-vanilla"}, coded("no_effect", argument="masking_source")),
    ],
)
def test_faults_of_a_call(changed: dict[str, object], check: Any, colour_referee: Build, colour_folder: Path) -> None:
    with pytest.raises(UsageError, check=check):
        evaluate([colour_referee()], data=colour_folder, size=8, **changed)  # type: ignore[arg-type]
