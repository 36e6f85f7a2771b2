"""Judges of T2I-CompBench by role, recognised by their folders' content, and their scores of a picture: attributes by
VQA models, positions and counts by detectors' boxes, similarity by CLIPs, and 3-in-1.

Box rules after 2D_spatial_eval.py and numeracy_eval.py. Deviations from the release, ours: "on top of" counts as "on
the top of" (there it always scores 0), "above" and "to the left of" are supported, boxes are in shares of the picture,
and the "near" threshold of 150 pixels refers to 512.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.data.questions import claims
from robustclip.errors import UsageError
from robustclip.evaluation.generation.compbench.prompts import RULES, Category, Chunker, normal, pick_chunker
from robustclip.evaluation.named import NamedReferee, load_named
from robustclip.referees.base import Box, Detection
from robustclip.referees.scene_reader import SceneReader, is_scene_reader, load_scene_reader
from robustclip.referees.weights import digest

NEEDED: dict[Category, tuple[str, ...]] = {
    "color": ("questions",),
    "shape": ("questions",),
    "texture": ("questions",),
    "spatial": ("detector",),
    "numeracy": ("detector",),
    "non-spatial": ("clip",),
    "complex": ("questions", "detector", "clip"),
}
"""The benchmark's judges of each category."""
EXAMPLES = {
    "questions": "a BlipForQuestionAnswering of transformers (Salesforce/blip-vqa-base), or emoji-scenes",
    "detector": "an Owlv2ForObjectDetection or GroundingDinoForObjectDetection of transformers, or emoji-scenes",
    "clip": "a CLIP, such as emoji-judge",
}


class QuestionAnswerer(Protocol):
    """A model that answers yes/no questions about pictures."""

    name: str
    fingerprint: str

    def yes(self, images: Float[Tensor, "b 3 h w"], questions: Sequence[Sequence[str]]) -> list[Float[Tensor, " q"]]:
        """The probability of yes to each question about each picture."""


class ObjectDetector(Protocol):
    """A model that detects objects by label."""

    name: str
    fingerprint: str

    def detect(self, images: Float[Tensor, "b 3 h w"], labels: Sequence[str]) -> list[list[Detection]]:
        """Detections of `labels` in each picture, by descending score."""


@dataclass
class Roles:
    """The judges by role. `grammar`: questions are the atoms of captions of compositions instead of noun phrases;
    `calibration`: the accuracy of answers to such questions, by category."""

    questions: QuestionAnswerer | None = None
    detector: ObjectDetector | None = None
    clip: NamedReferee | None = None
    grammar: bool = False
    calibration: dict[str, Any] = field(default_factory=dict)
    chunker: Chunker = field(default_factory=pick_chunker)

    @property
    def complete(self) -> bool:
        """Whether all three roles are filled, as complex prompts need."""
        return all(getattr(self, role) is not None for role in NEEDED["complex"])

    def check(self, category: Category) -> None:
        """Raise UsageError if a category lacks a judge."""
        if self.grammar:
            return
        lacking = [EXAMPLES[role] for role in NEEDED[category] if getattr(self, role) is None]
        if lacking:
            raise UsageError(
                f"the category {category} is judged with {' and '.join(NEEDED[category])}: add "
                f"{'; and '.join(lacking)}, e.g. --judge blip-vqa-base --judge owlv2-base --judge emoji-judge",
                "judge_lacking",
                category=category,
            )


class _Embedded:
    """A scene reader as question answerer and detector; unknown nouns yield no detection."""

    def __init__(self, reader: SceneReader) -> None:
        self.reader, self.name, self.fingerprint = reader, reader.card.name, digest(reader.state_dict())

    def yes(self, images: Float[Tensor, "b 3 h w"], questions: Sequence[Sequence[str]]) -> list[Float[Tensor, " q"]]:
        return self.reader.yes(images, questions)

    def detect(self, images: Float[Tensor, "b 3 h w"], labels: Sequence[str]) -> list[list[Detection]]:
        vocabulary = [label for label in labels if label in self.reader.nouns]
        return self.reader.detect(images, vocabulary) if vocabulary else [[] for _ in images]


def load_roles(judges: object, device: torch.device) -> Roles:
    """Load one or several judges by name or folder, or take objects that answer (`yes`) or detect (`detect`).

    Raises UsageError for a folder without a judge, and for two judges of one role.
    """
    roles = Roles()
    for one in judges if isinstance(judges, list | tuple) else [judges]:
        for role, judge in _load(one, device).items():
            if getattr(roles, role) is not None:
                raise UsageError(
                    f"two judges are for {role}: {getattr(roles, role).name} and {judge.name}: give one", "two_judges"
                )
            setattr(roles, role, judge)
            if isinstance(judge, _Embedded):
                roles.grammar, roles.chunker = True, RULES  # the captions' nouns are single words
                roles.calibration = dict(judge.reader.card.provenance.get("measured") or {})
    return roles


