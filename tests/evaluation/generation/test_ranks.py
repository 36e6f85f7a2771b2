"""Scores that rank pictures: tau within prompts, what choosing gains, captions told apart."""

from __future__ import annotations

import numpy as np
import pytest

from robustclip.errors import UsageError
from robustclip.evaluation.generation.ranks import agreement, caption_accuracy, compared, gain

PROMPTS, SAMPLES = 40, 9


@pytest.fixture
def scores() -> dict[str, np.ndarray]:
    stream = np.random.default_rng(0)
    truth = stream.normal(size=(PROMPTS, SAMPLES))
    prompts = 100 * stream.normal(size=(PROMPTS, 1))  # prompts differ by far more than samples of one
    return {"truth": truth, "judge": truth + prompts, "noise": stream.normal(size=truth.shape) + prompts}


def test_tau_is_within_prompts_and_kendalls(scores: dict[str, np.ndarray]) -> None:
    assert agreement(scores["truth"], scores["judge"]).value == pytest.approx(1)
    assert agreement(scores["truth"], -scores["judge"]).value == pytest.approx(-1)
    chance = agreement(scores["judge"], scores["noise"])  # though their prompts rank alike
    assert chance.low < 0 < chance.high
    assert agreement(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 3.0, 2.0]])).value == pytest.approx(1 / 3)
    assert agreement(np.zeros((2, 3)), np.eye(2, 3)).value == 0  # a score that tells nothing apart
    for wrong in (np.zeros((2, 1)), np.zeros((3, 3))):
        with pytest.raises(UsageError):
            agreement(np.zeros((2, 1)), wrong)


def test_the_gain_is_in_the_judges_deviations(scores: dict[str, np.ndarray]) -> None:
    best, random, worst = (gain(one, scores["judge"]) for one in (scores["truth"], scores["noise"], -scores["truth"]))
    assert best.low > 1
    assert random.low < 0 < random.high
    assert worst.high < -1
    assert gain(np.array([[0.0, 1.0]]), np.array([[3.0, 7.0]])).value == pytest.approx(1)
    assert gain(np.array([[0.0, 1.0]]), np.array([[3.0, 3.0]])).value == 0
    assert gain(np.array([[0.0, 1.0, 2.0]]), np.full((1, 3), 0.1)).value == 0  # whose standard deviation is 1e-17


def test_captions_are_told_apart_where_the_own_one_wins() -> None:
    found = caption_accuracy([3.0, 2.0, 1.0, 5.0], [1.0, 2.0, 4.0, 0.0])
    assert (found.value, found.n) == (0.5, 4)


def test_all_pairs_are_compared(scores: dict[str, np.ndarray]) -> None:
    rows = compared(scores, ["truth", "judge"], ["judge"])
    assert {(row["first"], row["second"]) for row in rows if row["what"] == "tau"} == {
        ("truth", "judge"),
        ("truth", "noise"),
        ("judge", "noise"),
    }
    assert [(row["first"], row["n"]) for row in rows if row["what"] == "gain"] == [("truth", PROMPTS)]
