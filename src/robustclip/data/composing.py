"""Layout and rendering of compositions: sprites per category, placement without overlap, the picture."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Final, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robustclip.data.emoji import label_records, samples_of
from robustclip.data.pairs import COLOURS, NAMED, OBJECTS
from robustclip.data.scenes import Box, meet
from robustclip.errors import UsageError

Sprite = NDArray[np.float32]
"""(h,w,4) in [0,1], colours premultiplied with the alpha."""

DATASET: Final = "icons"
GROUPS: Final = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
"""Groups of concepts whose labels of one word are nouns."""
TEXTURES: Final = {
    "flat": ("fluent-emoji-flat", "twemoji"),
    "shaded": ("fluent-emoji", "noto"),
    "outlined": ("streamline-emojis", "openmoji"),
    "stencil": ("fluent-emoji-high-contrast", "emojione-monotone"),
}
"""Words for drawing styles; a split has those whose styles it has."""
SHAPES: Final = ("circle", "square", "triangle", "diamond")
RING: Final = 0.1  # width of a hollow shape's line, as a share of its side
OVERSAMPLING: Final = 3
GREY: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601
DEPTH: Final = 0.9  # share of a drawing's shading that recolouring keeps
KEPT: Final = 4096  # decoded drawings: 100 MB at most


class Sprites:
    """The drawings of a split of the icon set whose labels are countable nouns of one word, decoded when first used.

    Raises UsageError for an unknown split, and for one with drawings of fewer than four nouns.
    """

    def __init__(self, split: str) -> None:
        renamed = {label: noun for noun in OBJECTS for label in NAMED.get(noun, (noun,))}
        nouns: dict[str, str] = {}
        for record in label_records(DATASET):
            one_word = record["label"].isalpha() and record["label"].islower()
            countable = record["group"] in GROUPS and record["spoken"].startswith(("a ", "an "))
            if record["label"] in renamed or (one_word and countable):
                nouns[record["id"]] = renamed.get(record["label"], record["label"])
        samples = [sample for sample in samples_of(split, DATASET) if sample.concept in nouns]
        self.ids = [sample.id for sample in samples]
        self.styles = [sample.style for sample in samples]
        self.nouns = [nouns[sample.concept] for sample in samples]
        self._webp = [sample.webp for sample in samples]
        self._rows: dict[str | None, dict[str, tuple[int, ...]]] = {}
        self._drawing = lru_cache(KEPT)(self._decoded)
        if len(set(self.nouns)) < 4:
            raise UsageError(f"the split {split} has drawings of {len(set(self.nouns))} nouns: take guide-styles")

    @cached_property
    def textures(self) -> tuple[str, ...]:
        """Words of TEXTURES that at least four nouns are drawn in."""
        return tuple(word for word in TEXTURES if len(self.rows(word)) >= 4)

    def rows(self, texture: str | None = None) -> dict[str, tuple[int, ...]]:
        """{noun: row numbers of its drawings}, of all styles or those of a word of TEXTURES."""
        if texture not in self._rows:
            by_noun: dict[str, list[int]] = defaultdict(list)
            for row, (noun, style) in enumerate(zip(self.nouns, self.styles, strict=True)):
                if texture is None or style in TEXTURES[texture]:
                    by_noun[noun].append(row)
            self._rows[texture] = {noun: tuple(rows) for noun, rows in by_noun.items()}
        return self._rows[texture]

    def sprite(self, row: int, side: int) -> Sprite:
        """Drawing number `row` without its empty margin, its longer side brought to `side` pixels."""
        drawing = self._drawing(row)
        scale = side / max(drawing.size)
        width, height = (max(2, round(length * scale)) for length in drawing.size)
        small = drawing.resize((width, height), Image.Resampling.BILINEAR)
        levels = np.frombuffer(small.tobytes(), np.uint8).reshape(height, width, 4)
        return np.divide(levels, 255, dtype=np.float32)

    def _decoded(self, row: int) -> Image.Image:
        image = Image.open(io.BytesIO(self._webp[row])).convert("RGBA")
        box = image.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox()
        return image.convert("RGBa").crop(box)


def tinted(sprite: Sprite, colour: str) -> Sprite:
    """Recolour a sprite to a colour of COLOURS: its shading stays, its mean becomes the colour."""
    target = np.array(COLOURS[colour], dtype=np.float32)
    alpha = sprite[..., 3:]
    whole = alpha.sum() + 1e-6
    grey = (sprite[..., :3] @ GREY)[..., None]
    light = grey / np.maximum(alpha, 1e-3) - grey.sum() / whole
    colours = target + DEPTH * np.where(light < 0, light * target, light * (1 - target))
    for _ in range(2):  # the clipped part of a shift is shifted again
        colours = (colours + target - (colours * alpha).sum((0, 1)) / whole).clip(0, 1)
    return np.concatenate([colours * alpha, alpha], axis=-1).astype(np.float32)


@lru_cache(1024)
def shape(name: str, side: int, *, hollow: bool = False) -> Sprite:
    """A plain black shape of SHAPES, `side` pixels wide; `hollow`: only its outline."""
    steps = np.linspace(-1, 1, side * OVERSAMPLING, dtype=np.float32)
    y, x = steps[:, None], steps[None, :]
    inside = _covers(name, x, y)
    if hollow:
        middle = 1 / 3 if name == "triangle" else 0
        shrunk = 1 - 2 * RING * (1.5 if name in ("triangle", "diamond") else 1)
        inside &= ~_covers(name, x / shrunk, (y - middle) / shrunk + middle)
    alpha = inside.reshape(side, OVERSAMPLING, side, OVERSAMPLING).mean((1, 3), dtype=np.float32)
    black = np.zeros((side, side, 4), dtype=np.float32)
    black[..., 3] = alpha
    return black


def _covers(name: str, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    covered: dict[str, NDArray[np.bool_]] = {
        "circle": x**2 + y**2 <= 1,
        "square": (abs(x) <= 1) & (abs(y) <= 1),
        "triangle": (abs(x) <= (y + 1) / 2) & (y <= 1),
        "diamond": abs(x) + abs(y) <= 1,
    }
    return covered[name]


T = TypeVar("T")

SIDES: Final = {1: (0.5, 0.75), 2: (0.34, 0.46), 3: (0.3, 0.4), 4: (0.26, 0.34), 5: (0.22, 0.3), 6: (0.2, 0.27)}
"""By the number of drawings, bounds of a drawing's longer side as a share of the scene's."""
SMALL, LARGE = (0.18, 0.25), (0.44, 0.54)  # the same for things captioned small or large
VISIBLE: Final = 0.5  # alpha from which a pixel belongs to the drawing


@dataclass
class Draw:
    """Random choices from one stream, drawn 64 at a time, since a torch call for each would take half of the time."""

    stream: torch.Generator
    sprites: Sprites
    left: list[float] = field(default_factory=list)

    def unit(self) -> float:
        if not self.left:
            self.left = torch.rand(64, generator=self.stream, dtype=torch.float64).tolist()
        return self.left.pop()

    def below(self, n: int) -> int:
        return int(self.unit() * n)

    def one(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def several(self, choices: Sequence[T], count: int) -> list[T]:
        rest = list(choices)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


@dataclass
class Plan:
    """What to draw for an item: `row` is a drawing's number in Sprites, or None for a plain shape called `noun`."""

    noun: str
    row: int | None
    id: str = ""
    colour: str | None = None
    texture: str | None = None
    size: Literal["small", "large"] | None = None
    count: int = 1
    bounds: tuple[float, float] | None = None  # of the longer side, as a share of the scene's
    holds: bool = False  # a hollow shape around the previous item