def _load(judge: object, device: torch.device) -> dict[str, Any]:
    if isinstance(judge, str | Path):
        if is_scene_reader(judge):
            reader = _Embedded(load_scene_reader(judge, device))
            return {"questions": reader, "detector": reader}
        from robustclip.referees import compbench  # here, since transformers takes seconds to import

        kind = compbench.architecture(judge)
        if kind == compbench.ANSWERER:
            return {"questions": compbench.load_vqa(judge, device)}
        if kind in compbench.DETECTORS:
            return {"detector": compbench.load_detector(judge, device)}
    by_role = {role: judge for role, method in (("questions", "yes"), ("detector", "detect")) if hasattr(judge, method)}
    return by_role or {"clip": load_named([judge], device=device)[0]}  # type: ignore[list-item]


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
SAME: Final = 0.9  # share of a box inside another of the same label from which they count as one
PASSED: Final = 0.5  # lower scores become 0


class SpatialClaim(NamedTuple):
    """The claim of a spatial prompt: two nouns, and a value of RELATIONS."""

    noun: str
    relation: str
    other: str


def spatial_claim(prompt: str, chunker: Chunker) -> SpatialClaim:
    """The last noun before the relation and the first after it. Raises UsageError if there is none."""
    padded = f" {prompt.lower()} "
    word = next((word for word in RELATIONS if f" {word} " in padded), None)
    phrases = chunker.phrases(prompt)
    at = padded.find(f" {word} ") if word else -1  # of the whole word: "nearby" contains "near"
    before = [one.noun for one in phrases if at >= 0 and one.start < at]
    after = [one.noun for one in phrases if word and one.start >= at + len(word)]
    if word is None or not before or not after:
        raise UsageError(
            f"{prompt[:100]!r} has no spatial relation, as in 'a cat on the left of a dog' (of "
            f"{', '.join(RELATIONS)}): give prompts of this category",
            "no_relation",
        )
    return SpatialClaim(before[-1], RELATIONS[word], after[0])


def place_score(relation: str, box: Box, other: Box) -> float:
    """Degree, 0 to 1, to which the first box is `relation` of the other, by their centres and their IoU.

    1 for the right direction along the larger of the two distances; 0.1/IoU for an IoU above 0.1.
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


def spatial_score(claim: SpatialClaim, detections: Sequence[Detection]) -> float:
    """A quarter of each object's best score, plus half of `place_score` if both are detected; 0 below 1/2."""
    best = {
        label: max((one for one in detections if one.label == label), key=lambda one: one.score, default=None)
        for label in (claim.noun, claim.other)
    }
    first, second = best[claim.noun], best[claim.other]
    score = sum(one.score / 4 for one in (first, second) if one is not None)
    if first is not None and second is not None:
        score += place_score(claim.relation, first.box, second.box) / 2
    return score if score >= PASSED else 0.0


def number_score(numbers: Mapping[str, int], detections: Sequence[Detection]) -> float:
    """Mean over objects of half for being detected, half for the correct count. Nearly coincident boxes of one label
    count as one. Raises UsageError without objects."""
    if not numbers:
        raise UsageError("a numeracy prompt names how many of what, e.g. 'three apples and two dogs'", "no_numbers")
    boxes: list[Detection] = []
    for one in detections:
        if not any(one.label == kept.label and _same(one.box, kept.box) for kept in boxes):
            boxes.append(one)
    labels = [one.label for one in boxes]
    points = [0.5 * (noun in labels) + 0.5 * (labels.count(noun) == number) for noun, number in numbers.items()]
    return sum(points) / len(numbers)


def _same(box: Box, other: Box) -> bool:
    shared, smaller = _shared(box, other), min(_area(box), _area(other))
    return shared > SAME * smaller if smaller > 0 else box == other


def _shared(box: Box, other: Box) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


MOST_PHRASES: Final = 8  # questions per prompt (BLIP_vqa.py, np_num)
DIGITS: Final = 4  # of an answer's probability (blip_vqa.py)


@dataclass(frozen=True)
class Parts:
    """Which parts a complex prompt's score is the mean of: attributes always, and places, actions, or both."""

    places: bool
    actions: bool


@dataclass
class Scored:
    """Scores of one picture by metric, with the answers and detections behind them."""

    scores: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


