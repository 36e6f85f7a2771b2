"""How often yes/no questions about compositions are answered right, by category and by kind of question."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.data.composing import Draw
from robustclip.data.compositions import CATEGORIES, SIZE, compose, sprites
from robustclip.data.questions import contrasts
from robustclip.evaluation.intervals import rate
from robustclip.runs.rng import generator

SEED = 7  # not that of any training's scenes


class Answers(Protocol):
    """Who answers questions."""

    def yes(self, images: Float[Tensor, "b 3 h w"], questions: list[list[str]]) -> list[Float[Tensor, " q"]]:
        """The probability of yes to each question about each picture."""


def measure_answers(reader: Answers, split: str, *, n: int = 200, seed: int = SEED, size: int = SIZE) -> dict[str, Any]:
    """Balanced accuracies (value, low, high, n) of answers about `n` scenes of each category: by the scene's category
    ("categories"), by the kind of question ("kinds"), and of all.

    Each true claim is asked beside a false one (`contrasts`), so as many answers are yes as no; intervals are Wilson's,
    over questions. "yes" is the share of right answers where it is yes, "brier" the probability's mean squared error.
    """
    by_category: dict[str, list[bool]] = {}
    by_kind: dict[str, list[bool]] = {}
    errors, yes = [], []
    for number in range(n * len(CATEGORIES)):
        scene = compose(number, split, seed=seed, size=size)
        draw = Draw(generator(seed, "questions of the measurement", number), sprites(split))
        asked = [one for pair in contrasts(scene, draw) for one in pair]
        sure = reader.yes(scene.image[None], [[one.text for one in asked]])[0]
        wanted = torch.tensor([True, False]).repeat(len(asked) // 2)
        right = ((sure > 0.5) == wanted).tolist()
        by_category.setdefault(scene.category, []).extend(right)
        for question, hit in zip(asked, right, strict=True):
            by_kind.setdefault(question.kind, []).append(hit)
        errors += (sure - wanted.float()).square().tolist()
        yes += right[::2]
    return {
        "categories": {name: vars(rate(hits)) for name, hits in by_category.items()},
        "kinds": {name: vars(rate(hits)) for name, hits in sorted(by_kind.items())},
        "all": vars(rate([hit for hits in by_category.values() for hit in hits])),
        "yes": vars(rate(yes)),
        "brier": sum(errors) / len(errors),
    }
