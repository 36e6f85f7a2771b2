"""The table of a study against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from robustclip.errors import UsageError, coded
from robustclip.evaluation import intervals
from robustclip.evaluation.generation.grids import PromptRecognition
from robustclip.evaluation.generation.results import Column, Results
from robustclip.evaluation.named import NamedReferee
from robustclip.referees.base import TwoTower

PROMPTS = ["red", "green", "blue"]
RED, GREEN, BLUE = (0.9, 0.0, 0.1), (0.1, 0.8, 0.0), (0.0, 0.1, 0.9)
SWAPPED = {"red": (0.0, 1.0, 0.0), "green": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}
GROUPS = {"warm": frozenset({"red"}), "cold": frozenset({"green", "blue"})}
HIT, OTHER, SCORE = Column("hit", "eye"), Column("hit", "mixed-up"), Column("L")


@pytest.fixture
def results() -> Results:
    found = Results(groups=GROUPS, chance={"hit": 1 / 3}, compared=[("good", "poor")], shares=[("poor", "good")])
    found.add("good", PROMPTS, {HIT: [True] * 3, OTHER: [False, False, True], SCORE: [1.0, 2.0, 3.0]}, seconds=1.25)
    found.add("poor", PROMPTS, {HIT: [True, False, False], OTHER: [False, True, False], SCORE: [2.0, 2.0, 4.0]})
    return found


def test_rates_and_means_by_hand(results: Results) -> None:
    assert results.value("poor", HIT) == intervals.rate([True, False, False])
    assert results.value("poor", HIT, "warm") == intervals.rate([True])
    assert results.value("poor", HIT, "cold") == intervals.rate([False, False])
    assert results.value("good", SCORE) == intervals.mean([1, 2, 3], seed=0)
    assert results.at_chance("poor", "hit") == ["eye", "mixed-up"]
    assert results.at_chance("good", "hit") == ["mixed-up"]
    assert results.at_chance("absent", "hit") == []


def test_differences_are_paired_by_sample(results: Results) -> None:
    found = results.difference("good", "poor", HIT)
    assert found == intervals.difference([True] * 3, [True, False, False], seed=0)
    assert found.value == pytest.approx(2 / 3)
    assert results.difference("good", "poor", HIT, "warm").value == 0
    assert results.difference("good", "poor", HIT, "cold").value == 1
    assert results.difference("good", "poor", OTHER).value == 0, "one each, of different prompts"
    assert results.difference("good", "poor", SCORE).value == pytest.approx(-2 / 3)
    assert results.preferred("good", "poor", SCORE).value == pytest.approx(1 / 6), "none of three, and a tie"


def test_a_share_is_of_the_samples_that_both_have(results: Results) -> None:
    results.add("real", ["blue", "red"], {HIT: [True, True]})
    found = results.share("poor", "real", HIT)
    assert (found.n, found.value) == (2, 0.5)
    assert results.share("good", "real", HIT).value == 1


def test_a_share_of_no_hit_is_left_out(results: Results) -> None:
    results.shares = [("good", "real")]
    results.add("real", ["blue", "violet"], {HIT: [False, True], OTHER: [True, False]})  # a hit, but none of theirs
    assert [one["judge"] for one in results.to_json()["shares_of"]] == ["mixed-up"]
    assert ["good: share of real" in str(rows) for _, rows in results.tables()].count(True) == 1


def test_seeds_of_a_prompt_are_not_independent() -> None:
    hits, others = ([bool(one) for one in row] for row in ([1, 1, 0, 1, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0, 1, 0]))
    thrice = Results()
    names = [name for name in "abcdefgh" for _ in range(3)]
    thrice.add("good", names, {HIT: np.repeat(hits, 3)})
    thrice.add("poor", names, {HIT: np.repeat(others, 3)})
    once = intervals.mean(np.subtract(hits, others, dtype=float), seed=0)
    found = thrice.difference("good", "poor", HIT)
    assert (found.low, found.high) == (once.low, once.high), "the same pictures three times say no more"
    assert found.n == 24


def test_a_table_comes_back_from_its_file_and_prints_every_number(results: Results, tmp_path: Path) -> None:
    results.notes.append("a note")
    results.setting = {"steps": 3}
    results.save(tmp_path)
    told = json.loads((tmp_path / "results.json").read_text())
    assert Results.read(tmp_path).to_json() == told
    assert len(told["values"]) == 2 * 3 * 3, "rows, columns, groups"
    (cold,) = [one for one in told["values"] if (one["row"], one["judge"], one["group"]) == ("poor", "eye", "cold")]
    assert (cold["metric"], cold["value"], cold["n"]) == ("hit", 0, 2)
    (score,) = [one for one in told["differences"] if (one["metric"], one["group"]) == ("L", "all")]
    assert score["preferred"]["value"] == pytest.approx(1 / 6)
    assert [one["value"] for one in told["shares_of"] if one["judge"] == "eye"] == [pytest.approx(1 / 3)]
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "|  | n | hit, eye, chance 33.3 | hit, mixed-up, chance 33.3 | L | seconds each |"
    good, minus, share = (
        next(line for line in lines if line.startswith(f"| {start}"))
        for start in ("good |", "good minus poor", "poor: share of good")
    )
    assert "| 100.0 (" in good
    assert good.endswith("| 1.2 |")
    assert "| +66.7 (" in minus
    assert "; higher on 17% |" in minus
    assert "| 33.3 (" in share
    assert any(line.startswith("| poor | 2 | 0.0 (") for line in lines), "the group cold"
    assert lines[-1] == "a note"
    text = (tmp_path / "table.txt").read_text()
    for words in ("chance 33.3", "+66.7 (", "a note"):
        assert words in text


def test_rows_of_other_columns_have_a_table_of_their_own(results: Results) -> None:
    results.add("restyled", ["fire"], {Column("directional"): [0.5]})
    heads = [head for head, _ in results.tables()]
    assert [head for head in heads if "directional" in head] == [["", "n", "directional", "seconds each"]]
    results.shown = ["L"]
    assert results.tables()[0][0] == ["", "n", "L", "seconds each"]


def test_faults_are_told(results: Results) -> None:
    with pytest.raises(UsageError, match="has 2 samples"):
        results.add("odd", ["a", "b"], {HIT: [True]})
    with pytest.raises(UsageError, match="0 samples"):
        results.add("odd", [], {})
    results.add("red alone", ["red"], {HIT: [True]})
    results.add("twice", ["red", "red"], {HIT: [True, False]})
    results.add("wrong", ["red"], {HIT: [False]})
    with pytest.raises(UsageError, check=coded("no_samples", group="cold")):
        results.value("red alone", HIT, "cold")
    with pytest.raises(UsageError, check=coded("not_paired")):
        results.difference("good", "red alone", HIT)
    with pytest.raises(UsageError, check=coded("name_twice")):
        results.share("twice", "good", HIT)
    with pytest.raises(UsageError, check=coded("no_hits")):
        results.share("red alone", "wrong", HIT)


@pytest.fixture
def judges(colour_referee: Callable[..., TwoTower]) -> list[NamedReferee]:
    """Two judges, of whom the second takes green for red."""
    mixed_up = colour_referee(name="mixed-up", words=SWAPPED, logit_scale=5.0)
    return [NamedReferee("eye", colour_referee(), None), NamedReferee("mixed-up", mixed_up, None)]


def test_recognition_by_judges_of_known_answers(judges: list[NamedReferee], plain: Callable[..., Tensor]) -> None:
    recognised = PromptRecognition(PROMPTS, judges, [2, 3])
    found = recognised(plain(RED, RED, RED), PROMPTS, cosines=True)
    assert found[Column("R-Precision@3", "eye")].tolist() == [True, False, False]
    assert found[Column("R-Precision@3", "mixed-up")].tolist() == [False, True, False]
    assert recognised.chance == {"R-Precision@2": 1 / 2, "R-Precision@3": 1 / 3}
    assert found[Column("cosine", "eye")].argmax() == 0
    assert found[Column("cosine", "mixed-up")].argmax() == 1


def test_candidates_are_drawn_by_prompt_for_all_rows(
    colour_referee: Callable[..., TwoTower], plain: Callable[..., Tensor]
) -> None:
    """Two dozen words and colours that have nothing to do with each other: the one candidate drawn beside a picture's
    prompt decides."""
    numbers = np.random.default_rng(0).random((2, 24, 3)).tolist()
    words = {f"word {place}": tuple(word) for place, word in enumerate(numbers[0])}
    prompts, images = list(words), plain(*map(tuple, numbers[1]))
    judge, two, all_ = NamedReferee("eye", colour_referee(words=words), None), Column("R-Precision@2", "eye"), 24
    recognised = PromptRecognition(prompts, [judge], [2, all_])
    first = recognised(images, prompts)
    assert 4 < first[two].sum() < 20
    backwards = recognised(images.flip(0), prompts[::-1])[two]
    assert first[two].tolist() == backwards[::-1].tolist(), "whatever the order"
    assert (first[two] >= first[Column("R-Precision@24", "eye")]).all(), "with fewer to choose from, it is easier"
    again = PromptRecognition(prompts, [judge], [2], seed=1)(images, prompts)[two]
    assert again.tolist() != first[two].tolist()
    one = recognised(images[:1].expand(24, -1, -1, -1), ["word 0"] * 24)[two]
    assert 0 < one.sum() < 24, "each of several pictures of a prompt faces other candidates"


def test_recognition_needs_as_many_prompts_as_candidates(
    judges: list[NamedReferee], plain: Callable[..., Tensor]
) -> None:
    with pytest.raises(UsageError, check=coded("too_few_prompts", candidates=4, prompts=3)):
        PromptRecognition(PROMPTS, judges, [2, 4])
    with pytest.raises(UsageError, check=coded("too_few_prompts", candidates=3, prompts=2)):
        PromptRecognition(["red", "red", "blue"], judges, [3])
    with pytest.raises(UsageError, match="2 pictures, 1 prompts"):
        PromptRecognition(PROMPTS, judges, [2])(plain(RED, BLUE), ["red"])
