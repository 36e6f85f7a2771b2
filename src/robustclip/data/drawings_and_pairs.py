"""Batches for the embedded world's generators: pictures of pairs, compositions, and single drawings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from robustclip.data.compositions import CATEGORIES, Composition, compose, sprites
from robustclip.data.emoji_batches import Augmentation, EmojiBatches
from robustclip.data.pairs import PairBatches, compositional_prompts

# Mostly white, as the drawings' own pictures; a referee's training has more of everything.
AUGMENTATION: Final = Augmentation(rotation=8.0, white=0.7, brightness=0.1, contrast=0.1, saturation=0.2, cast=0.05)


SPARE: Final = 10**8  # compositions further on, one takes the place of a composition that shows a held-out pair


@dataclass(frozen=True)
class Captioned:
    """images: (B,3,64,64) float32 in [0,1]; of each a caption, and of pairs the one with colours exchanged.

    phrases: what the caption calls each of its things, none for single drawings; masks: (B,64,64), 1 + the number of
    the phrase whose thing a pixel shows, 0 elsewhere.
    """

    images: Float[Tensor, "b 3 64 64"]
    captions: list[str]
    swapped: list[str | None]
    phrases: list[list[str]]
    masks: UInt8[Tensor, "b 64 64"]


@dataclass
class DrawingsAndPairs:
    """Batches of captioned pictures: pairs, then a share `composed` of compositions, then a share `single` of single
    drawings; batch k is a pure function of k. None shows a pair of the compositional prompts.

    Raises UsageError for a split that is not there.
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
        """What a run folder says of this source."""
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
        """Pictures and captions of batch k alone."""
        batch = self.labelled(k)
        return batch.images, batch.captions


def composition(number: int, split: str, seed: int) -> Composition:
    """Composition number `number` at 64 pixels, or where it shows a pair of the compositional prompts, another of its
    category."""
    held_out = [{(thing.colour, thing.name) for thing in pair.things} for pair in compositional_prompts()]
    while True:
        scene = compose(number, split, seed=seed, size=64)
        shown = {(item.colour, item.noun) for item in scene.items}
        if not any(pair <= shown for pair in held_out):
            return scene
        number += SPARE * len(CATEGORIES)


def _of_items(scene: Composition) -> UInt8[Tensor, "s s"]:
    """The composition's mask, with the numbers of items where it has those of drawings."""
    numbers = [0, *(1 + number for number, item in enumerate(scene.items) for _ in range(item.count))]
    return torch.tensor(numbers, dtype=torch.uint8)[scene.mask.long()]
