"""Pictures of two coloured objects ("a yellow banana and a blue butterfly") with contrastive captions.

The embedded benchmark of Referee-Can-Play: both objects must be present, each in its own colour. Drawings are those of
the emoji set, recoloured; colours, nouns, layouts and wordings are ours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any, Final

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from robustclip.data import embedded
from robustclip.data.emoji import label_index, load_labels, load_rgba
from robustclip.data.scenes import VISIBLE, background, cut
from robustclip.errors import UsageError
from robustclip.runs.files import read_lines
from robustclip.runs.rng import generator

COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.87, 0.13, 0.15),
    "orange": (0.98, 0.53, 0.08),
    "yellow": (0.99, 0.86, 0.12),
    "green": (0.18, 0.66, 0.22),
    "blue": (0.15, 0.36, 0.92),
    "purple": (0.54, 0.18, 0.76),
    "pink": (1.0, 0.55, 0.76),
    "brown": (0.48, 0.29, 0.14),
}
NAMED: Final = {"apple": ("red apple", "green apple"), "heart": ("red heart",), "hat": ("top hat",)}
"""Labels in the emoji set of nouns that have longer names there."""
OBJECTS: Final = (
    *("airplane", "anchor", "apple", "balloon", "banana", "bell", "bicycle", "bird", "bus", "butterfly", "candle"),
    *("carrot", "cat", "cloud", "crown", "dress", "duck", "elephant", "envelope", "fish", "guitar", "hammer", "hat"),
    *("heart", "horse", "house", "key", "lemon", "mushroom", "octopus", "pear", "pineapple", "rabbit", "rocket"),
    *("sailboat", "snail", "star", "tractor", "turtle", "umbrella"),
)
SIDES: Final = (0.4, 0.5)
"""Bounds of an object's longer side, as a share of the picture's; each object has one half of the picture."""
WORDINGS: Final = ("{} and {}", "{} and {}", "{} next to {}", "{}, {}")
PLAIN: Final = 0.7  # share of pictures on white; others are on a light colour or gradient
STACKED: Final = 0.3  # share of pictures with one object above the other, rather than side by side
BARE: Final = 0.15  # share of objects in their original colours, captioned without a colour
COMPOSITIONAL: Final = "compositional.txt"


@dataclass(frozen=True)
class Thing:
    """A noun of OBJECTS with a colour of COLOURS, or uncoloured."""

    colour: str | None
    name: str

    def __str__(self) -> str:
        words = self.name if self.colour is None else f"{self.colour} {self.name}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Pair:
    """Two things of different nouns, in the order of the caption."""

    first: Thing
    second: Thing

    def __str__(self) -> str:
        return f"{self.first} and {self.second}"

    @property
    def things(self) -> frozenset[Thing]:
        """The unordered pair."""
        return frozenset((self.first, self.second))

    def swapped(self) -> Pair:
        """The same nouns with their colours exchanged."""
        first, second = self.first, self.second
        return Pair(replace(first, colour=second.colour), replace(second, colour=first.colour))

    @classmethod
    def parse(cls, text: str) -> Pair:
        """Parse "a yellow banana and a blue butterfly". Raises UsageError for any other text."""
        things = []
        for part in text.strip().lower().split(" and "):
            words = part.split()
            if words and words[0] in ("a", "an"):
                del words[0]
            if len(words) != 2 or words[0] not in COLOURS or words[1] not in OBJECTS:
                break
            things.append(Thing(*words))
        if len(things) != 2 or things[0].name == things[1].name:
            raise UsageError(
                f"{text[:100]!r} names no two coloured things: write e.g. 'a yellow banana and a blue butterfly', with "
                f"colours of {', '.join(COLOURS)}, and two nouns of {', '.join(OBJECTS)}",
                "not_a_pair",
                text=text,
            )
        return cls(*things)


@cache
def compositional_prompts() -> list[Pair]:
    """The 60 pairs on which synthesis is evaluated; excluded from all training."""
    path = embedded.path("prompts", COMPOSITIONAL)
    return [Pair.parse(line) for line in read_lines(path)]


@dataclass(frozen=True)
class PairBatch:
    """images: (B,3,64,64) float32 in [0,1], each with its pair, a caption, the caption with colours exchanged, and a
    mask (64,64): 1 and 2 for the pair's first and second thing, 0 elsewhere."""

    images: Float[Tensor, "b 3 64 64"]
    captions: list[str]
    swapped: list[str]
    pairs: list[Pair]
    masks: UInt8[Tensor, "b 64 64"]


@dataclass
class PairBatches:
    """Endless batches of pictures of pairs; batch k is a pure function of (split, seed, k).

    Raises UsageError for an unknown split, and for one that lacks a noun.
    """

    split: str
    batch_size: int
    seed: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        _drawings(self.split)

    def describe(self) -> dict[str, Any]:
        """Description of this source for the run record."""
        return {"source": "pairs", "split": self.split, "batch_size": self.batch_size, "seed": self.seed}

    def batch(self, k: int) -> PairBatch:
        """Batch k."""
        images, captions, swapped, pairs, masks = [], [], [], [], []
        for number in range(k * self.batch_size, (k + 1) * self.batch_size):
            stream = generator(self.seed, "pairs", number)
            pair = draw_pair(stream)
            image, mask = _composed(pair, self.split, stream)
            images.append(image)
            masks.append(mask)
            wording = WORDINGS[int(torch.randint(len(WORDINGS), (), generator=stream))]
            captions.append(wording.format(pair.first, pair.second))
            exchanged = pair.swapped()
            swapped.append(wording.format(exchanged.first, exchanged.second))
            pairs.append(pair)
        return PairBatch(torch.stack(images), captions, swapped, pairs, torch.stack(masks))


