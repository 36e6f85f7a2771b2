"""Training batches from the embedded emoji set: each a pure function of (seed, k)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from robustclip.data.compositions import CATEGORIES, Composition, compose, sprites
from robustclip.data.emoji import load_rgba, splits
from robustclip.data.pairs import PairBatches, compositional_prompts
from robustclip.data.samples import Batch
from robustclip.runs.processes import ALONE, Place
from robustclip.runs.rng import batch_rows, generator


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random augmentations (ours). All zeros and ones leave a drawing unchanged, on white.

    rotation: degrees to either side; scale: smallest and largest size relative to the drawing's own; translation:
    share of the side, to either side; flip: probability of mirroring a drawing whose label allows it;
    white: probability of a white background (else a solid colour or a gradient of two, equally often);
    brightness, contrast, saturation: largest change, relative, to either side; cast: the same for each colour channel.
    """

    rotation: float = 15.0
    scale: tuple[float, float] = (0.75, 1.15)
    translation: float = 0.08
    flip: float = 0.5
    white: float = 0.25
    brightness: float = 0.15
    contrast: float = 0.15
    saturation: float = 0.5
    cast: float = 0.15


class EmojiBatches:
    """Shuffled passes over one split of the emoji set, with drawings on random backgrounds.

    Batch k takes the next `batch_size` samples of an endless sequence of permutations, one per epoch; a batch may span
    two epochs, so no sample is dropped. Samples of one batch may share a concept (equal `positives`). Captions are
    redrawn from the sample's forms each time, as are the dark colours of monochrome drawings. Of P processes, rank r
    yields pairs r, r + P, ... of the batch that a single process would yield. With `sizes`, the side of batch k is
    drawn from them; else it is the data set's. `rows` are the drawings of the split to take, all by default.

    Raises UsageError for an unknown split, and for a batch that cannot be split evenly over the processes.
    """

    def __init__(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        place: Place = ALONE,
        dataset: str = "emoji",
        sizes: Sequence[int] = (),
        rows: Sequence[int] | None = None,
    ) -> None:
        place.share(batch_size)
        self.place = place
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.dataset, self.sizes = dataset, tuple(sizes)
        self.augmentation = augmentation or Augmentation()
        self.rgba, self.samples = load_rgba(split, rows, dataset)
        monochrome = set(splits(dataset).get("monochrome", ()))
        self._monochrome = torch.tensor([style in monochrome for style in self.samples.styles])
        self.faults: Counter[str] = Counter()  # the embedded shards are checked when they are built
        names = self.samples.label_names
        self._handed = torch.tensor([has_sides(names[label]) for label in self.samples.labels.tolist()])

    def __len__(self) -> int:
        return len(self.samples)

    def describe(self) -> dict[str, Any]:
        """Description of this source for the run record."""
        return {
            "source": self.dataset,
            "split": self.split,
            "samples": len(self),
            "concepts": len(self.samples.labels.unique()),
            "styles": sorted(set(self.samples.styles)),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "augmentation": vars(self.augmentation),
            **({"sizes": list(self.sizes)} if self.sizes else {}),
        }

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        """Yield batches start, start + 1, ... endlessly; each is a function of (seed, k), so no position is needed."""
        k = start
        while True:
            yield self.batch(k)
            k += 1

    def batch(self, k: int) -> Batch:
        """This process's part of batch k: images (b, 3, S, S) float32 in [0,1]."""
        mine = slice(self.place.rank, None, self.place.world_size)
        index = batch_rows(len(self), self.batch_size, k, self.seed, "emoji-epoch")[mine]
        draw = Draws(self.batch_size, generator(self.seed, "emoji-batch", k), mine)
        forms = draw.unit().tolist()
        rows = index.tolist()
        captions = [self.samples.captions[row] for row in rows]
        rgba, size = self.rgba[index], None
        if self._monochrome.any():  # of the whole set, so that all processes draw the same numbers
            dark = (127 * draw.colours()).byte().expand(-1, -1, *rgba.shape[2:])
            rgba[:, :3] = torch.where(self._monochrome[index].view(-1, 1, 1, 1), dark, rgba[:, :3])
        if self.sizes:
            drawn = torch.randint(len(self.sizes), (), generator=generator(self.seed, "emoji-size", k))
            size = self.sizes[int(drawn)]
        images = augment(rgba, self.augmentation, draw, handed=self._handed[index], size=size)
        return Batch(
            images=images,
            captions=[texts[int(form * len(texts))] for texts, form in zip(captions, forms, strict=True)],
            positives=self.samples.labels[index],
            ids=[self.samples.ids[row] for row in rows],
        )


