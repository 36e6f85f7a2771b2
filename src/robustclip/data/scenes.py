"""Scenes: several embedded drawings on a background with bounding boxes, for localisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from robustclip.data.emoji import Labels, load_rgba
from robustclip.runs.rng import generator

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels; half open."""

SCENES: Final = "emoji/scenes"
COUNT: Final = 400  # scenes in the set of that name
SIDES: Final = {2: (0.42, 0.55), 3: (0.36, 0.46), 4: (0.32, 0.42)}
"""By the number of things, bounds of a thing's longer side as a share of the scene's: as large as finds room. Ours."""
VISIBLE: Final = 0.5  # alpha from which a pixel is the object's
LAYOUTS, TRIES, SMALLER = 10, 20, 0.95  # layouts tried, places tried for a thing in each, before all things shrink


@dataclass(frozen=True)
class Scene:
    """An image (3,H,W) in [0,1], the name of one of its things, that thing's box, and the other things."""

    id: str
    image: Float[Tensor, "3 H W"]
    text: str
    box: Box
    others: list[tuple[str, Box]]


def compose_scenes(
    count: int = COUNT, *, seed: int = 0, split: str = "unseen-styles", size: int = 64, start: int = 0
) -> list[Scene]:
    """Scenes number `start` to `start + count`, each of 2 to 4 things on a background that is plain or fades.

    The things are drawings of different concepts, whose names share no word, in places of their own. Each scene is a
    function of seed, split, size and its number alone. Raises UsageError for a split that is not there.
    """
    drawings, labels = _drawings(split)
    return [_scene(number, drawings, labels, seed, size) for number in range(start, start + count)]


def _scene(number: int, drawings: UInt8[Tensor, "n 4 h w"], labels: Labels, seed: int, size: int) -> Scene:
    stream = generator(seed, "scene", number)
    canvas = background(size, stream)
    rows = _different(labels, 2 + int(torch.randint(3, (), generator=stream)), stream)
    things: list[tuple[str, Box]] = []
    for row, cut, (top, left) in _laid_out([drawings[row] for row in rows], size, stream):
        bottom, right = top + cut.shape[1], left + cut.shape[2]
        below = canvas[:, top:bottom, left:right]
        canvas[:, top:bottom, left:right] = cut[3] * cut[:3] + (1 - cut[3]) * below
        things.append((labels.label_names[int(labels.labels[rows[row]])], (top, left, bottom, right)))
    text, box = things.pop(int(torch.randint(len(things), (), generator=stream)))
    return Scene(f"scene-{number:04d}", canvas.clamp(0, 1), text, box, things)


def _laid_out(
    drawings: Sequence[UInt8[Tensor, "4 h w"]], size: int, stream: torch.Generator
) -> list[tuple[int, Float[Tensor, "4 h2 w2"], tuple[int, int]]]:
    """For each drawing its number, the drawing cut out and resized, and a place (top, left) of its own."""
    sides = [size * _between(*SIDES[len(drawings)], stream) for _ in drawings]
    while True:
        cuts = [cut(drawing, round(side)) for drawing, side in zip(drawings, sides, strict=True)]
        boxes = _places([(cut.shape[1], cut.shape[2]) for cut in cuts], size, stream)
        if boxes is not None:
            return [(index, cut, box[:2]) for index, (cut, box) in enumerate(zip(cuts, boxes, strict=True))]
        sides = [SMALLER * side for side in sides]


@cache
def _drawings(split: str) -> tuple[UInt8[Tensor, "n 4 h w"], Labels]:
    return load_rgba(split)


def _different(labels: Labels, count: int, stream: torch.Generator) -> list[int]:
    """Rows of `count` drawings whose names share no word, so that the text is true of one of them only."""
    rows: list[int] = []
    words: set[str] = set()
    while len(rows) < count:
        row = int(torch.randint(len(labels.labels), (), generator=stream))
        own = set(labels.label_names[int(labels.labels[row])].lower().split())
        if not words & own:
            rows.append(row)
            words |= own
    return rows


def cut(drawing: UInt8[Tensor, "4 h w"], side: int) -> Float[Tensor, "4 h2 w2"]:
    """The drawing without its empty margin, its longer side brought to `side` pixels; alpha is straight."""
    rgba = drawing.float() / 255
    rows, columns = (rgba[3] > VISIBLE).any(1).nonzero()[:, 0], (rgba[3] > VISIBLE).any(0).nonzero()[:, 0]
    tight = rgba[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = side / max(tight.shape[1:])
    shape = [max(2, round(length * scale)) for length in tight.shape[1:]]
    weighted = torch.cat([tight[:3] * tight[3:], tight[3:]])  # or hidden colours would shine through at the edges
    small = F.interpolate(weighted[None], shape, mode="bilinear", antialias=True, align_corners=False)[0]
    return torch.cat([small[:3] / small[3:].clamp(min=1e-6), small[3:]]).clamp(0, 1)


def _places(shapes: Sequence[tuple[int, int]], size: int, stream: torch.Generator) -> list[Box] | None:
    """Boxes of these heights and widths in drawn places where none meets another; None where no try found any."""
    for _ in range(LAYOUTS):
        boxes: list[Box] = []
        for height, width in shapes:
            for _ in range(TRIES):
                top, left = (int(torch.randint(size - side + 1, (), generator=stream)) for side in (height, width))
                box = (top, left, top + height, left + width)
                if not any(meet(box, other) for other in boxes):
                    boxes.append(box)
                    break
        if len(boxes) == len(shapes):
            return boxes
    return None


def meet(box: Box, other: Box) -> bool:
    """Whether two boxes share a pixel."""
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def background(size: int, stream: torch.Generator) -> Float[Tensor, "3 h w"]:
    """Light and plain, or fading from one light colour to another in a drawn direction."""
    first, second = 0.6 + 0.4 * torch.rand(2, 3, generator=stream)
    if bool(torch.rand((), generator=stream) < 0.5):
        second = first
    angle = 2 * torch.pi * torch.rand((), generator=stream)
    axis = torch.linspace(-0.5, 0.5, size)
    along = (axis[:, None] * angle.sin() + axis[None, :] * angle.cos() + 0.75) / 1.5
    return first[:, None, None] + (second - first)[:, None, None] * along


def _between(low: float, high: float, stream: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=stream))