def _things(
    drawings: Sprites, draw: Draw, count: int, *, colours: float = 0.0, textures: Sequence[str | None] = ()
) -> list[Plan]:
    """Plans of different nouns, each with a distinct colour with probability `colours`, and the given textures."""
    palette = draw.several(tuple(COLOURS), count)
    plans: list[Plan] = []
    for texture, colour in zip(list(textures) or [None] * count, palette, strict=True):
        rows = drawings.rows(texture)
        noun = draw.one(tuple(rows))
        while any(noun == plan.noun for plan in plans):
            noun = draw.one(tuple(rows))
        row = draw.one(rows[noun])
        own = colour if draw.unit() < colours else None
        plans.append(Plan(noun, row, drawings.ids[row], own, texture))
    return plans


def _shapes(draw: Draw, count: int) -> list[Plan]:
    """Plans of different plain shapes, each of a colour of its own."""
    colours = draw.several(tuple(COLOURS), count)
    return [Plan(noun, None, colour=c) for noun, c in zip(draw.several(SHAPES, count), colours, strict=True)]


def _plan_colour(drawings: Sprites, draw: Draw) -> list[Plan]:
    return _things(drawings, draw, 1 + draw.below(3), colours=1)


def _plan_shape(drawings: Sprites, draw: Draw) -> list[Plan]:
    shapes = _shapes(draw, 1 + draw.below(2))
    return shapes + _things(drawings, draw, draw.below(2) if len(shapes) > 1 else 1)


