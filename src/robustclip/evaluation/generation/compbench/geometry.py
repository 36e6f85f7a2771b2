"""The benchmark's rules on boxes: where two things lie (2D_spatial_eval.py), and how many there are (numeracy_eval.py).

Deviations from the release, ours: "on top of" counts as "on the top of" (there it always scores 0), "above" and "to the
left of" are understood, boxes are in shares of the picture, and the 150 pixels within which things are near are of 512.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from robustclip.errors import UsageError
from robustclip.evaluation.generation.compbench.phrases import Chunker
from robustclip.referees.detecting import Box, Detection

RELATIONS: Final = {
    "on side of": "near",
    "next to": "near",
    "near": "near",
    "on the left of": "left",
    "on the right of": "right",
    "on the bottom of": "below",
    "on the top of": "above",
    "on top of": "above",
    "to the left of": "left",
    "to the right of": "right",
    "above": "above",
    "below": "below",
}
"""Words of the benchmark, in the release's order, then ours."""
OVERLAP: Final = 0.1  # intersection over union from which a direction counts less
NEAR: Final = 150 / 512
SAME: Final = 0.9  # share of a box inside another of its name, from which the two are one
PASSED: Final = 0.5  # scores below it are 0


class Wanted(NamedTuple):
    """What a spatial prompt says: the two nouns, and a value of RELATIONS between them."""

    noun: str
    relation: str
    other: str


def wanted_places(prompt: str, chunker: Chunker) -> Wanted:
    """The last noun before the relation and the first behind it. Raises UsageError where there is none."""
    word = next((word for word in RELATIONS if f" {word} " in f" {prompt.lower()} "), None)
    phrases = chunker.phrases(prompt)
    at = prompt.lower().find(word) if word else -1
    before = [one.noun for one in phrases if at >= 0 and one.start < at]
    behind = [one.noun for one in phrases if word and one.start >= at + len(word)]
    if word is None or not before or not behind:
        raise UsageError(
            f"{prompt[:100]!r} puts no thing in relation to another, as spatial prompts do, e.g. 'a cat on the left of "
            f"a dog' (of {', '.join(RELATIONS)}): give prompts of this category",
            "no_relation",
        )
    return Wanted(before[-1], RELATIONS[word], behind[0])


def place_score(relation: str, box: Box, other: Box) -> float:
    """How much the first box is `relation` of the other, 0 to 1, by their middles and their overlap.

    1 for the right direction, if it is the larger of the two distances; 0.1/IoU where the boxes overlap by more.
    """
    right = (other[0] + other[2] - box[0] - box[2]) / 2
    down = (other[1] + other[3] - box[1] - box[3]) / 2
    if relation == "near":
        closest, farthest = sorted((abs(right), abs(down)))
        return 1.0 if closest < NEAR else NEAR / farthest
    along, across = (right, down) if relation in ("left", "right") else (down, right)
    along = along if relation in ("left", "above") else -along
    if along <= 0 or along <= abs(across):
        return 0.0
    return min(1.0, OVERLAP / iou) if (iou := overlap(box, other)) >= OVERLAP else 1.0


def overlap(box: Box, other: Box) -> float:
    """Intersection over union."""
    shared = _shared(box, other)
    union = _area(box) + _area(other) - shared
    return shared / union if union > 0 else 0.0


def spatial_score(wanted: Wanted, found: Sequence[Detection]) -> float:
    """A quarter of either thing's best score, and half of `place_score`, if both are there; below 1/2 it is 0."""
    best = {
        label: max((one for one in found if one.label == label), key=lambda one: one.score, default=None)
        for label in (wanted.noun, wanted.other)
    }
    first, second = best[wanted.noun], best[wanted.other]
    score = sum(one.score / 4 for one in (first, second) if one is not None)
    if first is not None and second is not None:
        score += place_score(wanted.relation, first.box, second.box) / 2
    return score if score >= PASSED else 0.0


def number_score(wanted: Mapping[str, int], found: Sequence[Detection]) -> float:
    """Of each thing in turn: half for being there, half for its number. Boxes of one name that all but cover each other
    are one. Raises UsageError for nothing wanted."""
    if not wanted:
        raise UsageError("a numeracy prompt names how many of what, e.g. 'three apples and two dogs'", "no_numbers")
    boxes: list[Detection] = []
    for one in found:
        if not any(one.label == kept.label and _same(one.box, kept.box) for kept in boxes):
            boxes.append(one)
    labels = [one.label for one in boxes]
    points = [0.5 * (noun in labels) + 0.5 * (labels.count(noun) == number) for noun, number in wanted.items()]
    return sum(points) / len(wanted)


def _same(box: Box, other: Box) -> bool:
    shared, smaller = _shared(box, other), min(_area(box), _area(other))
    return shared > SAME * smaller if smaller > 0 else box == other


def _shared(box: Box, other: Box) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
