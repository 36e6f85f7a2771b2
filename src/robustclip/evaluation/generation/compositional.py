"""Two-object R-Precision: whether a judge finds both things of a picture, each in its own colour.

A judge that reads pairs scores the picture's caption against others that differ from it in one way (after Park et al.
2021, "Benchmark for Compositional Text-to-Image Synthesis", whose swaps these are); wordings and numbers are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustclip.data.pairs import COLOURS, OBJECTS, Pair, Thing
from robustclip.errors import RunError, UsageError
from robustclip.referees.base import PairReader
from robustclip.runs.rng import generator

Score = Literal["matching", "contrastive", "sum"]
"""What a judge scores by: its logit of a match minus that of none; the similarity of its embeddings; or the sum of the
two, the similarity in units of its temperature, for a judge whose matching is the weaker (the last two are ours)."""
OTHERS: Final = 6
"""Other nouns in the place of each."""
CANDIDATES: Final = 1 + 1 + 2 * (len(COLOURS) - 1) + 2 * OTHERS + 2
"""A picture's caption, and what it has to win against: colours exchanged, other colours, other nouns, one missing."""
CHANCE: Final = {
    "right": 1 / CANDIDATES,
    "attributes": 1 / 2,
    "first": 1 / (1 + OTHERS),
    "second": 1 / (1 + OTHERS),
    "both": 1 / (1 + 2 * OTHERS),  # the caption has one score, which wins against both sides
}
"""Of each rate, by guessing."""


@dataclass(frozen=True)
class Alternatives:
    """What a picture's caption has to win against, each kind by itself: its colours exchanged; another colour on either
    thing, that of the other one too; another noun in the place of the first, or of the second; one thing alone."""

    swapped: list[str]
    colours: list[str]
    first: list[str]
    second: list[str]
    missing: list[str]

    def all(self) -> list[str]:
        """One list of them."""
        return [text for kind in fields(self) for text in getattr(self, kind.name)]


def alternatives(pair: Pair, seed: int = 0) -> Alternatives:
    """Those of a pair: 1 + 14 + 6 + 6 + 2, of which the nouns are drawn by seed and pair, those of the two sides apart.

    Raises UsageError for things of one colour or none: exchanged, the caption would be the same.
    """
    colours = (pair.first.colour, pair.second.colour)
    if None in colours or colours[0] == colours[1]:
        raise UsageError(
            f"{str(pair)!r} has not two colours to exchange: judge pairs such as 'a yellow banana and a blue butterfly'"
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
    """What one judge finds in N pictures: in each, whether the caption wins against all alternatives (`right`, chance
    1/30), the exchanged colours (`attributes`, 1/2), and the other nouns of either thing (`first`, `second`, 1/7, and
    of `both`, 1/13). A tie is no win."""

    right: Bool[Tensor, " n"]
    attributes: Bool[Tensor, " n"]
    first: Bool[Tensor, " n"]
    second: Bool[Tensor, " n"]

    @property
    def both(self) -> Bool[Tensor, " n"]:
        """Both things, whatever their colours."""
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
    """What `judge` finds in pictures, each of one of the pairs.

    Raises UsageError as `alternatives`, and for other than a pair a picture; RunError where the judge gives NaN or
    infinity.
    """
    if len(images) != len(pairs):
        raise UsageError(f"{len(images)} pictures are judged by as many pairs, not {len(pairs)}")
    found = []
    for image, pair in zip(images, pairs, strict=True):
        others = alternatives(pair, seed)
        own, *scores = _scores(judge, image.to(judge.device), [str(pair), *others.all()], score)
        by_text = dict(zip(others.all(), scores, strict=True))
        kinds = (others.all(), others.swapped, others.first, others.second)
        found.append([all(own > by_text[text] for text in kind) for kind in kinds])
    return Verdict(*torch.tensor(found, dtype=torch.bool).reshape(-1, 4).unbind(1))


def _scores(judge: PairReader, image: Tensor, texts: list[str], score: Score) -> list[float]:
    found = torch.zeros(len(texts), device=judge.device)
    if score != "contrastive":
        logits = judge.matching_logits(image.expand(len(texts), -1, -1, -1), texts).float()
        found += logits[:, 1] - logits[:, 0]
    if score != "matching":
        found += judge.card.logit_scale * judge.contrastive(image[None], texts)[0].float()
    if not found.isfinite().all():
        raise RunError(f"{judge.card.name} gives no finite score of a picture of {texts[0]!r}: its weights are damaged")
    return [float(one) for one in found]