def _plan_texture(drawings: Sprites, draw: Draw) -> list[Plan]:
    return _things(drawings, draw, (count := 1 + draw.below(2)), textures=_some_textures(drawings, draw, count))


def _some_textures(drawings: Sprites, draw: Draw, count: int) -> list[str]:
    return [draw.one(drawings.textures) for _ in range(count)]


def _plan_spatial(drawings: Sprites, draw: Draw) -> list[Plan]:
    return _things(drawings, draw, 2, colours=draw.one((0.0, 1.0)))


def _plan_non_spatial(drawings: Sprites, draw: Draw) -> list[Plan]:
    first, second = _things(drawings, draw, 2)
    kind = draw.below(3)
    if kind == 0:  # inside
        holder = _shapes(draw, 1)[0]
        first.bounds, holder.bounds, holder.holds = (0.22, 0.3), (0.75, 0.95), True
        return [first, holder]
    first.bounds, second.bounds = draw.several((SMALL, LARGE), 2)
    if kind == 1:
        first.size, second.size = ("small", "large") if first.bounds == SMALL else ("large", "small")
    return [first, second]


def _plan_complex(drawings: Sprites, draw: Draw) -> list[Plan]:
    count = 2 + draw.below(3)
    textures = [draw.one((None, None, *drawings.textures)) for _ in range(count)]
    plans = _things(drawings, draw, count, colours=0.6, textures=textures)
    if count == 2:
        plans[draw.below(2)].count = 1 + draw.below(3)
    if count <= 3 and draw.unit() < 0.4:
        small, large = draw.several(range(count), 2)
        plans[small].size, plans[small].bounds = "small", SMALL
        if plans[large].count == 1:
            plans[large].size, plans[large].bounds = "large", (LARGE[0], LARGE[0] + 0.03)
    return plans


def _plan_numeracy(drawings: Sprites, draw: Draw) -> list[Plan]:
    plans = _things(drawings, draw, 1 + draw.below(2), colours=draw.one((0.0, 1.0)))
    plans[0].count = 2 + draw.below(3)
    if len(plans) > 1:
        plans[1].count = 1 + draw.below(7 - plans[0].count - 1)
    return plans


PLANS: Final = {
    "colour": _plan_colour,
    "shape": _plan_shape,
    "texture": _plan_texture,
    "spatial": _plan_spatial,
    "non-spatial": _plan_non_spatial,
    "complex": _plan_complex,
    "numeracy": _plan_numeracy,
}
LAYOUTS, TRIES, SMALLER = 3, 20, 0.9  # layouts tried, places tried for a drawing in each, before all drawings shrink


