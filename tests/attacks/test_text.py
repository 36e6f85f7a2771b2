"""Edits of characters against brute force: every text of distance 1, searches that find the best, the constraint."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch

from robustclip.attacks.text import CHARACTERS, Score, charmer, edited, fewer_words, leaf
from robustclip.errors import RunError, UsageError
from robustclip.runs.rng import generator

LETTERS = ("a", "b", " ", "")


def levenshtein(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        row, before = [i], row
        for j, other in enumerate(second, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (one != other)))
    return row[-1]


def strings(longest: int) -> list[str]:
    letters = [one for one in LETTERS if one]
    return ["".join(word) for length in range(longest + 1) for word in product(letters, repeat=length)]


def all_edits(text: str, characters: Sequence[str] = CHARACTERS) -> list[str]:
    """Every other text one edit away, each once: about 2n |characters| of them."""
    found = dict.fromkeys(edited(text, place, one) for place in range(2 * len(text) + 1) for one in characters)
    return [one for one in found if one != text]


def weights(seed: int) -> dict[str, float]:
    """A number for every short text."""
    drawn = torch.rand(len(strings(5)), generator=generator(seed, "weights"))
    return dict(zip(strings(5), drawn.tolist(), strict=True))


def score_of(seed: int = 0) -> Score:
    known = weights(seed)

    def score(texts: list[str], owners: list[int]) -> torch.Tensor:
        assert len(texts) == len(owners)
        return torch.tensor([known[text] for text in texts])

    return score


def streams(count: int, seed: int = 0) -> list[torch.Generator]:
    return [generator(seed, "edits", index) for index in range(count)]


@pytest.mark.parametrize("text", ["", "a", "ab", "a b", "aab"])
def test_all_edits_are_the_texts_of_distance_one(text: str) -> None:
    found = all_edits(text, LETTERS)
    assert sorted(found) == sorted(one for one in strings(4) if levenshtein(text, one) == 1)


def test_an_edit_by_hand() -> None:
    assert [edited("cat", place, "x") for place in range(7)] == [
        "xcat", "xat", "cxat", "cxt", "caxt", "cax", "catx",
    ]  # fmt: skip
    assert edited("cat", 1, "") == edited("cat", 1, "c") == "at"
    assert edited("cat", 2, "") == "cat"
    # Insertions: n + 1 gaps of 95 characters, n of which equal their neighbour's; 94 replacements of each; n deletions.
    assert len(all_edits("cat")) == 4 * 95 - 3 + 3 * 94 + 3
    assert len(set(CHARACTERS)) == 96


@pytest.mark.parametrize("seed", range(5))
def test_charmer_with_all_places_is_the_best_of_all_edits(seed: int) -> None:
    texts, score, known = ["a", "ab", "bb", " a"], score_of(seed), weights(seed)
    best = [max([text, *all_edits(text, LETTERS)], key=known.__getitem__) for text in texts]
    assert charmer(texts, score, places=100, characters=LETTERS) == best


@pytest.mark.parametrize("edits", [1, 2])
def test_attacks_stay_within_their_distance_and_never_score_lower(edits: int) -> None:
    texts, score, known = ["a", "ab", "bab", "b a"], score_of(), weights(0)
    for found in (
        leaf(texts, score, streams(4), edits=edits, samples=3, characters=LETTERS),
        charmer(texts, score, edits=edits, places=2, characters=LETTERS),
    ):
        for before, after in zip(texts, found, strict=True):
            assert levenshtein(before, after) <= edits
            assert known[after] >= known[before]
    once, twice = (charmer(texts, score, edits=k, places=9, characters=LETTERS) for k in (1, 2))
    assert all(known[second] >= known[first] for first, second in zip(once, twice, strict=True))
    assert once != texts


def test_leaf_takes_the_best_place_by_a_space_and_then_the_best_character() -> None:
    """With every place and character among its samples nothing is left to chance."""
    characters = (*LETTERS, "b")  # as many as there are places
    for seed in range(5):
        texts, score, known = ["ab", "ba"], score_of(seed), weights(seed)
        expected = []
        for text in texts:
            place = max((known[edited(text, place, " ")], place) for place in range(5))[1]
            expected.append(max([text, *(edited(text, place, one) for one in LETTERS)], key=known.__getitem__))
        assert leaf(texts, score, streams(2), samples=5, characters=characters) == expected


def test_a_text_draws_from_its_own_generator_alone() -> None:
    both = leaf(["ab", "ba"], score_of(), streams(2), samples=2, characters=LETTERS)
    alone = leaf(["ba"], score_of(), streams(2)[1:], samples=2, characters=LETTERS)
    assert both[1:] == alone


def test_the_constraint_breaks_words_and_makes_none() -> None:
    allowed = fewer_words({"a", "bear", "beer", "big", "red"})
    assert allowed("a big bear", "a big bexr")
    assert not allowed("a big bear", "a big beer"), "another word"
    assert not allowed("a big bear", "a big  bear")
    assert not allowed("a bxg bear", "a big bear")
    assert allowed("A Big Bear", "A Bg Bear")
    assert not allowed("a big bexr", "a big bear")


def test_a_constrained_attack_takes_nothing_else() -> None:
    allowed = fewer_words({"ab", "ba", "aa"})

    def score(texts: list[str], owners: list[int]) -> torch.Tensor:
        return torch.tensor([1.0 * ("aa" in text) + 0.1 * len(text) for text in texts])

    assert charmer(["ab ba"], score, places=20, characters=LETTERS) == ["aab ba"]
    (found,) = charmer(["ab ba"], score, places=20, allowed=allowed, characters=LETTERS)
    assert allowed("ab ba", found)
    brute = [one for one in all_edits("ab ba", LETTERS) if allowed("ab ba", one)]
    assert score([found], [0]) == score(brute, [0] * len(brute)).max()
    assert charmer(["zz"], score, allowed=allowed, characters=LETTERS) == ["zz"], "there is no word to break"


def test_candidates_are_scored_for_their_own_text() -> None:
    seen: list[tuple[str, int]] = []

    def score(texts: list[str], owners: list[int]) -> torch.Tensor:
        seen.extend(zip(texts, owners, strict=True))
        return torch.tensor([len(text) * (1 if owner else -1) for text, owner in zip(texts, owners, strict=True)]) * 1.0

    shorter, longer = charmer(["ab", "ab"], score, places=5, characters=LETTERS)
    assert (len(shorter), len(longer)) == (1, 3)
    assert all(levenshtein("ab", text) <= 1 for text, _ in seen)


def test_what_is_no_attack_is_told() -> None:
    for call in (
        lambda: charmer("ab", score_of()),
        lambda: charmer(["ab"], score_of(), edits=0),
        lambda: leaf(["ab"], score_of(), streams(1), samples=0),
    ):
        with pytest.raises(UsageError):
            call()
    for wrong in (torch.full((6,), torch.nan), torch.zeros(1)):  # of 5 places
        with pytest.raises(RunError):
            charmer(["ab"], lambda *_, wrong=wrong: wrong[:5])  # type: ignore[misc]