def draw_pair(stream: Generator) -> Pair:
    """Two different nouns with different colours or without; excludes the compositional prompts."""
    held_out = {pair.things for pair in compositional_prompts()}
    while True:
        nouns = torch.randperm(len(OBJECTS), generator=stream)[:2].tolist()
        colours = torch.randperm(len(COLOURS), generator=stream)[:2].tolist()
        bare = torch.rand(2, generator=stream) < BARE
        names = list(COLOURS)
        things = [
            Thing(None if none else names[colour], OBJECTS[noun])
            for noun, colour, none in zip(nouns, colours, bare.tolist(), strict=True)
        ]
        pair = Pair(things[0], things[1])
        if pair.things not in held_out:
            return pair


def compose_pair(pair: Pair, *, split: str, seed: int = 0, number: int = 0) -> Float[Tensor, "3 64 64"]:
    """Picture number `number` of a pair, from drawings of `split`."""
    return _composed(pair, split, generator(seed, f"pair {pair}", number))[0]


def tinted(rgba: Float[Tensor, "4 h w"], colour: str) -> Float[Tensor, "4 h w"]:
    """Recolour a drawing: dark parts stay dark, mid-tones take the colour, light parts half of it."""
    target = torch.tensor(COLOURS[colour]).view(3, 1, 1)
    grey = (rgba[:3] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)  # BT.601
    dark = torch.lerp(0.2 * target, target, (grey / 0.55).clamp(max=1))
    light = torch.lerp(target, (1 + target) / 2, ((grey - 0.55) / 0.45).clamp(min=0))
    return torch.cat([torch.where(grey < 0.55, dark, light), rgba[3:]])


def _composed(pair: Pair, split: str, stream: Generator) -> tuple[Tensor, Tensor]:
    """The image (3,64,64), and the mask of PairBatch."""
    size = 64
    rows = _drawings(split)[1]
    canvas = torch.ones(3, size, size)
    if not bool(torch.rand((), generator=stream) < PLAIN):
        canvas = background(size, stream)
    side = SIDES[0] + (SIDES[1] - SIDES[0]) * float(torch.rand((), generator=stream))
    stacked, turned = (torch.rand(2, generator=stream) < torch.tensor([STACKED, 0.5])).tolist()
    cuts = []
    mask = torch.zeros(size, size, dtype=torch.uint8)
    for thing in (pair.second, pair.first) if turned else (pair.first, pair.second):
        own = rows[thing.name]
        row = own[int(torch.randint(len(own), (), generator=stream))]
        drawing = _cut_out(split, row, round(side * size))
        cuts.append(drawing if thing.colour is None else tinted(drawing, thing.colour))
    for half, one in enumerate(cuts):
        top, left = _place(half, one.shape[1], one.shape[2], stacked, size, stream)
        below = canvas[:, top : top + one.shape[1], left : left + one.shape[2]]
        below.copy_(one[3] * one[:3] + (1 - one[3]) * below)
        number = 2 - half if turned else 1 + half
        mask[top : top + one.shape[1], left : left + one.shape[2]][one[3] >= VISIBLE] = number
    return canvas.clamp(0, 1), mask


def _place(half: int, height: int, width: int, stacked: bool, size: int, stream: Generator) -> tuple[int, int]:
    """Random top and left of an object in its half: left or right, or if `stacked` upper or lower."""
    rows, columns = (size // 2, size) if stacked else (size, size // 2)
    top = int(torch.randint(rows - height + 1, (), generator=stream))
    left = int(torch.randint(columns - width + 1, (), generator=stream))
    return (top + half * size // 2, left) if stacked else (top, left + half * size // 2)


@lru_cache(maxsize=8192)
def _cut_out(split: str, row: int, side: int) -> Float[Tensor, "4 h w"]:
    return cut(_drawings(split)[0][row], side)


@cache
def _drawings(split: str) -> tuple[UInt8[Tensor, "n 4 h w"], dict[str, list[int]]]:
    """The drawings of all nouns, and the rows of each noun."""
    labels, names = load_labels(split), label_index()[0]
    nouns = {label: noun for noun in OBJECTS for label in NAMED.get(noun, (noun,))}
    wanted = [row for row, label in enumerate(labels.labels.tolist()) if names[label] in nouns]
    rows: dict[str, list[int]] = {noun: [] for noun in OBJECTS}
    for place, row in enumerate(wanted):
        rows[nouns[names[int(labels.labels[row])]]].append(place)
    if absent := [noun for noun, own in rows.items() if not own]:
        message = f"the split {split} has no drawing of {', '.join(absent[:5])}: take guide-styles"
        raise UsageError(message, "no_drawings", split=split, nouns=absent)
    return load_rgba(split, wanted)[0], rows
