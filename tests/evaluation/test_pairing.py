"""How well a pair reader reads, on readers of whom it is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustclip.data.pairs import PairBatches
from robustclip.evaluation.pair_readers import AMONG, measure_pair_reader
from robustclip.referees.base import PairReader

SPLIT, SEED = "unseen-styles", 3


class Knows(PairReader):
    """It has seen the scenes, and compares their texts as `key` has them."""

    can_caption = True

    def __init__(self, key: Callable[[str], object] = str) -> None:
        super().__init__()
        self.key = key
        batches = [PairBatches(SPLIT, AMONG, SEED).batch(k) for k in range(2)]
        self.seen = {
            image.numpy().tobytes(): str(pair)
            for batch in batches
            for image, pair in zip(batch.images, batch.pairs, strict=True)
        }

    @property
    def image_size(self) -> tuple[int, int]:
        return 64, 64

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def caption(self, images: Tensor) -> list[str]:
        return [self.seen[image.numpy().tobytes()] for image in images]

    def contrastive(self, images: Tensor, texts: list[str]) -> Tensor:
        return torch.tensor(
            [[float(self.key(own) == self.key(text)) for text in texts] for own in self.caption(images)]
        )

    def matching_logits(self, images: Tensor, texts: list[str]) -> Tensor:
        matches = self.contrastive(images, texts).diagonal()
        return torch.stack([torch.zeros_like(matches), matches], 1)

    def pair_losses(
        self, images: Tensor, texts: list[str], *, matching: float = 1.0, captioning: float = 1.0
    ) -> Tensor:
        raise AssertionError("measuring needs no losses")


def measured(reader: PairReader, n: int) -> dict[str, tuple[float, int]]:
    found = measure_pair_reader(reader, SPLIT, n=n, seed=SEED)
    return {name: (found[name]["value"], found[name]["n"]) for name in ("retrieval", "matching", "swap")}


def test_who_knows_all_is_always_right() -> None:
    found = measured(Knows(), 80)
    assert found["retrieval"] == found["matching"] == (1.0, 80)
    assert found["swap"][0] == 1.0
    assert 60 < found["swap"][1] < 80  # two things without colours, or of one, have nothing to exchange


def test_who_sees_words_and_not_their_order_takes_every_swap() -> None:
    """What tells colours from things is in the order alone."""
    found = measured(Knows(lambda text: frozenset(text.split()) - {"a", "an"}), 40)
    assert found["retrieval"][0] == found["matching"][0] == 1.0
    assert found["swap"][0] == 0.0


def test_who_sees_nothing_is_never_right_by_chance() -> None:
    """Ties are no hits."""
    found = measured(Knows(lambda _: 0), 40)
    assert found["retrieval"][0] == pytest.approx(1 / 40)
    assert found["matching"][0] == found["swap"][0] == 0.0


def test_what_it_says_is_shown_beside_what_is_there() -> None:
    said = measure_pair_reader(Knows(), SPLIT, n=40, seed=SEED, captioned=3)["captions"]
    assert len(said) == 3
    assert all(text.split(" -> ")[0] == text.split(" -> ")[1] for text in said)
