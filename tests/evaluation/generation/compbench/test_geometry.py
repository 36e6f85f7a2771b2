"""T2I-CompBench's rules on boxes, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from robustclip.errors import UsageError
from robustclip.evaluation.generation.compbench.prompts import RULES
from robustclip.evaluation.generation.compbench.roles import (
    SpatialClaim,
    number_score,
    overlap,
    place_score,
    spatial_claim,
    spatial_score,
)
from robustclip.referees.base import Detection

LEFT, RIGHT = (0.1, 0.4, 0.3, 0.6), (0.6, 0.4, 0.9, 0.6)
TOP, BOTTOM = (0.4, 0.1, 0.6, 0.3), (0.45, 0.6, 0.65, 0.9)


@pytest.mark.parametrize(
    ("relation", "box", "other", "score"),
    [
        ("left", LEFT, RIGHT, 1.0),
        ("right", LEFT, RIGHT, 0.0),
        ("right", RIGHT, LEFT, 1.0),
        ("above", TOP, BOTTOM, 1.0),
        ("below", TOP, BOTTOM, 0.0),
        ("below", BOTTOM, TOP, 1.0),
        ("left", TOP, BOTTOM, 0.0),  # farther down than to the left
        # Boxes of 0.4 x 0.4, one 0.1 to the right: IoU 0.12 / 0.20 = 0.6, and 0.1 / 0.6.
        ("left", (0.1, 0.1, 0.5, 0.5), (0.2, 0.1, 0.6, 0.5), 0.1 / 0.6),
        # The middles of LEFT and RIGHT are 0.55 apart, and level: the smaller distance is 0.
        ("near", LEFT, RIGHT, 1.0),
        # 0.7 to the right and 0.6 down: both are more than 150 / 512.
        ("near", (0.0, 0.0, 0.2, 0.2), (0.7, 0.6, 0.9, 0.8), 150 / 512 / 0.7),
    ],
)
def test_place_scores(relation: str, box: tuple, other: tuple, score: float) -> None:
    assert place_score(relation, box, other) == pytest.approx(score)


def test_overlap_of_boxes() -> None:
    assert overlap((0, 0, 0.4, 0.4), (0.2, 0.2, 0.6, 0.6)) == pytest.approx(0.04 / 0.28)
    assert overlap(LEFT, RIGHT) == 0
    assert overlap((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)) == 0  # no area


def test_a_spatial_score_is_that_of_both_things_and_of_their_places() -> None:
    cat, dog = Detection("cat", 0.8, LEFT), Detection("dog", 0.6, RIGHT)
    assert spatial_score(SpatialClaim("cat", "left", "dog"), [cat, dog]) == pytest.approx((0.8 + 0.6) / 4 + 0.5)
    assert spatial_score(SpatialClaim("cat", "right", "dog"), [cat, dog]) == 0  # 0.35, which is below a half
    assert spatial_score(SpatialClaim("cat", "left", "dog"), [cat]) == 0
    assert spatial_score(SpatialClaim("cat", "left", "dog"), []) == 0
    worse = Detection("cat", 0.4, RIGHT)  # the surest of a name counts
    assert spatial_score(SpatialClaim("cat", "left", "dog"), [worse, cat, dog]) == pytest.approx(0.85)


def test_a_number_score_is_half_for_each_thing_and_half_for_its_number() -> None:
    cats = [Detection("cat", 0.9, box) for box in (LEFT, RIGHT, TOP)]
    assert number_score({"cat": 3}, cats) == 1
    assert number_score({"cat": 2}, cats) == 0.5
    assert number_score({"cat": 3, "dog": 1}, cats) == 0.5
    assert number_score({"cat": 4, "dog": 1}, cats) == 0.25
    again = Detection("cat", 0.5, (0.11, 0.41, 0.29, 0.59))  # inside LEFT
    assert number_score({"cat": 3}, [*cats, again]) == 1
    assert number_score({"cat": 4}, [*cats, again]) == 0.5
    assert number_score({"cat": 3, "dog": 1}, [*cats, again._replace(label="dog")]) == 1
    with pytest.raises(UsageError):
        number_score({}, cats)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a cat on the left of a dog", SpatialClaim("cat", "left", "dog")),
        ("a red apple on the top of a wooden table", SpatialClaim("apple", "above", "table")),
        ("a mouse on side of a car", SpatialClaim("mouse", "near", "car")),
        ("two green fish to the left of a key", SpatialClaim("fish", "left", "key")),
        ("A painting of a lamp above a desk.", SpatialClaim("lamp", "above", "desk")),
        ("a nearby cat and a hat near a dog", SpatialClaim("hat", "near", "dog")),
    ],
)
def test_what_a_spatial_prompt_says(prompt: str, wanted: SpatialClaim) -> None:
    assert spatial_claim(prompt, RULES) == wanted


@pytest.mark.parametrize("prompt", ["a cat and a dog", "near a dog", "a cat above", "cats", "a clear sky"])
def test_a_prompt_without_a_relation_is_refused(prompt: str) -> None:
    with pytest.raises(UsageError, check=lambda error: error.code == "no_relation"):
        spatial_claim(prompt, RULES)
