"""A table of methods, with judges whose answers are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.evaluation import intervals
from robustclip.evaluation.generation.grids import Grid
from robustclip.evaluation.judges import Judge
from robustclip.referees.base import TwoTower
from robustclip.referees.judging import fingerprint

PROMPTS = ["red", "green", "blue"]
RED, GREEN, BLUE = (0.9, 0.0, 0.1), (0.1, 0.8, 0.0), (0.0, 0.1, 0.9)
SWAPPED = {"red": (0.0, 1.0, 0.0), "green": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}
GROUPS = {"warm": frozenset({"red"}), "cold": frozenset({"green", "blue"})}


@pytest.fixture
def grid(colour_referee: Callable[..., TwoTower], plain: Callable[..., Tensor]) -> Grid:
    """Two judges, of whom the second takes green for red; "good" shows all three colours, "poor" red alone."""
    judges = [
        Judge("eye", colour_referee(), None),
        Judge("mixed-up", colour_referee(name="mixed-up", words=SWAPPED, logit_scale=5.0), None),
    ]
    made = Grid(PROMPTS, judges, [2, 3], seed=0, groups=GROUPS)
    made.add("good", plain(RED, GREEN, BLUE), PROMPTS)
    made.add("poor", plain(RED, RED, RED), PROMPTS)
    return made


def test_rates_by_hand(grid: Grid) -> None:
    assert grid.hits["good", "eye", 3].tolist() == [True, True, True]
    assert grid.hits["poor", "eye", 3].tolist() == [True, False, False]
    assert grid.hits["good", "mixed-up", 3].tolist() == [False, False, True]
    assert grid.hits["poor", "mixed-up", 3].tolist() == [False, True, False]
    found = grid.rate("poor", "eye", 3)
    assert (found.method, found.judge, found.candidates, found.group) == ("poor", "eye", 3, "all")
    assert found.interval == intervals.rate([True, False, False])
    assert grid.rate("poor", "eye", 3, "warm").interval == intervals.rate([True])
    assert grid.rate("poor", "eye", 3, "cold").interval == intervals.rate([False, False])


def test_differences_are_paired_by_prompt(grid: Grid) -> None:
    found = grid.difference("good", "poor", "eye", 3)
    assert found.interval == intervals.difference([True] * 3, [True, False, False], seed=0)
    assert found.interval.value == pytest.approx(2 / 3)
    assert grid.difference("good", "poor", "eye", 3, "warm").interval.value == 0
    assert grid.difference("good", "poor", "eye", 3, "cold").interval.value == 1
    assert grid.difference("good", "poor", "mixed-up", 3).interval.value == 0, "one each, of different prompts"


def test_a_share_is_of_the_prompts_that_both_show(grid: Grid, plain: Callable[..., Tensor]) -> None:
    grid.add("real", plain(BLUE, RED), ["blue", "red"])
    found = grid.share("poor", "real", "eye", 3)
    assert (found.group, found.interval.n, found.interval.value) == ("shared", 2, 0.5)
    assert grid.share("good", "real", "eye", 3).interval.value == 1


def test_candidates_are_drawn_by_prompt_for_all_methods(
    colour_referee: Callable[..., TwoTower], plain: Callable[..., Tensor]
) -> None:
    """Two dozen words and colours that have nothing to do with each other: the one candidate drawn beside a picture's
    prompt decides."""
    numbers = torch.rand(2, 24, 3, generator=torch.Generator().manual_seed(0)).tolist()
    words = {f"word {place}": tuple(word) for place, word in enumerate(numbers[0])}
    prompts, images = list(words), plain(*map(tuple, numbers[1]))
    grid = Grid(prompts, [Judge("eye", colour_referee(words=words), None)], [2, 24], seed=0)
    grid.add("forwards", images, prompts)
    grid.add("backwards", images.flip(0), prompts[::-1])
    first = grid.hits["forwards", "eye", 2]
    assert 4 < first.sum() < 20
    assert first.tolist() == grid.hits["backwards", "eye", 2][::-1].tolist(), "whatever the order"
    assert (first >= grid.hits["forwards", "eye", 24]).all(), "with fewer to choose from, it is easier"
    grid.seed = 1
    grid.add("drawn anew", images, prompts)
    assert grid.hits["drawn anew", "eye", 2].tolist() != first.tolist()
    grid.add("one picture, often", images[:1].expand(24, -1, -1, -1), ["word 0"] * 24)
    assert 0 < grid.hits["one picture, often", "eye", 2].sum() < 24, "each faces other candidates"


def test_several_pictures_of_a_prompt(grid: Grid, plain: Callable[..., Tensor]) -> None:
    grid.add("twice", plain(RED, BLUE, RED), ["red", "red", "red"])
    assert grid.rate("twice", "eye", 3).interval.value == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="twice or good shows a prompt twice"):
        grid.share("twice", "good", "eye", 3)


def test_the_table_and_the_file_hold_every_number(grid: Grid, plain: Callable[..., Tensor], tmp_path: Path) -> None:
    grid.add("red alone", plain(RED), ["red"])
    grid.notes.append("a note")
    grid.save(tmp_path, [("good", "poor")], [("poor", "good")])
    told = json.loads((tmp_path / "table.json").read_text())
    assert told["judges"] == {judge.name: fingerprint(judge.referee) for judge in grid.judges}
    assert (told["seed"], told["notes"]) == (0, ["a note"])
    keys = [(one["method"], one["judge"], one["candidates"], one["group"]) for one in told["rates"]]
    columns = [(judge, count) for judge in ("eye", "mixed-up") for count in (2, 3)]
    groups = {"good": ("all", "warm", "cold"), "poor": ("all", "warm", "cold"), "red alone": ("all", "warm")}
    assert keys == [(name, *column, group) for name in groups for column in columns for group in groups[name]]
    rate = told["rates"][keys.index(("poor", "eye", 3, "cold"))]["interval"]
    assert (rate["value"], rate["n"]) == (0, 2)
    assert {(one["method"], one["against"]) for one in told["differences"]} == {("good", "poor")}
    assert len(told["differences"]) == 4 * 3
    assert [one["interval"]["value"] for one in told["shares"] if one["judge"] == "eye"][1] == pytest.approx(1 / 3)
    assert told["hits"]["poor"][1]["prompt"] == "green"
    assert told["hits"]["poor"][1]["eye among 3"] is False
    assert told["hits"]["poor"][1]["mixed-up among 3"] is True

    lines = (tmp_path / "table.txt").read_text().splitlines()
    assert any("chance 33.3" in line and "chance 50" in line for line in lines)
    (poor,) = [line for line in lines if " poor " in line and "minus" not in line and "share" not in line]
    assert "33.3 (" in poor
    (minus,) = [line for line in lines if "good minus poor" in line]
    assert "+66.7 (" in minus
    assert any("poor: share of good" in line and "33.3" in line for line in lines)
    assert any(fingerprint(grid.judges[0].referee)[:16] in line for line in lines)
    assert "a note" in lines[-1]


def test_faults_are_told(grid: Grid, plain: Callable[..., Tensor]) -> None:
    with pytest.raises(UsageError, match=r"among 4 needs as many different prompts, and there are 3"):
        Grid(PROMPTS, grid.judges, [2, 4], seed=0)
    with pytest.raises(UsageError, match=r"among 3 needs .* there are 2: give more, or --candidates 2"):
        Grid(["red", "red", "blue"], grid.judges, [3], seed=0)
    grid.add("red alone", plain(RED), ["red"])
    with pytest.raises(UsageError, match="red alone has no pictures of cold"):
        grid.rate("red alone", "eye", 3, "cold")
    with pytest.raises(UsageError, match="good and red alone were painted of different prompts"):
        grid.difference("good", "red alone", "eye", 3)
    grid.add("wrong", plain(BLUE), ["red"])
    with pytest.raises(UsageError, match="at least one hit in its denominator"):
        grid.share("red alone", "wrong", "eye", 3)
    with pytest.raises(UsageError, match="2 pictures, 1 prompts"):
        grid.add("too few", plain(RED, BLUE), ["red"])