def augment(
    rgba: UInt8[Tensor, "b 4 h w"],
    how: Augmentation,
    draw: Draws,
    *,
    handed: Tensor | None = None,
    size: int | None = None,
) -> Float[Tensor, "b 3 h2 w2"]:
    """Random affine and colour augmentation of drawings on random backgrounds, at `size` or their own; float32 in
    [0,1].

    handed: (b,) bool, the drawings that must not be mirrored (default: none). All randomness comes from `draw`.
    """
    b, _, *own = rgba.shape
    h, w = own if size is None else (size, size)
    pixels = rgba.float().div_(255)
    pixels[:, :3] *= pixels[:, 3:]  # premultiplied, so that transparent pixels do not bleed into the interpolation
    may_flip = torch.ones(b, dtype=torch.bool) if handed is None else ~handed
    flip = torch.where((draw.unit() < how.flip) & may_flip, -1.0, 1.0)
    angle = draw.signed() * math.radians(how.rotation)
    zoom = 1 / torch.exp(draw.between(math.log(how.scale[0]), math.log(how.scale[1])))
    shift = torch.stack([draw.signed(), draw.signed()], 1) * 2 * how.translation
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    matrix = torch.stack([flip * cos, -flip * sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(b, 2, 3)
    grid = F.affine_grid(matrix, [b, 4, h, w], align_corners=False)
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    contrast = 1 + how.contrast * draw.signed().view(b, 1, 1, 1)
    brightness = 1 + how.brightness * draw.signed().view(b, 1, 1, 1) + how.cast * (2 * draw.colours() - 1)
    saturation = 1 + how.saturation * draw.signed().view(b, 1, 1, 1)
    images = moved[:, :3] + (1 - moved[:, 3:]) * _backgrounds(draw, how.white, h, w)
    images = torch.lerp(images.mean(dim=1, keepdim=True), images, saturation)
    return images.sub_(0.5).mul_(contrast).add_(0.5).mul_(brightness).clamp_(0, 1)


def _backgrounds(draw: Draws, white: float, h: int, w: int) -> Float[Tensor, "b 3 h w"]:
    """White, one colour, or a linear gradient between two colours."""
    first, second = draw.colours(), draw.colours()
    kind, angle = draw.unit(), draw.unit() * 2 * math.pi
    gradient = kind > (1 + white) / 2
    second = torch.where(gradient.view(-1, 1, 1, 1), second, first)
    y, x = torch.linspace(-0.5, 0.5, h).view(1, 1, h, 1), torch.linspace(-0.5, 0.5, w).view(1, 1, 1, w)
    along = angle.cos().view(-1, 1, 1, 1) * x + angle.sin().view(-1, 1, 1, 1) * y
    mixed = torch.lerp(first, second, (along / math.sqrt(2) + 0.5))
    return torch.where((kind < white).view(-1, 1, 1, 1), torch.ones(()), mixed)


class Draws:
    """Random numbers for a batch of `b` from one stream, of which the rows `mine` are returned, so that a pair's
    numbers do not depend on the number of processes."""

    def __init__(self, b: int, stream: Generator, mine: slice = slice(None)) -> None:
        self.b, self.stream, self.mine = b, stream, mine

    def unit(self) -> Float[Tensor, " b"]:
        return torch.rand(self.b, generator=self.stream)[self.mine]

    def between(self, low: float, high: float) -> Float[Tensor, " b"]:
        return low + (high - low) * self.unit()

    def signed(self) -> Float[Tensor, " b"]:
        return self.between(-1, 1)

    def colours(self) -> Float[Tensor, "b 3 1 1"]:
        return torch.rand(self.b, 3, 1, 1, generator=self.stream)[self.mine]


def has_sides(label: str) -> bool:
    """Whether the label mentions left or right, or a sign with letters, so that it must not be mirrored."""
    words = label.lower().replace("-", " ").split()
    sided = {"left", "right", "leftwards", "rightwards", "clockwise", "counterclockwise", "button", "arrow", "input"}
    return not sided.isdisjoint(words)


# Mostly white and weaker than in a referee's training.
AUGMENTATION: Final = Augmentation(rotation=8.0, white=0.7, brightness=0.1, contrast=0.1, saturation=0.2, cast=0.05)


SPARE: Final = 10**8  # offset of the composition that replaces one with a held-out pair


@dataclass(frozen=True)
class Captioned:
    """images: (B,3,64,64) float32 in [0,1], each with a caption; `swapped`: for pairs, the caption with colours
    exchanged.

    phrases: the caption's noun phrases, none for single drawings; masks: (B,64,64), 1 + the index of the phrase whose
    object covers the pixel, 0 elsewhere.
    """

    images: Float[Tensor, "b 3 64 64"]
    captions: list[str]
    swapped: list[str | None]
    phrases: list[list[str]]
    masks: UInt8[Tensor, "b 64 64"]


@dataclass
class DrawingsAndPairs:
    """Batches of captioned pictures: pairs, then a share `composed` of compositions, then a share `single` of single
    drawings; batch k is a pure function of k. Pairs of the compositional prompts are excluded.

    Raises UsageError for an unknown split.
    """

    split: str
    batch_size: int
    seed: int = 0
    single: float = 0.25
    composed: float = 0.0

    def __post_init__(self) -> None:
        drawn, self.count = round(self.single * self.batch_size), round(self.composed * self.batch_size)
        self.pairs = PairBatches(self.split, self.batch_size - drawn - self.count, self.seed)
        self.drawings = (
            EmojiBatches(self.split, batch_size=drawn, seed=self.seed, augmentation=AUGMENTATION) if drawn else None
        )
        if self.count:
            sprites(self.split)

    def describe(self) -> dict[str, Any]:
        """Description of this source for the run record."""
        drawings = None if self.drawings is None else self.drawings.describe()
        return {"pairs": self.pairs.describe(), "drawings": drawings, "compositions": self.count}

    def labelled(self, k: int) -> Captioned:
        """Batch k, pairs first."""
        pairs = self.pairs.batch(k)
        images, masks = [pairs.images], [pairs.masks]
        captions, swapped = list(pairs.captions), list[str | None](pairs.swapped)
        phrases = [[str(pair.first), str(pair.second)] for pair in pairs.pairs]
        for number in range(k * self.count, (k + 1) * self.count):
            scene = composition(number, self.split, self.seed)
            images.append(scene.image[None])
            masks.append(_of_items(scene)[None])
            captions.append(scene.caption)
            phrases.append([str(item) for item in scene.items])
            swapped.append(None)
        if self.drawings is not None:
            drawings = self.drawings.batch(k)
            images.append(drawings.images)
            masks.append(masks[0].new_zeros(len(drawings.captions), *masks[0].shape[1:]))
            captions += drawings.captions
            phrases += [[] for _ in drawings.captions]
            swapped += [None for _ in drawings.captions]
        return Captioned(torch.cat(images), captions, swapped, phrases, torch.cat(masks))

    def batch(self, k: int) -> tuple[Float[Tensor, "b 3 64 64"], list[str]]:
        """Pictures and captions of batch k."""
        batch = self.labelled(k)
        return batch.images, batch.captions


def composition(number: int, split: str, seed: int) -> Composition:
    """Composition number `number` at 64 pixels, or another of its category if it shows a pair of the compositional
    prompts."""
    held_out = [{(thing.colour, thing.name) for thing in pair.things} for pair in compositional_prompts()]
    while True:
        scene = compose(number, split, seed=seed, size=64)
        shown = {(item.colour, item.noun) for item in scene.items}
        if not any(pair <= shown for pair in held_out):
            return scene
        number += SPARE * len(CATEGORIES)


def _of_items(scene: Composition) -> UInt8[Tensor, "s s"]:
    """The composition's mask with indices of items instead of drawings."""
    numbers = [0, *(1 + number for number, item in enumerate(scene.items) for _ in range(item.count))]
    return torch.tensor(numbers, dtype=torch.uint8)[scene.mask.long()]
