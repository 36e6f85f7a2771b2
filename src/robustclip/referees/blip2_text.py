"""Text preprocessing and tokenisation of BLIP-2."""

from __future__ import annotations

import re
import threading
from typing import Any, Final, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.base import check_texts
from robustclip.runs import terminal

DEC: Final = "[DEC]"
"""What a caption begins with, where a text to be matched begins with [CLS] (LAVIS blip2_qformer.py)."""
CONTEXT: Final = 32  # tokens of a text
WORDS: Final = 50  # of a caption (LAVIS blip_processors.py, max_words)
PUNCTUATION: Final = re.compile(r"[.!\"()*#:;~]")


def prepared(text: str) -> str:
    """In lower case, each mark of punctuation a space, at most 50 words (LAVIS BlipCaptionProcessor)."""
    return " ".join(PUNCTUATION.sub(" ", text.lower()).split()[:WORDS])


@final
class PairTokenizer:
    """A BERT tokenizer of transformers with the token [DEC], without which (`dec` false) nothing is captioned. Safe to
    call from several threads."""

    def __init__(self, tokenizer: Any, context: int = CONTEXT, *, dec: bool = True) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self._tokenizing = threading.Lock()  # a fast tokenizer keeps its padding and truncation as state
        self._told: set[str] = set()
        known = tokenizer.convert_tokens_to_ids(DEC) not in (None, tokenizer.unk_token_id)
        if dec and not known:
            raise UsageError(
                f"the tokenizer knows no {DEC}: add it, tokenizer.add_special_tokens({{'bos_token': '{DEC}'}})"
            )
        self.dec = int(tokenizer.convert_tokens_to_ids(DEC)) if known else -1
        self.cls, self.sep, self.pad = (int(getattr(tokenizer, f"{name}_token_id")) for name in ("cls", "sep", "pad"))

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, texts: list[str], device: torch.device) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Ids, [CLS] first and [SEP] last, and a mask of tokens. Raises UsageError for what is no text."""
        with self._tokenizing:
            found = self.tokenizer(
                [prepared(text) for text in check_texts(texts)],
                padding=True,
                truncation=True,
                max_length=self.context,
                return_tensors="pt",
            )
        return found["input_ids"].to(device), found["attention_mask"].bool().to(device)

    def check(self, texts: list[str]) -> None:
        """Say, once for each, which texts are cut."""
        for text in texts:
            with self._tokenizing:
                count = len(self.tokenizer(prepared(text), truncation=False, verbose=False)["input_ids"])
            words = len(PUNCTUATION.sub(" ", text).split())
            if (count > self.context or words > WORDS) and text not in self._told:
                self._told.add(text)
                terminal.note(
                    f"{text[:60]!r}... has {count} tokens, of which this referee reads {self.context}: the end is cut"
                )

    def decode(self, ids: list[int]) -> str:
        """Words of ids, without the special ones."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
