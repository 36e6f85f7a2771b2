"""Yes/no questions about compositions: true claims paired with false ones, and captions split into claims."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Final, NamedTuple

from robustclip.data.composing import SHAPES, TEXTURES, Draw
from robustclip.data.compositions import (
    BACKGROUNDS,
    NUMBERS,
    PREFIXES,
    SPOKEN,
    Composition,
    Item,
    phrase,
    plural,
    relations,
    sprites,
)
from robustclip.data.pairs import COLOURS
from robustclip.errors import UsageError

SIZES: Final = ("small", "large")
DIRECTIONS: Final = ("left", "right", "above", "below")
BACKGROUND: Final = re.compile(rf" on an? ({'|'.join(BACKGROUNDS)}) background$")
RELATION: Final = re.compile(rf" ({'|'.join(SPOKEN.values())}) ")


class Question(NamedTuple):
    """A yes/no question about a picture ("a blue butterfly?"), and its kind, as `Atom.kind`."""

    kind: str
    text: str


class Contrast(NamedTuple):
    """A question with the answer yes, and a similar one with the answer no."""

    yes: Question
    no: Question


def contrasts(scene: Composition, draw: Draw) -> list[Contrast]:
    """Contrasting questions about a scene: noun, colour, size, texture and number of each item, spatial relation and
    comparison of each two items, and the background if the caption names it.

    The false question has another noun, a colour of another item (else any other), the other size, another texture or
    number, the items exchanged (for spatial relations also another direction), or another background.
    """
    pairs = [pair for item in scene.items for pair in _of_item(item, scene.items, draw)]
    for first in scene.items:
        for second in scene.items:
            if first is not second:
                pairs += _of_two(first, second, draw)
    for atom in scene.atoms:
        if atom.kind == "comparison":
            first, second = scene.items[atom.item], scene.items[int(atom.other or 0)]
            yes = Question("comparison", _related(first, atom.value, second))
            pairs.append(Contrast(yes, Question("comparison", _related(second, atom.value, first))))
        elif atom.kind == "background":
            other = draw.one([name for name in BACKGROUNDS if name != atom.value])
            pairs.append(Contrast(*(Question("background", f"a {one} background?") for one in (atom.value, other))))
    return pairs


def _of_item(item: Item, items: Sequence[Item], draw: Draw) -> Iterator[Contrast]:
    def contrast(kind: str, yes: str, no: str) -> Contrast:
        return Contrast(Question(kind, f"{yes}?"), Question(kind, f"{no}?"))

    noun, there = item.noun, {one.noun for one in items}
    nouns = SHAPES if item.is_shape else tuple(draw.sprites.rows())
    absent = draw.one([one for one in nouns if one not in there])
    yield contrast("shape" if item.is_shape else "thing", phrase(noun, 1), phrase(absent, 1))
    if item.colour:
        others = [one.colour for one in items if one.colour not in (None, item.colour)]
        if not others or draw.unit() < 0.5:
            others = [name for name in COLOURS if name != item.colour]
        yield contrast("colour", phrase(noun, 1, colour=item.colour), phrase(noun, 1, colour=draw.one(others)))
    if item.size:
        yield contrast("size", *(phrase(noun, 1, size) for size in (item.size, _other(item.size, SIZES, draw))))
    if item.texture:
        other = _other(item.texture, tuple(TEXTURES), draw)
        yield contrast("texture", phrase(noun, 1, texture=item.texture), phrase(noun, 1, texture=other))
    if item.count > 1:
        other_number = draw.one([number for number in range(2, len(NUMBERS)) if number != item.count])
        yield contrast("count", phrase(noun, item.count), phrase(noun, other_number))


def _of_two(first: Item, second: Item, draw: Draw) -> Iterator[Contrast]:
    relations_held = relations(first.box, second.box)
    if not relations_held:
        return
    value = draw.one(relations_held)
    yes = Question("spatial", _related(first, value, second))
    if draw.unit() < 0.75:
        wrong = _related(second, value, first)
    else:
        wrong = _related(first, draw.one([name for name in DIRECTIONS if name not in relations_held]), second)
    yield Contrast(yes, Question("spatial", wrong))


def _related(first: Item, value: str, second: Item) -> str:
    return f"{phrase(first.noun, first.count)} {SPOKEN[value]} {phrase(second.noun, second.count)}?"


def _other(value: str, values: Sequence[str], draw: Draw) -> str:
    return draw.one([one for one in values if one != value])


class Thing(NamedTuple):
    """A parsed noun phrase: noun (in the singular), number, and attributes."""

    noun: str
    number: int = 1
    size: str | None = None
    texture: str | None = None
    colour: str | None = None

    def claims(self) -> Iterator[Question]:
        yield Question("shape" if self.noun in SHAPES else "thing", f"{phrase(self.noun, 1)}?")
        if self.size:
            yield Question("size", f"{phrase(self.noun, 1, size=self.size)}?")
        if self.texture:
            yield Question("texture", f"{phrase(self.noun, 1, texture=self.texture)}?")
        if self.colour:
            yield Question("colour", f"{phrase(self.noun, 1, colour=self.colour)}?")
        if self.number > 1:
            yield Question("count", f"{phrase(self.noun, self.number)}?")


class ParsedQuestion(NamedTuple):
    """A parsed question: its things, their relation (a key of SPOKEN) and the background, if any."""

    things: list[Thing]
    relation: str | None = None
    background: str | None = None

    @property
    def kind(self) -> str:
        """The kind of `Atom` in question."""
        if self.background is not None and not self.things:
            return "background"
        if self.relation is not None:
            return "spatial" if self.relation in DIRECTIONS else "comparison"
        return list(self.things[0].claims())[-1].kind


def claims(caption: str) -> list[Question]:
    """Split a caption of a composition into questions, worded as by `Composition.question`: for each thing its noun,
    size, texture, colour and number; then the relation and the background. Raises UsageError for other captions.
    """
    read = _read(caption, caption)
    questions = [question for thing in read.things for question in thing.claims()]
    if read.relation is not None:
        first, second = (phrase(thing.noun, thing.number) for thing in read.things[:2])
        kind = "spatial" if read.relation in DIRECTIONS else "comparison"
        questions.append(Question(kind, f"{first} {SPOKEN[read.relation]} {second}?"))
    if read.background is not None:
        questions.append(Question("background", f"a {read.background} background?"))
    return questions


@lru_cache(4096)
def read_question(text: str) -> ParsedQuestion:
    """Parse a question worded as by `Composition.question`. Raises UsageError for any other."""
    alone = re.fullmatch(rf"an? ({'|'.join(BACKGROUNDS)}) background\??", text)
    if alone:
        return ParsedQuestion([], None, alone[1])
    read = _read(text.removesuffix("?"), text)
    if len(read.things) != (1 if read.relation is None else 2):
        raise _not_ours(text)
    return read


def _read(text: str, whole: str) -> ParsedQuestion:
    text = " ".join(text.lower().split()).rstrip(".")
    text = next((text.removeprefix(prefix) for prefix in PREFIXES if prefix and text.startswith(prefix)), text)
    background = BACKGROUND.search(text)
    parts = re.split(r", | and ", text[: background.start()] if background else text)
    first = RELATION.split(parts[0])
    if len(first) not in (1, 3):
        raise _not_ours(whole)
    things = [_thing(part, whole) for part in [*first[::2], *parts[1:]]]
    relation = next((name for name, spoken in SPOKEN.items() if spoken == first[1]), None) if len(first) == 3 else None
    return ParsedQuestion(things, relation, background[1] if background else None)


def _thing(part: str, whole: str) -> Thing:
    number, *words = part.split(" ")
    count = 1 if number == "an" else NUMBERS.index(number) if number in NUMBERS[1:] else 0
    attributes: dict[str, str] = {}
    for kind, values in (("size", SIZES), ("texture", tuple(TEXTURES)), ("colour", tuple(COLOURS))):
        if len(words) > 1 and words[0] in values:
            attributes[kind] = words.pop(0)
    if not count or len(words) != 1:
        raise _not_ours(whole)
    return Thing(singular(words[0]) if count > 1 else words[0], count, **attributes)


def singular(noun: str) -> str:
    """The singular of a plural: by a table of the compositions' nouns, else by rule."""
    if noun in _plurals():
        return _plurals()[noun]
    if noun.endswith("ies"):
        return f"{noun[:-3]}y"
    return noun[:-2] if re.search(r"(ss|x|ch|sh)es$", noun) else noun.removesuffix("s")


@cache
def _plurals() -> dict[str, str]:
    return {plural(noun): noun for noun in {*sprites("guide-styles").nouns, *SHAPES}}


def _not_ours(caption: str) -> UsageError:
    return UsageError(
        f"{caption[:100]!r} is not worded as the compositions are, e.g. 'two red fish to the left of a hat on a white "
        "background', so its claims are unknown: judge it with a VQA model instead (--judge FOLDER)"
    )
