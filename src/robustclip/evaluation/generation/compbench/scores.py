"""The scores of one picture in one category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.data.questions import claims
from robustclip.evaluation.generation.compbench.geometry import number_score, spatial_score, wanted_places
from robustclip.evaluation.generation.compbench.prompts import Category, normal
from robustclip.evaluation.generation.compbench.roles import Roles

MOST_PHRASES: Final = 8  # of a prompt that are asked for (BLIP_vqa.py, np_num)
DIGITS: Final = 4  # of an answer (blip_vqa.py)


@dataclass(frozen=True)
class Parts:
    """Which parts a complex prompt's score is the mean of: attributes always, and places, actions, or both."""

    places: bool
    actions: bool


@dataclass
class Scored:
    """Scores of one picture by metric, and what they were made of."""

    scores: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


class Scorer:
    """Scores pictures of one category by the judges there are.

    `parts` says of complex prompts what the mean is over ("3-in-1"); it is needed where all three roles are there.
    """

    def __init__(self, roles: Roles, category: Category, parts: dict[str, Parts] | None = None) -> None:
        roles.check(category)
        self.roles, self.category, self.parts = roles, category, parts

    def questions(self, prompt: str) -> list[str]:
        """What is asked about a picture of a prompt: its atoms, or its first eight noun phrases."""
        if self.roles.grammar:
            return [question.text for question in claims(prompt)]
        return [f"{phrase.text}?" for phrase in self.roles.chunker.phrases(prompt)[:MOST_PHRASES]]

    def check(self, prompt: str) -> None:
        """Raise UsageError for a prompt that is not of the category, before any picture is looked at."""
        if self.roles.questions is not None and self._asks:
            self.questions(prompt)
        if self.roles.detector is not None and self.category == "spatial":
            wanted_places(prompt, self.roles.chunker)
        if self.roles.detector is not None and self.category == "numeracy":
            number_score(self._numbers(prompt), [])

    @property
    def _asks(self) -> bool:
        return self.roles.grammar or self.category in ("color", "shape", "texture", "complex")

    def score(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> list[Scored]:
        """Score pictures in [0,1], each of its prompt."""
        found = [Scored({}) for _ in prompts]
        if self.roles.questions is not None and self._asks:
            self._ask(images, prompts, found)
        if self.roles.detector is not None and self.category in ("spatial", "numeracy", "complex"):
            self._detect(images, prompts, found)
        if self.roles.clip is not None and self.category in ("non-spatial", "complex"):
            self._compare(images, prompts, found)
        if self.category == "complex" and self.parts is not None:
            for scored, prompt in zip(found, prompts, strict=True):
                scored.scores["3-in-1"] = self._three_in_one(scored.scores, self.parts[normal(prompt)])
        return found

    def _ask(self, images: Tensor, prompts: Sequence[str], found: list[Scored]) -> None:
        asked = [self.questions(prompt) for prompt in prompts]
        for scored, texts, sure in zip(found, asked, self.roles.questions.yes(images, asked), strict=True):  # type: ignore[union-attr]
            answers = [round(float(one), DIGITS) for one in sure]
            scored.details["answers"] = dict(zip(texts, answers, strict=True))
            scored.scores["vqa-product"] = math.prod(answers)
            scored.scores["soft-tifa"] = geometric_mean(answers)

    def _detect(self, images: Tensor, prompts: Sequence[str], found: list[Scored]) -> None:
        for image, prompt, scored in zip(images, prompts, found, strict=True):
            numbers = self._numbers(prompt)
            if self.category == "complex" and not self._has_places(prompt):
                continue
            wanted = None if self.category == "numeracy" else wanted_places(prompt, self.roles.chunker)
            labels = list(numbers) if wanted is None else [wanted.noun, wanted.other]
            detected = self.roles.detector.detect(image[None], labels)[0]  # type: ignore[union-attr]
            scored.details["found"] = [one._asdict() for one in detected]
            if wanted is None:
                scored.scores["detected-numbers"] = number_score(numbers, detected)
            else:
                scored.scores["detected-places"] = spatial_score(wanted, detected)

    def _has_places(self, prompt: str) -> bool:
        return self.parts is not None and self.parts[normal(prompt)].places

    def _numbers(self, prompt: str) -> dict[str, int]:
        return {phrase.noun: phrase.number for phrase in self.roles.chunker.phrases(prompt)}

    def _compare(self, images: Tensor, prompts: Sequence[str], found: list[Scored]) -> None:
        """CLIP_similarity.py: the cosine, in complex prompts without their adjectives."""
        referee = self.roles.clip.referee  # type: ignore[union-attr]
        texts = (
            [self.roles.chunker.plain(prompt) for prompt in prompts] if self.category == "complex" else list(prompts)
        )
        with torch.no_grad():
            similar = (referee.embed_images(images.to(referee.device)) * referee.embed_texts(texts)).sum(1).tolist()
        for scored, value in zip(found, similar, strict=True):
            scored.scores["cosine"] = value

    def _three_in_one(self, scores: dict[str, float], parts: Parts) -> float:
        values = [scores["vqa-product"]]
        values += [scores["detected-places"]] if parts.places else []
        values += [scores["cosine"]] if parts.actions else []
        return sum(values) / len(values)


def geometric_mean(answers: Sequence[float]) -> float:
    """Soft-TIFA's (Kamath et al. 2025, GenEval 2): the root of the product; 1 for no question."""
    return math.prod(answers) ** (1 / len(answers)) if answers else 1.0
