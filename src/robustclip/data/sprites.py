"""Sprites for compositions: cropped and scaled drawings of single nouns, plain shapes, and recolouring."""

from __future__ import annotations

import io
from collections import defaultdict
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustclip.data.emoji import label_records, samples_of
from robustclip.data.pairs import COLOURS, NAMED, OBJECTS
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
DEPTH: Final = 0.9  # how much of the light and dark of a drawing a colour laid over it keeps
KEPT: Final = 4096  # decoded drawings: 100 MB at most


class Sprites:
    """The drawings of a split of the icon set whose labels are countable nouns of one word, decoded when first used.

    Raises UsageError for a split that is not there, or that has drawings of fewer than four nouns.
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
        """{noun: numbers of its drawings}, of all styles or those that the word names."""
        if texture not in self._rows:
            found: dict[str, list[int]] = defaultdict(list)
            for row, (noun, style) in enumerate(zip(self.nouns, self.styles, strict=True)):
                if texture is None or style in TEXTURES[texture]:
                    found[noun].append(row)
            self._rows[texture] = {noun: tuple(rows) for noun, rows in found.items()}
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
    """A sprite in one colour of COLOURS: its light and dark stay, and its mean is the colour."""
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
    """A plain black shape of SHAPES, `side` pixels wide; hollow, only a ring of it."""
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
