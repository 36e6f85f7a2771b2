"""Text cleaning, and token counts without truncation."""

from __future__ import annotations

import html
from typing import Any

import ftfy


def cleaned(text: str) -> str:
    """What open_clip's tokenizers of transformers read of a text (open_clip.tokenizer, clean="whitespace"): mojibake,
    curly quotes and ligatures mended by ftfy, HTML entities resolved twice, white space collapsed."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def of_transformers(tokenizer: Any, texts: list[str], *, bare: bool = False) -> list[int]:
    """By a tokenizer of transformers; `bare` counts neither what opens a text nor what closes it."""
    if not texts:  # which it refuses
        return []
    found = tokenizer(texts, add_special_tokens=not bare, truncation=False, verbose=False)
    return [len(ids) for ids in found["input_ids"]]


def of_open_clip(tokenizer: Any, texts: list[str]) -> list[int]:
    """By CLIP's own tokenizer as open_clip has it, or by its wrapper of one of transformers."""
    if hasattr(tokenizer, "bpe"):
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    texts = [tokenizer.clean_fn(text) for text in texts]
    if tokenizer.tokenizer_mode == "clips":  # it opens, closes and ends by a class token of its own
        return [count + 3 for count in of_transformers(tokenizer.tokenizer, texts, bare=True)]
    return of_transformers(tokenizer.tokenizer, texts)
