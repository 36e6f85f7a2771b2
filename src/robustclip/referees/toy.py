"""Toy referee of a few thousand weights, for tests and dry runs of recipes."""

from __future__ import annotations

import hashlib
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.errors import UsageError
from robustclip.referees.base import TextTower, TwoTower
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess

FAMILY = "toy"
LARGEST = 256
"""Maximal size and width, since cards are untrusted."""


@final
class ToyText(TextTower):
    """Maps texts to pseudo-random directions, deterministic and without semantics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.place: Tensor
        self.register_buffer("place", torch.empty(0), persistent=False)  # tracks the device

    def forward(self, texts: list[str]) -> Float[Tensor, "t d"]:
        """Embed texts, not normalised; an empty list gives (0,D)."""
        rows = [self._row(text) for text in texts]
        return (torch.stack(rows) if rows else torch.empty(0, self.width)).to(self.place.device)

    def _row(self, text: str) -> Float[Tensor, " d"]:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def source(self) -> dict[str, str]:
        """The name, with an empty digest, since there are no weights."""
        return {"name": f"toy {self.width}", "sha256": ""}


def toy_referee(size: int = 16, width: int = 16, seed: int = 0, name: str = "toy") -> TwoTower:
    """A two-layer image tower with weights keyed by `seed`, and a text tower without semantics; logit scale 10."""
    drawn = torch.Generator().manual_seed(seed)
    tower = nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=4, stride=4), nn.GELU(), nn.Flatten(), nn.Linear(8 * (size // 4) ** 2, width)
    )
    for weight in tower.parameters():
        nn.init.normal_(weight, std=weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.02, generator=drawn)
    preprocess = Preprocess(size, interpolation="bilinear")
    card = Card(
        name=name,
        family=FAMILY,
        architecture={"name": "toy", "size": size, "width": width},
        preprocess=preprocess.config(),
        logit_scale=10.0,
    )
    return TwoTower(tower, ToyText(width), preprocess, card=card, logit_scale=10.0).eval().requires_grad_(False)


def from_architecture(architecture: dict[str, Any]) -> TwoTower:
    """The toy of a card, before its weights are loaded. Raises UsageError for invalid sizes."""
    size, width = architecture.get("size"), architecture.get("width")
    if not all(type(number) is int and 4 <= number <= LARGEST for number in (size, width)):
        raise UsageError(f"a toy has a size and a width from 4 to {LARGEST}, not {size!r} and {width!r}")
    return toy_referee(cast("int", size), cast("int", width))
