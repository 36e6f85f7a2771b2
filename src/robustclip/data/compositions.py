"""Compositions: scenes of one to four named objects, drawn on the fly, with captions split into atomic claims.

The categories are those of T2I-CompBench (Huang et al. 2023, arXiv:2307.06350) and numeracy: colour, shape, texture
(the drawing style), spatial (left, right, above, below), non-spatial (here: bigger, smaller, inside) and complex.
Drawings are those of the icon set; colours, sizes, layouts and wordings are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from jaxtyping import Float, UInt8
from torch import Tensor

from robustclip.data.composing import PLANS, Draw, Plan, Sprite, Sprites, painted, placed_things, visible
from robustclip.data.scenes import Box
from robustclip.runs.rng import generator

SIZE: Final = 96
CATEGORIES: Final = ("colour", "shape", "texture", "spatial", "non-spatial", "complex", "numeracy")
BACKGROUNDS: Final = {
    "white": (1.0, 1.0, 1.0),
    "light grey": (0.82, 0.82, 0.82),
    "light blue": (0.75, 0.87, 1.0),
    "light green": (0.8, 0.96, 0.78),
    "light yellow": (1.0, 0.97, 0.75),
    "pink": (1.0, 0.85, 0.9),
}
PREFIXES: Final = ("", "", "a picture of ", "a drawing of ")
NAMED_BACKGROUND: Final = 0.4  # share of the captions that name the background
NUMBERS: Final = ("no", "a", "two", "three", "four", "five", "six")
RATIO: Final = 1.4  # of the longer sides of things called bigger or smaller
IRREGULAR: Final = {
    "fish": "fish",
    "deer": "deer",
    "sheep": "sheep",
    "mouse": "mice",
    "foot": "feet",
    "tooth": "teeth",
    "leaf": "leaves",
}

Spatial = Literal["left", "right", "above", "below"]
SPOKEN: Final = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
    "bigger": "bigger than",
    "smaller": "smaller than",
    "inside": "inside",
}


@dataclass(frozen=True)
class Item:
    """An object of a scene: its noun, the caption's claim about it (or None), and one box per drawing.

    `is_shape`: a plain shape rather than a drawing; `drawings`: ids of the drawings in the icon set.
    """

    noun: str
    boxes: tuple[Box, ...]
    colour: str | None = None
    size: Literal["small", "large"] | None = None
    texture: str | None = None
    is_shape: bool = False
    drawings: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.boxes)

    @property
    def box(self) -> Box:
        """The box around all of its drawings."""
        tops, lefts, bottoms, rights = zip(*self.boxes, strict=True)
        return min(tops), min(lefts), max(bottoms), max(rights)

    def __str__(self) -> str:
        return phrase(self.noun, self.count, self.size, self.texture, self.colour)


@dataclass(frozen=True)
class Atom:
    """One atomic claim of a caption: item number `item` has `value` of `kind`. Relations have a second item `other`;
    the background has item -1.
    """

    kind: Literal["thing", "colour", "size", "texture", "shape", "count", "spatial", "comparison", "background"]
    value: str
    item: int
    other: int | None = None


@dataclass(frozen=True)
class Composition:
    """A scene: image (3,S,S) float32 in [0,1], mask (S,S) uint8 (0: background, else 1 + the index of the drawing over
    all items), caption, category, items, and the atoms of the caption."""

    image: Float[Tensor, "3 s s"]
    mask: UInt8[Tensor, "s s"]
    caption: str
    category: str
    items: tuple[Item, ...]
    atoms: tuple[Atom, ...]

    def question(self, atom: Atom) -> str:
        """The atom as a yes/no question, e.g. "a blue butterfly?"."""
        if atom.kind == "background":
            return f"a {atom.value} background?"
        item = self.items[atom.item]
        own = {atom.kind: atom.value} if atom.kind in ("colour", "size", "texture") else {}
        count = item.count if atom.kind == "count" else 1
        words = phrase(item.noun, count, own.get("size"), own.get("texture"), own.get("colour"))
        if atom.other is None:
            return f"{words}?"
        other = self.items[atom.other]
        return f"{phrase(item.noun, item.count)} {SPOKEN[atom.value]} {phrase(other.noun, other.count)}?"


def compose(
    number: int,
    split: str = "guide-styles",
    *,
    seed: int = 0,
    size: int = SIZE,
    categories: tuple[str, ...] = CATEGORIES,
) -> Composition:
    """Composition number `number`; `categories` alternate. Raises UsageError for an unknown split."""
    drawings = sprites(split)
    draw = Draw(generator(seed, "composition", number), drawings)
    category = categories[number % len(categories)]
    while True:
        plans = PLANS[category](drawings, draw)
        placed = placed_things(plans, size, draw)
        if placed is None:
            continue
        items = tuple(_item(plan, own) for plan, own in zip(plans, placed, strict=True))
        relation = _relation(category, plans, items, draw)
        if relation is not None or category not in ("spatial", "non-spatial", "complex"):
            break
    atoms = [atom for number, item in enumerate(items) for atom in _atoms_of(number, item)]
    caption = _caption(items, relation)
    background = draw.one(tuple(BACKGROUNDS))
    if relation is not None and relation.other is not None:
        atoms.append(relation)
    if draw.unit() < NAMED_BACKGROUND:
        caption += f" on {'a' if background[0] not in 'aeio' else 'an'} {background} background"
        atoms.append(Atom("background", background, -1))
    image, mask = painted(plans, placed, BACKGROUNDS[background], size)
    return Composition(image, mask, draw.one(PREFIXES) + caption, category, items, tuple(atoms))


@cache
def sprites(split: str) -> Sprites:
    """The sprites of a split's compositions."""
    return Sprites(split)


