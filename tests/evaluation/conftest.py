"""A referee that can be followed with a pencil: an image's embedding is its mean colour, a text's is a known vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustclip.data.images import save_image
from robustclip.referees.base import TextTower, TwoTower
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess

SIZE = 8
COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class Dictionary(TextTower):
    """Texts to the vectors of a dictionary, which are of any length."""

    def __init__(self, words: Mapping[str, tuple[float, ...]]) -> None:
        super().__init__()
        self.words = words
        self.width = 3

    def forward(self, texts: list[str]) -> Tensor:
        return torch.tensor([self.words[text] for text in texts])


class MeanColour(nn.Module):
    """(B,3,h,w) -> (B,3)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.fixture
def colour_referee() -> Callable[..., TwoTower]:
    """Build one: `colour_referee(name=..., words=..., tower=..., logit_scale=...)`."""

    def build(
        name: str = "colours",
        words: Mapping[str, tuple[float, ...]] = COLOURS,
        tower: nn.Module | None = None,
        logit_scale: float = 10.0,
    ) -> TwoTower:
        preprocess = Preprocess(SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        card = Card(name=name, family="toy", architecture={}, preprocess={}, logit_scale=logit_scale)
        return TwoTower(tower or MeanColour(), Dictionary(words), preprocess, card=card, logit_scale=logit_scale)

    return build


@pytest.fixture
def plain() -> Callable[..., Tensor]:
    """Images of one colour each: `plain((r, g, b), ...)` -> (N,3,8,8)."""

    def build(*colours: tuple[float, float, float]) -> Tensor:
        return torch.tensor(colours)[:, :, None, None].expand(-1, -1, SIZE, SIZE).clone()

    return build


@pytest.fixture
def colour_folder(tmp_path: Path, plain: Callable[..., Tensor]) -> Path:
    """Class sub-folders of 8x8 images: two red ones, one green, and one blue that is rather green."""
    folder = tmp_path / "colours"
    pictures = {
        "red/a.png": (0.8, 0.0, 0.0),
        "red/b.png": (0.6, 0.4, 0.0),
        "green/c.png": (0.0, 0.8, 0.0),
        "blue/d.png": (0.0, 0.6, 0.4),
    }
    for name, colour in pictures.items():
        save_image(plain(colour)[0], folder / name)
    return folder