def placed_things(plans: list[Plan], size: int, draw: Draw) -> list[list[tuple[Box, Sprite]]] | None:
    """A box and a sprite for each drawing of each plan; boxes do not overlap, except that a holder's contains the
    previous one. None if the layouts tried had no room."""
    total = sum(plan.count for plan in plans)
    bounds = [plan.bounds or SIDES[total] for plan in plans]
    sides = [size * draw.between(*bound) for bound in bounds]
    if plans[-1].holds:
        return _inside(plans, [round(side) for side in sides], size, draw)
    for _ in range(LAYOUTS):
        cuts = [_sprite(plan, round(side), draw) for plan, side in zip(plans, sides, strict=True)]
        taken: list[Box] = []
        placed: list[list[tuple[Box, Sprite]]] = [[] for _ in plans]
        for number in sorted(range(len(plans)), key=lambda one: -sides[one]):
            for _ in range(plans[number].count):
                height, width = cuts[number].shape[:2]
                for _ in range(TRIES):
                    top, left = draw.below(size - height + 1), draw.below(size - width + 1)
                    box = (top, left, top + height, left + width)
                    if not any(meet(box, other) for other in taken):
                        taken.append(box)
                        placed[number].append((box, cuts[number]))
                        break
        if len(taken) == total:
            return placed
        sides = [side if plan.bounds else SMALLER * side for plan, side in zip(plans, sides, strict=True)]
    return None


def _inside(plans: list[Plan], sides: list[int], size: int, draw: Draw) -> list[list[tuple[Box, Sprite]]]:
    thing, holder = (_sprite(plan, side, draw) for plan, side in zip(plans, sides, strict=True))
    height, width = holder.shape[:2]
    top, left = draw.below(size - height + 1), draw.below(size - width + 1)
    low = 2 / 3 if plans[1].noun == "triangle" else 1 / 2  # where the middle of the area is
    inner_top = top + round(low * height - thing.shape[0] / 2)
    inner_left = left + round(width / 2 - thing.shape[1] / 2)
    box = (inner_top, inner_left, inner_top + thing.shape[0], inner_left + thing.shape[1])
    return [[(box, thing)], [((top, left, top + height, left + width), holder)]]


def _sprite(plan: Plan, side: int, draw: Draw) -> Sprite:
    made = shape(plan.noun, side, hollow=plan.holds) if plan.row is None else draw.sprites.sprite(plan.row, side)
    return made if plan.colour is None else tinted(made, plan.colour)


def visible(box: Box, sprite: Sprite) -> Box:
    """The box of a placed sprite's visible pixels: scaled down, a thin end may fade out."""
    opaque = sprite[..., 3] >= VISIBLE
    rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
    if not len(rows):
        return box
    top, left = box[0], box[1]
    return top + int(rows[0]), left + int(columns[0]), top + int(rows[-1]) + 1, left + int(columns[-1]) + 1


def painted(
    plans: list[Plan], placed: list[list[tuple[Box, Sprite]]], background: tuple[float, float, float], size: int
) -> tuple[Tensor, Tensor]:
    """The image (3,S,S) and the mask (S,S): 0 for the background, else 1 + the number of the drawing."""
    image = np.empty((size, size, 3), dtype=np.float32)
    image[:] = background
    mask = np.zeros((size, size), dtype=np.uint8)
    order = reversed([(box, cut) for own in placed for box, cut in own])
    number = sum(plan.count for plan in plans)
    for (top, left, bottom, right), cut in order:
        below = image[top:bottom, left:right]
        alpha = cut[..., 3:]
        below *= 1 - alpha
        below += cut[..., :3]
        mask[top:bottom, left:right][alpha[..., 0] >= VISIBLE] = number
        number -= 1
    np.clip(image, 0, 1, out=image)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)
