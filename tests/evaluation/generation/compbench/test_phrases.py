"""Noun phrases by rule and by spaCy."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from robustclip.errors import UsageError
from robustclip.evaluation.generation.compbench.prompts import MODELS, Chunker, pick_chunker

PIPELINES = [name for name in MODELS if find_spec("spacy") and find_spec(name)]


@pytest.fixture(params=["rules", pytest.param("spacy", marks=pytest.mark.skipif(not PIPELINES, reason="no spaCy"))])
def chunker(request: pytest.FixtureRequest) -> Chunker:
    return pick_chunker("rules" if request.param == "rules" else PIPELINES[0])


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a green bench and a blue bowl", ["a green bench", "a blue bowl"]),
        ("a red apple on the left of a wooden table", ["a red apple", "a wooden table"]),  # "the left" is no thing
        ("The black cat was in the white box.", ["The black cat", "the white box"]),
        ("", []),
    ],
)
def test_phrases(chunker: Chunker, prompt: str, texts: list[str]) -> None:
    assert [phrase.text for phrase in chunker.phrases(prompt)] == texts


def test_nouns_and_numbers(chunker: Chunker) -> None:
    found = [(phrase.noun, phrase.number) for phrase in chunker.phrases("three apples and two dogs and a big truck")]
    assert found == [("apple", 3), ("dog", 2), ("truck", 1)]


def test_spacy_knows_adjectives_and_compounds() -> None:
    if not PIPELINES:
        pytest.skip("no spaCy")
    by_spacy = pick_chunker()
    assert by_spacy.name.startswith("spaCy")
    assert by_spacy.plain("a green bench and a big bowl") == "a bench and a bowl"
    assert [phrase.noun for phrase in by_spacy.phrases("two tennis balls")] == ["tennis ball"]


def test_a_pipeline_that_is_not_there() -> None:
    with pytest.raises(UsageError):
        pick_chunker("xx_nothing")
