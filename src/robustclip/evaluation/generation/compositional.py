"""Two-object R-Precision: whether a judge recognises both objects of a picture, each in its own colour.

An image-text matching judge scores the picture's caption against captions that differ in one aspect (swaps after Park
et al. 2021, "Benchmark for Compositional Text-to-Image Synthesis"); wordings and numbers are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from robustclip.data.pairs import COLOURS, OBJECTS, Pair, Thing
from robustclip.errors import RunError, UsageError
from robustclip.evaluation.generation.results import Column
from robustclip.referees.base import PairReader
from robustclip.runs.rng import generator

Score = Literal["matching", "contrastive", "sum"]
"""The judge's score: the matching logit (match minus no match), the contrastive similarity, or the sum of the two, the
similarity divided by the temperature (the last two are ours)."""
OTHERS: Final = 6
"""Replacement nouns of each object."""
CANDIDATES: Final = 1 + 1 + 2 * (len(COLOURS) - 1) + 2 * OTHERS + 2
"""The own caption and its alternatives: colours exchanged, other colours, other nouns, one object missing."""
CHANCE: Final = {
    "right": 1 / CANDIDATES,
    "attributes": 1 / 2,
    "first": 1 / (1 + OTHERS),
    "second": 1 / (1 + OTHERS),
    "both": 1 / (1 + 2 * OTHERS),  # one score must win against both sets
}
"""Chance of each rate."""
EVERY: Final = "all judges"


@dataclass(frozen=True)
class Alternatives:
    """Alternative captions by kind: colours exchanged; another colour of either object (including the other's); another
    noun for the first, or the second; one object alone."""

    swapped: list[str]
    colours: list[str]
    first: list[str]
    second: list[str]
    missing: list[str]

    def all(self) -> list[str]:
        """All alternatives."""
        return [text for kind in fields(self) for text in getattr(self, kind.name)]


def alternatives(pair: Pair, seed: int = 0) -> Alternatives:
    """The 1 + 14 + 6 + 6 + 2 alternatives of a pair; nouns are drawn by seed and pair, without overlap.

    Raises UsageError for objects of the same colour or without colour, whose exchange would change nothing.
    """
    colours = (pair.first.colour, pair.second.colour)
    if None in colours or colours[0] == colours[1]:
        raise UsageError(
            f"{str(pair)!r} has no two different colours: judge pairs such as 'a yellow banana and a blue butterfly'",
            "not_two_colours",
        )
    stream = generator(seed, f"alternatives to {pair}")
    rest = [noun for noun in OBJECTS if noun not in (pair.first.name, pair.second.name)]
    drawn = [rest[index] for index in torch.randperm(len(rest), generator=stream)[: 2 * OTHERS].tolist()]

    def with_first(thing: Thing) -> str:
        return str(Pair(thing, pair.second))

    def with_second(thing: Thing) -> str:
        return str(Pair(pair.first, thing))

    return Alternatives(
        swapped=[str(pair.swapped())],
        colours=[
            *(with_first(replace(pair.first, colour=name)) for name in COLOURS if name != pair.first.colour),
            *(with_second(replace(pair.second, colour=name)) for name in COLOURS if name != pair.second.colour),
        ],
        first=[with_first(replace(pair.first, name=noun)) for noun in drawn[:OTHERS]],
        second=[with_second(replace(pair.second, name=noun)) for noun in drawn[OTHERS:]],
        missing=[str(pair.first), str(pair.second)],
    )


@dataclass(frozen=True)
class Verdict:
    """One judge's outcomes for N pictures: whether the caption scores above all alternatives (`right`, chance 1/30),
    the exchanged colours (`attributes`, 1/2), and the other nouns of either object (`first`, `second`, 1/7, and of
    `both`, 1/13). Ties count as errors."""

    right: Bool[Tensor, " n"]
    attributes: Bool[Tensor, " n"]
    first: Bool[Tensor, " n"]
    second: Bool[Tensor, " n"]

    @property
    def both(self) -> Bool[Tensor, " n"]:
        """Both objects, regardless of colours."""
        return self.first & self.second


@torch.no_grad()
def judge_pairs(
    judge: PairReader,
    images: Float[Tensor, "n 3 h w"],
    pairs: Sequence[Pair],
    *,
    score: Score = "matching",
    seed: int = 0,
) -> Verdict:
    """Judge pictures of pairs against the alternative captions.

    Raises UsageError as `alternatives`, and for another number of pairs than pictures; RunError for scores that are not
    finite.
    """
    if len(images) != len(pairs):
        message = f"{len(images)} pictures are judged by as many pairs, not {len(pairs)}"
        raise UsageError(message, "unequal_lengths", images=len(images), pairs=len(pairs))
    outcomes = []
    for image, pair in zip(images, pairs, strict=True):
        others = alternatives(pair, seed)
        own, *scores = _scores(judge, image.to(judge.device), [str(pair), *others.all()], score)
        by_text = dict(zip(others.all(), scores, strict=True))
        kinds = (others.all(), others.swapped, others.first, others.second)
        outcomes.append([all(own > by_text[text] for text in kind) for kind in kinds])
    return Verdict(*torch.tensor(outcomes, dtype=torch.bool).reshape(-1, 4).unbind(1))


def found_by_judges(verdicts: Mapping[str, Verdict]) -> dict[Column, NDArray[Any]]:
    """Every rate by judge, and where all judges find the same."""
    found = {
        Column(rate, name): getattr(verdict, rate).numpy() for name, verdict in verdicts.items() for rate in CHANCE
    }
    for rate in CHANCE:
        found[Column(rate, EVERY)] = np.logical_and.reduce([found[Column(rate, name)] for name in verdicts])
    return found


def _scores(judge: PairReader, image: Tensor, texts: list[str], score: Score) -> list[float]:
    totals = torch.zeros(len(texts), device=judge.device)
    if score != "contrastive":
        logits = judge.matching_logits(image.expand(len(texts), -1, -1, -1), texts).float()
        totals += logits[:, 1] - logits[:, 0]
    if score != "matching":
        totals += judge.card.logit_scale * judge.contrastive(image[None], texts)[0].float()
    if not totals.isfinite().all():
        message = f"{judge.card.name} gives no finite score of a picture of {texts[0]!r}: its weights are damaged"
        raise RunError(message, "not_finite", text=texts[0])
    return [float(one) for one in totals]
