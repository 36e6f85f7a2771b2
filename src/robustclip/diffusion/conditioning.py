"""Text conditioning of a denoiser: token states of a text tower."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robustclip.referees.base import of_transformers
from robustclip.referees.sentence import SentenceEncoder
from robustclip.runs import terminal

LENGTH: Final = 24  # tokens, of the embedded denoiser's context


@dataclass(frozen=True)
class Conditioning:
    """Token states (T,N,D) of T texts, and mask (T,N), true for tokens to attend to; None: all."""

    states: Float[Tensor, "t n d"]
    mask: Bool[Tensor, "t n"] | None = None

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, index: Any) -> Conditioning:
        """The texts at `index`, possibly repeated."""
        return Conditioning(self.states[index], None if self.mask is None else self.mask[index])

    def joined(self, other: Conditioning) -> Conditioning:
        """These texts followed by those of `other`."""
        masks = None if self.mask is None or other.mask is None else torch.cat([self.mask, other.mask])
        return Conditioning(torch.cat([self.states, other.states]), masks)


class TextStates(ABC, nn.Module):
    """A frozen text tower's token states. Texts beyond `context` tokens are truncated, with one note for each text."""

    width: int
    context: int

    @property
    @abstractmethod
    def tower(self) -> Any:
        """The transformers model, for adapters."""

    @abstractmethod
    def count_tokens(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text before truncation."""

    @abstractmethod
    def states(self, texts: list[str]) -> tuple[Float[Tensor, "t n d"], Bool[Tensor, "t n"] | None]:
        """Token states, and the mask of tokens to attend to."""

    def forward(self, texts: list[str]) -> Conditioning:
        for text, count in zip(texts, self.count_tokens(list(texts)), strict=True):
            if count > self.context:
                self._note_cut(text, count)
        return Conditioning(*self.states(list(texts)))

    def _note_cut(self, text: str, count: int) -> None:
        noted: set[str] = self.__dict__.setdefault("noted", set())
        if text not in noted:
            noted.add(text)
            terminal.note(
                f"{text[:60]!r}... has {count} tokens, of which this diffusion model reads {self.context}: the end is "
                "cut"
            )


@final
class SentenceStates(TextStates):
    """Token states of the embedded text tower, MiniLM."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SentenceEncoder()
        self.width, self.context = self.encoder.width, LENGTH

    @property
    def tower(self) -> Any:
        return self.encoder.transformer

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self.encoder.count_tokens(texts)

    def states(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        return self.encoder.token_states(texts, self.context)


@final
class CLIPStates(TextStates):
    """Stable Diffusion's token states: last hidden states of a CLIPTextModel at all positions, with padding."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.width = int(model.config.hidden_size)
        self.context = int(model.config.max_position_embeddings)
        self._tokenizing = threading.Lock()  # a fast tokenizer keeps its padding and truncation as state

    @property
    def tower(self) -> Any:
        return self.model

    def count_tokens(self, texts: list[str]) -> list[int]:
        with self._tokenizing:
            return of_transformers(self.tokenizer, texts)

    def states(self, texts: list[str]) -> tuple[Tensor, None]:
        with self._tokenizing:
            ids = self.tokenizer(
                texts, padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
            )["input_ids"]
        return self.model(ids.to(self.model.device)).last_hidden_state, None