def phrase(
    noun: str, count: int, size: str | None = None, texture: str | None = None, colour: str | None = None
) -> str:
    """E.g. "a small blue key", "three flat keys"."""
    words = [word for word in (size, texture, colour) if word]
    if count > 1:
        return " ".join([NUMBERS[count], *words, plural(noun)])
    words.append(noun)
    return " ".join(["an" if words[0][0] in "aeio" or words[0] == "umbrella" else "a", *words])


def plural(noun: str) -> str:
    """The plural of an English noun, by rule or from a list."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")) or noun in ("tomato", "potato", "mango"):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def _item(plan: Plan, own: list[tuple[Box, Sprite]]) -> Item:
    boxes = tuple(visible(box, sprite) for box, sprite in own)
    drawings = () if plan.row is None else (plan.id,) * len(own)
    return Item(plan.noun, boxes, plan.colour, plan.size, plan.texture, plan.row is None, drawings)


def _atoms_of(number: int, item: Item) -> list[Atom]:
    """The atomic claims of an item's phrase."""
    atoms = [Atom("shape" if item.is_shape else "thing", item.noun, number)]
    if item.colour:
        atoms.append(Atom("colour", item.colour, number))
    if item.size:
        atoms.append(Atom("size", item.size, number))
    if item.texture:
        atoms.append(Atom("texture", item.texture, number))
    if item.count > 1:
        atoms.append(Atom("count", str(item.count), number))
    return atoms


def _relation(category: str, plans: list[Plan], items: tuple[Item, ...], draw: Draw) -> Atom | None:
    """A true relation between two of the items, of the category's kind; None if there is none."""
    if category == "non-spatial":
        if plans[-1].holds:
            return Atom("comparison", "inside", 0, 1)
        if items[0].size:
            return Atom("size", str(items[0].size), 0)  # already in the items' phrases
        first, second = (max(box[2] - box[0], box[3] - box[1]) for box in (items[0].box, items[1].box))
        if max(first, second) < RATIO * min(first, second):
            return None
        return Atom("comparison", "bigger" if first > second else "smaller", 0, 1)
    if category not in ("spatial", "complex"):
        return None
    first_item, second_item = draw.several(range(len(items)), 2)
    true = relations(items[first_item].box, items[second_item].box)
    return Atom("spatial", draw.one(true), first_item, second_item) if true else None


def relations(box: Box, other: Box) -> list[Spatial]:
    """The true relations of left, right, above and below: the box ends before the other begins, along the axis on which
    their centres are farther apart."""
    down = (box[0] + box[2] - other[0] - other[2]) / 2
    right = (box[1] + box[3] - other[1] - other[3]) / 2
    true: list[Spatial] = []
    if abs(right) >= abs(down):
        true += ["left"] if box[3] <= other[1] else ["right"] if other[3] <= box[1] else []
    if abs(down) >= abs(right):
        true += ["above"] if box[2] <= other[0] else ["below"] if other[2] <= box[0] else []
    return true


def _caption(items: tuple[Item, ...], relation: Atom | None) -> str:
    """All items listed, or two in their relation followed by the others."""
    if relation is None or relation.other is None:
        words = [str(item) for item in items]
    else:
        first, second = items[relation.item], items[relation.other]
        words = [f"{first} {SPOKEN[relation.value]} {second}"]
        words += [str(item) for number, item in enumerate(items) if number not in (relation.item, relation.other)]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
