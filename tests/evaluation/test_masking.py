"""The masking checks: an honest referee passes, and for each check there is one that fails it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustclip import evaluate
from robustclip.attacks import AttackSpec
from robustclip.errors import UsageError
from robustclip.evaluation import masking
from robustclip.evaluation.examples import Examples, read_examples
from robustclip.evaluation.masking import CHECKS, Subject, checks, not_stronger, rises_above
from robustclip.evaluation.report import Check
from robustclip.evaluation.setting import Setting
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
    assert check.told == "100.0% of the images have no gradient"


def test_a_gradient_that_is_not_the_loss_s_own_is_told(colour_referee: Build, examples: Examples) -> None:
    check = found(colour_referee(tower=Steep()), examples)[FLAT]
    assert check.passed is False
    assert "a finite difference along it is" in check.told


def test_a_referee_that_withstands_everything_is_not_believed(colour_referee: Build, examples: Examples) -> None:
    check = found(colour_referee(tower=Blind()), examples)[FAR]
    assert check.passed is False
    assert check.told.startswith("top-1 in l2:0.5: 75.0%")


def subject_with(
    monkeypatch: pytest.MonkeyPatch, referee: TwoTower, examples: Examples, left: Callable[[AttackSpec], np.ndarray]
) -> Subject:
    """A subject whose accuracies are given, so that rates can be compared that no small referee has."""
    among = Candidates.among(examples.label_names, examples.labels)
    monkeypatch.setattr(Subject, "attacked", lambda _, spec: left(spec))
    return Subject.of("it", referee, setting(examples), among, SPEC)


def some(share: float) -> np.ndarray:
    return np.arange(100) < 100 * share


def test_a_stronger_black_box_is_told(
    monkeypatch: pytest.MonkeyPatch, colour_referee: Build, examples: Examples
) -> None:
    subject = subject_with(monkeypatch, colour_referee(), examples, lambda _: some(0.3))
    assert masking.black_box(subject, some(0.5), ())[0] is False
    assert masking.black_box(subject, some(0.3), ())[0] is True
    assert masking.black_box(subject, some(0.32), ())[0] is True  # two of a hundred may be chance


def test_more_steps_that_break_less_are_told(
    monkeypatch: pytest.MonkeyPatch, colour_referee: Build, examples: Examples
) -> None:
    by_steps = {5: 0.3, 20: 0.3, 50: 0.6}
    subject = subject_with(monkeypatch, colour_referee(), examples, lambda spec: some(by_steps[spec.steps]))
    passed, told = masking.monotone(subject, some(0.3), ())
    assert passed is False
    assert "50: 60.0%" in told


def test_transfer_is_stronger_against_a_referee_that_hides_its_gradients(
    monkeypatch: pytest.MonkeyPatch, colour_referee: Build, examples: Examples
) -> None:
    """Its own gradients break nothing; those of its honest sister break what can be broken."""
    hidden, honest = colour_referee(tower=Levels()), colour_referee(name="sister")
    among = Candidates.among(examples.label_names, examples.labels)
    subject = Subject.of("it", hidden, setting(examples), among, replace(SPEC, norm="linf", eps=0.5))
    left = subject.attacked(subject.spec)
    still = masking.shown(subject, "sister", honest)
    assert left.sum() == subject.right.sum() >= 3
    assert still.sum() == 0
    many = np.repeat(left, 25), np.repeat(still, 25)  # four pictures alone prove nothing
    assert not_stronger(subject, many[1], many[0], "PGD on sister")[0] is False
    monkeypatch.setattr(masking, "shown", lambda *_: many[1])
    assert masking.transfer(subject, many[0], [("sister", honest)])[0] is False


def test_without_another_referee_transfer_says_nothing(colour_referee: Build, examples: Examples) -> None:
    check = found(colour_referee(), examples)[TRANSFER]
    assert check.passed is None
    assert "give one, or a --masking-source" in check.told


def test_nothing_is_said_of_a_referee_that_is_never_right(colour_referee: Build, examples: Examples) -> None:
    words = dict.fromkeys(("red", "green", "blue"), (1.0, 1.0, 1.0))  # all alike, and a tie is not right
    answers = found(colour_referee(words=words), examples)
    assert {check.told for check in answers.values()} == {"no image is right untouched"}
    assert {check.passed for check in answers.values()} == {None}


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
    ("changed", "words"),
    [
        ({"masking": True}, "masking looks at an attack, and there is none"),
        ({"masking_source": "emoji-vanilla"}, "has nothing to do"),
    ],
)
def test_faults_of_a_call(changed: dict[str, object], words: str, colour_referee: Build, colour_folder: Path) -> None:
    with pytest.raises(UsageError, match=words):
        evaluate([colour_referee()], data=colour_folder, size=8, **changed)  # type: ignore[arg-type]
