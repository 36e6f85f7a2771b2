"""The embedded prompts and the drawings they describe."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from robustclip.data import embedded
from robustclip.data.emoji import LabelledImages, label_index, load_emoji, load_labels

Kind = Literal["name", "held-out name", "phrase"]


@dataclass(frozen=True)
class EmbeddedPrompt:
    """A prompt, the name of its picture, and the concept it names (None: a free phrase)."""

    id: str
    prompt: str
    kind: Kind
    concept: str | None


def prompts_path() -> Path:
    """The file of embedded prompts, for `--prompts`."""
    return embedded.path("prompts", "embedded.jsonl")


@cache
def embedded_prompts() -> tuple[EmbeddedPrompt, ...]:
    """All 200, in their order: 140 names, 20 names of held-out concepts, 40 phrases."""
    with prompts_path().open(encoding="utf-8") as lines:
        return tuple(EmbeddedPrompt(**json.loads(line)) for line in lines)


def some_prompts(count: int) -> list[str]:
    """`count` of the embedded prompts, evenly spaced."""
    texts = [one.prompt for one in embedded_prompts()]
    return texts[:: max(1, len(texts) // count)][:count]


@cache
def real_drawings() -> tuple[LabelledImages, list[str]]:
    """(drawings on which emoji-judge was not trained, their prompts): the two held-back drawings of every name, and all
    of every held-out name. Phrases have none.

    emoji-judge-disjoint was trained on those of the unseen styles, except the held-out ones.
    """
    _, places = label_index()
    prompts = {places[one.concept]: one.prompt for one in embedded_prompts() if one.concept is not None}
    parts = []
    for split in ("judge-heldback", "heldout-concepts"):
        labels = load_labels(split).labels.tolist()
        parts.append(load_emoji(split, [row for row, label in enumerate(labels) if label in prompts]))
    together = LabelledImages.joined(parts)
    return together, [prompts[label] for label in together.labels.tolist()]


class Styled(NamedTuple):
    """A drawing's name and the text of its target style."""

    content: str
    style: str


def embedded_styles() -> list[Styled]:
    """Ten drawings, each in five styles, in a fixed order."""
    with embedded.path("prompts", "styles.csv").open(encoding="utf-8", newline="") as file:
        return [Styled(row["content"], row["style"]) for row in csv.DictReader(file)]
