"""Questions about compositions: that their answers are what the scene shows, and captions as claims."""

from __future__ import annotations

from collections import Counter

import pytest

from robustclip.data.composing import TEXTURES, Draw
from robustclip.data.compositions import CATEGORIES, Composition, compose, relations, sprites
from robustclip.data.pairs import COLOURS
from robustclip.data.questions import Contrast, claims, contrasts, singular
from robustclip.errors import UsageError
from robustclip.runs.rng import generator


def scene(number: int, category: str) -> Composition:
    return compose(number, "unseen-styles", seed=3, size=64, categories=(category,))


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_claims_of_a_caption_are_the_atoms_of_its_scene(category: str) -> None:
    for number in range(40):
        made = scene(number, category)
        wanted = Counter(made.question(atom) for atom in made.atoms)
        assert Counter(question.text for question in claims(made.caption)) == wanted, made.caption


def test_claims_of_pairs_and_of_words_with_two_readings() -> None:
    texts = [question.text for question in claims("An orange and two orange horses")]
    assert texts == ["an orange?", "a horse?", "an orange horse?", "two horses?"]
    assert [question.kind for question in claims("a red square inside a circle.")] == [
        *("shape", "colour", "shape", "comparison")
    ]


@pytest.mark.parametrize(
    "caption", ["", "fish", "the red fish", "a", "a fish eating a hat and", "a fish above a hat above a key"]
)
def test_another_wording_is_refused(caption: str) -> None:
    with pytest.raises(UsageError):
        claims(caption)


@pytest.mark.parametrize(
    ("many", "one"), [("buses", "bus"), ("horses", "horse"), ("mice", "mouse"), ("wishes", "wish"), ("zebus", "zebu")]
)
def test_singulars(many: str, one: str) -> None:
    assert singular(many) == one


def truth(made: Composition, text: str) -> bool:
    """Whether a question's answer is yes, read off the scene's items by other means than the questions are made by."""
    words = text.removesuffix("?")
    items = {item.noun: item for item in made.items}
    if words.endswith("background"):
        return any(atom.kind == "background" and words == f"a {atom.value} background" for atom in made.atoms)
    relation = next((one for one in claims(words) if one.kind in ("spatial", "comparison")), None)
    things = [one for one in claims(words) if one.kind in ("thing", "shape")]
    nouns = [one.text.removesuffix("?").split(" ", 1)[1] for one in things]
    if any(noun not in items for noun in nouns):
        return False
    if relation is not None:
        box, other = (items[noun].box for noun in nouns)
        if relation.kind == "spatial":
            return any(f" {name} " in words for name in relations(box, other))
        longer, shorter = (max(one[2] - one[0], one[3] - one[1]) for one in (box, other))
        return longer > shorter if "bigger" in words else longer < shorter
    item = items[nouns[0]]
    number = next((one for one in claims(words) if one.kind == "count"), None)
    said = words.split(" ")[1:-1]
    held = {item.colour, item.size, item.texture}
    known = {*COLOURS, *TEXTURES, "small", "large"}
    counts = ("two", "three", "four", "five", "six")
    return all(word in held for word in said if word in known) and (
        number is None or counts.index(words.split(" ")[0]) + 2 == item.count
    )


@pytest.mark.parametrize("category", CATEGORIES)
def test_of_each_contrast_one_is_true_of_the_scene_and_the_other_false(category: str) -> None:
    asked: list[Contrast] = []
    for number in range(30):
        made = scene(number, category)
        found = contrasts(made, Draw(generator(number, "questions"), sprites("unseen-styles")))
        for pair in found:
            assert truth(made, pair.yes.text), (made.caption, pair)
            assert not truth(made, pair.no.text), (made.caption, pair)
            assert pair.yes.kind == pair.no.kind
        asked += found
        own = {made.question(atom) for atom in made.atoms if atom.kind != "spatial"}
        assert own <= {pair.yes.text for pair in found}
    wanted = {"colour": "colour", "shape": "shape", "texture": "texture", "spatial": "spatial", "numeracy": "count"}
    assert any(pair.yes.kind == wanted.get(category, "thing") for pair in asked)
