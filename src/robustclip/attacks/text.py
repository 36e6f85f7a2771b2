"""Character edits as an attack on texts: LEAF's batched random search, Charmer's search, and random edits as a control.

LEAF (Abad Rocamora et al. 2025) and Charmer (2024), utils_attacks.py 05d42c4: a text of n characters has 2n + 1 places,
the gaps between characters and the characters themselves. An edit puts a character into a gap, or in place of another,
or deletes one; k edits reach texts of Levenshtein distance k.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from robustclip.errors import RunError, UsageError

CHARACTERS: Final = (*string.ascii_letters, *string.digits, *string.punctuation, " ", "")
"""What an edit may put; the empty one deletes."""
TEST: Final = " "
"""What places are compared by."""

Score = Callable[[list[str], list[int]], Float[Tensor, " n"]]
"""Texts, and of each the index of the attacked text that it is an edit of -> numbers (n,), higher where the attack is
nearer to its end; called without gradients."""
Allowed = Callable[[str, str], bool]
"""A text before and after an edit -> whether the attack may take it."""


def edited(text: str, place: int, character: str) -> str:
    """The text with `character` in place 0 to 2n: even places are gaps, odd ones characters.

    A character put in its own place is deleted, as in LEAF; "" deletes, and leaves a gap as it is.
    """
    index, is_character = divmod(place, 2)
    if not is_character:
        return text[:index] + character + text[index:]
    return text[:index] + ("" if character == text[index] else character) + text[index + 1 :]


def fewer_words(words: Collection[str]) -> Allowed:
    """The constraint of LEAF's release: an edit must leave fewer different words of `words` (lower case) than before,
    so that it breaks a word and makes no new one. Ours: words are runs of letters, where it has nltk's tokens.
    """
    known = frozenset(words)

    def count(text: str) -> int:
        return len(known.intersection(re.findall(r"[^\W\d_]+", text.lower())))

    return lambda before, after: count(after) < count(before)


def random_edits(
    texts: Sequence[str], generators: Sequence[Generator], characters: Sequence[str] = CHARACTERS
) -> list[str]:
    """A control: one edit of each text, drawn evenly over places and characters among those that change it and leave
    some text. Texts draw from their own generators."""

    def edit(text: str, stream: Generator) -> str:
        while True:
            place = int(torch.randint(2 * len(text) + 1, (), generator=stream))
            now = edited(text, place, characters[int(torch.randint(len(characters), (), generator=stream))])
            if now != text and now:
                return now

    return [edit(text, one) for text, one in zip(texts, generators, strict=True)]


def leaf(
    texts: Sequence[str],
    score: Score,
    generators: Sequence[Generator],
    *,
    edits: int = 1,
    samples: int = 50,
    allowed: Allowed | None = None,
    characters: Sequence[str] = CHARACTERS,
) -> list[str]:
    """LEAF's attack of training, on all texts at once: of `samples` (rho) random places the best by a space, then of
    `samples` random characters there the best; `edits` (k) times. LEAF trains with 50 samples and k = 1.

    Texts draw from their own generators. Ours: a text stays as it is where no candidate scores higher.
    """
    _check(texts, edits, samples)
    current = list(texts)
    for _ in range(edits):
        places = [_drawn(2 * len(text) + 1, samples, one) for text, one in zip(current, generators, strict=True)]
        tried = [[edited(text, place, TEST) for place in own] for text, own in zip(current, places, strict=True)]
        ranked = _scores(current, tried, score, allowed)
        chosen = [own[int(row.argmax())] for own, row in zip(places, ranked, strict=True)]
        tried = [
            [edited(text, place, characters[index]) for index in _drawn(len(characters), samples, one)]
            for text, place, one in zip(current, chosen, generators, strict=True)
        ]
        current = _taken(current, tried, _best(current, tried, score, allowed))
    return current


def charmer(
    texts: Sequence[str],
    score: Score,
    *,
    edits: int = 1,
    places: int = 20,
    allowed: Allowed | None = None,
    characters: Sequence[str] = CHARACTERS,
) -> list[str]:
    """Charmer's attack, which LEAF evaluates with: the `places` best places by a space, then every character in each
    of them; `edits` times. With as many places as a text has, it is the best of all edits.

    Ours: a text stays as it is where no candidate scores higher; so more edits never score lower.
    """
    _check(texts, edits, places)
    current = list(texts)
    for _ in range(edits):
        tried = [[edited(text, place, TEST) for place in range(2 * len(text) + 1)] for text in current]
        ranked = [
            row.sort(descending=True, stable=True).indices[:places].tolist()
            for row in _scores(current, tried, score, allowed)
        ]
        tried = [
            [edited(text, place, one) for place in own for one in characters]
            for text, own in zip(current, ranked, strict=True)
        ]
        current = _taken(current, tried, _best(current, tried, score, allowed))
    return current


def _scores(
    current: Sequence[str], tried: Sequence[Sequence[str]], score: Score, allowed: Allowed | None
) -> list[Float[Tensor, " c"]]:
    """Of each text's candidates; what is not allowed counts as the text itself.

    One call for all texts, in which equal candidates occur once, and short ones before long ones, for less padding.
    """
    shown = [
        [one if allowed is None or allowed(text, one) else text for one in own]
        for text, own in zip(current, tried, strict=True)
    ]
    pairs = [(one, owner) for owner, own in enumerate(shown) for one in own]
    distinct = sorted(set(pairs), key=lambda pair: (len(pair[0]), pair))
    with torch.no_grad():
        found = score([one for one, _ in distinct], [owner for _, owner in distinct]).float().cpu()
    if found.shape != (len(distinct),) or found.isnan().any():
        raise RunError(
            f"the score of {len(distinct)} texts is {tuple(found.shape)}, or not a number: one is due for each",
            "wrong_scores",
        )
    rows = {pair: row for row, pair in enumerate(distinct)}
    return list(found[[rows[pair] for pair in pairs]].split([len(own) for own in shown]))


def _best(current: Sequence[str], tried: Sequence[Sequence[str]], score: Score, allowed: Allowed | None) -> list[int]:
    """The index of each text's best candidate that is allowed and scores higher than the text; else -1."""
    with_own = [[text, *own] for text, own in zip(current, tried, strict=True)]
    return [int(row.argmax()) - 1 for row in _scores(current, with_own, score, allowed)]  # the first of equals


def _taken(current: Sequence[str], tried: Sequence[Sequence[str]], best: Sequence[int]) -> list[str]:
    return [text if index < 0 else own[index] for text, own, index in zip(current, tried, best, strict=True)]


def _drawn(count: int, samples: int, generator: Generator) -> list[int]:
    """Different indices where there are enough, as numpy's choice in LEAF; else with repeats."""
    if samples > count:
        return torch.randint(count, (samples,), generator=generator).tolist()
    return torch.randperm(count, generator=generator)[:samples].tolist()


def _check(texts: Sequence[str], edits: int, candidates: int) -> None:
    if isinstance(texts, str) or edits < 1 or candidates < 1:
        raise UsageError(
            f"an attack by {edits} edits with {candidates} candidates on {texts!r:.60}: give a list of texts, and at "
            'least 1 of each, as in leaf(["a cat"], score, generators, edits=1, samples=50)'
        )
