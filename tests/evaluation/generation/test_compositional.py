"""Two-object R-Precision against judges whose answers are known, and the table of what they find."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustclip.data.pairs import COLOURS, OBJECTS, Pair, Thing, compositional_prompts
from robustclip.errors import RunError, UsageError, coded
from robustclip.evaluation.generation.compositional import (
    CANDIDATES,
    CHANCE,
    OTHERS,
    Score,
    alternatives,
    judge_pairs,
)
from robustclip.referees.base import PairReader
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess

PAIR = Pair(Thing("yellow", "banana"), Thing("blue", "butterfly"))


class Opinion(PairReader):
    """Scores a text by what `score(number of the picture, text)` says, number being its first pixel's."""

    can_caption = False

    def __init__(self, score: Callable[[int, str], float]) -> None:
        super().__init__()
        self.score = score
        preprocess = Preprocess(8).config()
        self.card = Card(name="opinion", family="toy", architecture={}, preprocess=preprocess, logit_scale=8.0)

    @property
    def image_size(self) -> tuple[int, int]:
        return 8, 8

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def matching_logits(self, images: Tensor, texts: list[str]) -> Tensor:
        assert len(images) == len(texts)
        found = [self.score(round(float(one[0, 0, 0])), text) for one, text in zip(images, texts, strict=True)]
        return torch.tensor(
            [[len(text), len(text) + one] for one, text in zip(found, texts, strict=True)]
        )  # differ alone

    def pair_losses(
        self, images: Tensor, texts: list[str], *, matching: float = 1.0, captioning: float = 1.0
    ) -> Tensor:
        raise NotImplementedError

    def contrastive(self, images: Tensor, texts: list[str]) -> Tensor:
        """One text's wish: it likes the colours exchanged, by 0.25."""
        return torch.tensor([[0.25 * (text == str(PAIR.swapped())) for text in texts] for _ in images])

    def caption(self, images: Tensor) -> list[str]:
        raise NotImplementedError


def numbered(count: int) -> Tensor:
    """Pictures whose first pixel is their number."""
    return torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).float()


def found(score: Callable[[int, str], float], pair: Pair = PAIR) -> dict[str, bool]:
    verdict = judge_pairs(Opinion(score), numbered(1), [pair])
    return {name: bool(getattr(verdict, name)) for name in ("right", "attributes", "first", "second", "both")}


@pytest.mark.parametrize("pair", compositional_prompts(), ids=str)
def test_alternatives_differ_in_one_way(pair: Pair) -> None:
    others = alternatives(pair)
    own = str(pair).split()
    texts = others.all()
    assert len({*texts, str(pair)}) == CANDIDATES == 30
    assert others.swapped == [str(pair.swapped())]
    assert others.missing == [str(pair.first), str(pair.second)]
    changes = {place: set[str]() for place in ((1,), (2,), (5,), (6,))}
    for text in [*others.colours, *others.first, *others.second]:
        words = text.split()
        places = tuple(index for index in range(7) if words[index] != own[index] and index not in (0, 4))  # a or an
        changes[places].add(words[places[0]])
    assert changes[(1,)] == set(COLOURS) - {own[1]}, "that of the other thing too"
    assert changes[(5,)] == set(COLOURS) - {own[5]}
    assert len(changes[(2,)]) == len(changes[(6,)]) == OTHERS
    nouns = changes[(2,)] | changes[(6,)]
    assert len(nouns) == 2 * OTHERS
    assert nouns <= set(OBJECTS) - {own[2], own[6]}


def test_alternatives_are_a_function_of_pair_and_seed() -> None:
    assert alternatives(PAIR) == alternatives(PAIR)
    assert alternatives(PAIR).first != alternatives(PAIR, seed=1).first
    assert alternatives(PAIR).colours == alternatives(PAIR, seed=1).colours


def words(text: str) -> set[str]:
    return set(text.split()) - {"a", "an", "and"}


def test_what_judges_of_known_opinions_find() -> None:
    truth = str(PAIR)
    everything = {"right": True, "attributes": True, "first": True, "second": True, "both": True}
    assert found(lambda _, text: float(text == truth)) == everything
    assert found(lambda _, text: -float(text == truth)) == dict.fromkeys(everything, False)
    nouns = found(lambda _, text: float(len(words(text) & {"banana", "butterfly"})))
    assert nouns == everything | {"right": False, "attributes": False}, "a tie is no win"
    bag = found(lambda _, text: float(len(words(text) & words(truth))))
    assert bag == everything | {"right": False, "attributes": False}, "who reads no order can't tell colours exchanged"
    leaks = found(lambda _, text: 2.0 * (text == "a blue banana and a blue butterfly") + (text == truth))
    assert leaks == everything | {"right": False}, "one colour on both things"
    alone = found(lambda _, text: 2.0 * (text == "a blue butterfly") + (text == truth))
    assert alone == everything | {"right": False}, "one thing alone"
    second = found(lambda _, text: float(len(words(text) & {"butterfly", "yellow", "blue"})))
    assert second == dict.fromkeys(everything, False) | {"second": True}


def test_each_picture_is_judged_by_its_own_caption() -> None:
    pairs = compositional_prompts()[:5]
    judge = Opinion(lambda number, text: float(text == str(pairs[number])))
    assert judge_pairs(judge, numbered(5), pairs).right.tolist() == [True] * 5
    assert judge_pairs(judge, numbered(5), [pairs[one] for one in (0, 2, 1, 3, 4)]).right.tolist() == [
        *(True, False, False, True, True)
    ]


@pytest.mark.parametrize(("liking", "expected"), [(2.1, (True, False, True)), (1.9, (True, False, False))])
def test_a_judge_may_score_by_its_embeddings_too(liking: float, expected: tuple[bool, ...]) -> None:
    judge = Opinion(lambda _, text: liking * (text == str(PAIR)))
    scores: list[Score] = ["matching", "contrastive", "sum"]  # 0.25 of 1/8 is 2 logits
    found = [bool(judge_pairs(judge, numbered(1), [PAIR], score=score).attributes) for score in scores]
    assert tuple(found) == expected


def test_who_guesses_is_at_chance() -> None:
    pairs = compositional_prompts() * 15
    stream = torch.Generator().manual_seed(0)
    judge = Opinion(lambda *_: float(torch.rand((), generator=stream)))
    verdict = judge_pairs(judge, numbered(len(pairs)), pairs)
    assert CHANCE["both"] == pytest.approx(1 / 13)
    for name, chance in CHANCE.items():
        hits = getattr(verdict, name).float().mean().item()
        spread = (chance * (1 - chance) / len(pairs)) ** 0.5
        assert hits == pytest.approx(chance, abs=3.5 * spread), name


def test_what_cannot_be_judged() -> None:
    with pytest.raises(RunError, check=coded("not_finite", text=str(PAIR))):
        found(lambda _, text: float("nan") if "octopus" in text or "red" in text else 0.0)
    for second in (Thing("yellow", "butterfly"), Thing(None, "butterfly")):
        with pytest.raises(UsageError, check=coded("not_two_colours")):
            alternatives(Pair(PAIR.first, second))
    with pytest.raises(UsageError, check=coded("unequal_lengths", images=2, pairs=1)):
        judge_pairs(Opinion(lambda *_: 0.0), numbered(2), [PAIR])