class Scorer:
    """Scores pictures of one category by the available judges.

    `parts`: the parts of each complex prompt's mean ("3-in-1"); needed if all three roles are filled.
    """

    def __init__(self, roles: Roles, category: Category, parts: dict[str, Parts] | None = None) -> None:
        roles.check(category)
        self.roles, self.category, self.parts = roles, category, parts

    def questions(self, prompt: str) -> list[str]:
        """Questions about a picture of a prompt: its atoms, or its first eight noun phrases."""
        if self.roles.grammar:
            return [question.text for question in claims(prompt)]
        return [f"{phrase.text}?" for phrase in self.roles.chunker.phrases(prompt)[:MOST_PHRASES]]

    def check(self, prompt: str) -> None:
        """Raise UsageError for a prompt that is not of the category."""
        if self.roles.questions is not None and self._asks:
            self.questions(prompt)
        if self.roles.detector is not None and (self.category == "spatial" or self._has_place(prompt)):
            spatial_claim(prompt, self.roles.chunker)
        if self.roles.detector is not None and self.category == "numeracy":
            number_score(self._numbers(prompt), [])

    def _has_place(self, prompt: str) -> bool:
        """Whether a complex prompt's place is scored."""
        return self.category == "complex" and self.parts is not None and self.parts[normal(prompt)].places

    @property
    def _asks(self) -> bool:
        return self.roles.grammar or self.category in ("color", "shape", "texture", "complex")

    def score(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> list[Scored]:
        """Score pictures in [0,1] by their prompts."""
        results = [Scored({}) for _ in prompts]
        if self.roles.questions is not None and self._asks:
            self._ask(images, prompts, results)
        if self.roles.detector is not None and self.category in ("spatial", "numeracy", "complex"):
            self._detect(images, prompts, results)
        if self.roles.clip is not None and self.category in ("non-spatial", "complex"):
            self._compare(images, prompts, results)
        if self.category == "complex" and self.parts is not None:
            for scored, prompt in zip(results, prompts, strict=True):
                scored.scores["3-in-1"] = self._three_in_one(scored.scores, self.parts[normal(prompt)])
        return results

    def _ask(self, images: Tensor, prompts: Sequence[str], results: list[Scored]) -> None:
        questions = [self.questions(prompt) for prompt in prompts]
        probabilities = self.roles.questions.yes(images, questions)  # type: ignore[union-attr]
        for scored, texts, of_yes in zip(results, questions, probabilities, strict=True):
            answers = [round(float(one), DIGITS) for one in of_yes]
            scored.details["answers"] = dict(zip(texts, answers, strict=True))
            scored.scores["vqa-product"] = math.prod(answers)
            scored.scores["soft-tifa"] = geometric_mean(answers)

    def _detect(self, images: Tensor, prompts: Sequence[str], results: list[Scored]) -> None:
        for image, prompt, scored in zip(images, prompts, results, strict=True):
            numbers = self._numbers(prompt)
            if self.category == "complex" and not self._has_place(prompt):
                continue
            claim = None if self.category == "numeracy" else spatial_claim(prompt, self.roles.chunker)
            labels = list(numbers) if claim is None else [claim.noun, claim.other]
            detected = self.roles.detector.detect(image[None], labels)[0]  # type: ignore[union-attr]
            scored.details["found"] = [one._asdict() for one in detected]
            if claim is None:
                scored.scores["detected-numbers"] = number_score(numbers, detected)
            else:
                scored.scores["detected-places"] = spatial_score(claim, detected)

    def _numbers(self, prompt: str) -> dict[str, int]:
        return {phrase.noun: phrase.number for phrase in self.roles.chunker.phrases(prompt)}

    def _compare(self, images: Tensor, prompts: Sequence[str], results: list[Scored]) -> None:
        """CLIP_similarity.py: the cosine; for complex prompts without their adjectives."""
        referee = self.roles.clip.referee  # type: ignore[union-attr]
        texts = (
            [self.roles.chunker.plain(prompt) for prompt in prompts] if self.category == "complex" else list(prompts)
        )
        with torch.no_grad():
            similar = (referee.embed_images(images.to(referee.device)) * referee.embed_texts(texts)).sum(1).tolist()
        for scored, value in zip(results, similar, strict=True):
            scored.scores["cosine"] = value

    def _three_in_one(self, scores: dict[str, float], parts: Parts) -> float:
        values = [scores["vqa-product"]]
        values += [scores["detected-places"]] if parts.places else []
        values += [scores["cosine"]] if parts.actions else []
        return sum(values) / len(values)


def geometric_mean(answers: Sequence[float]) -> float:
    """Geometric mean of Soft-TIFA (Kamath et al. 2025, GenEval 2); 1 without questions."""
    return math.prod(answers) ** (1 / len(answers)) if answers else 1.0
