"""open_clip's text tower with its tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.referees.base import TextTower
from robustclip.referees.tokens import of_open_clip


@final
class OpenClipText(TextTower):
    """A text tower of open_clip with its tokenizer; texts beyond the tokenizer's context length are cut by it."""

    def __init__(
        self, tower: nn.Module, tokenizer: Callable[[list[str]], Tensor], width: int, batch: int = 256
    ) -> None:
        super().__init__()
        self.tower = tower
        self.tokenizer = tokenizer
        self.width = width
        self.batch = batch
        self._tokenizing = threading.Lock()  # tokenizers keep state
        self.context = getattr(tokenizer, "context_length", None)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text has, uncut, with those around it."""
        with self._tokenizing:
            return of_open_clip(self.tokenizer, texts)

    def forward(self, texts: list[str]) -> Float[Tensor, "t d"]:
        """Embed texts, not normalised, on the device of the weights; an empty list gives (0,D)."""
        device = next(self.tower.parameters()).device
        batches = (texts[i : i + self.batch] for i in range(0, len(texts), self.batch))
        rows = [self.tower(self._tokens(batch).to(device)) for batch in batches]
        return torch.cat(rows) if rows else torch.empty(0, self.width, device=device)

    def _tokens(self, texts: list[str]) -> Tensor:
        with self._tokenizing:
            return self.tokenizer(texts)
