"""Pairs of pictures and captions that text targets are corrected by (`robustclip.losses.modality`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, final

import torch
from pydantic import PositiveInt

from robustclip.data.examples import read_examples
from robustclip.errors import UsageError
from robustclip.losses.modality import Pairs, aligned
from robustclip.losses.similarity import Target
from robustclip.synthesis.guides import Guides
from robustclip.synthesis.prompts import Prompt

NONE: Final = "none"
ReferenceData = Annotated[
    str,
    "captioned pictures that correct text targets for the modality gap: emoji/guide-styles, a folder of pictures with "
    ".txt captions, or clip_benchmark's shards; none takes texts as they are",
]
ReferencePairs = Annotated[PositiveInt, "pictures drawn from --reference"]


@final
class Reference:
    """`count` captioned pictures of `data`, drawn by seed 0, as each guide embeds them; the first caption of each.

    "none" leaves targets as they are. Raises UsageError for pictures without captions, and as `read_examples`.
    """

    def __init__(self, data: str, guides: Guides, count: int) -> None:
        self.pairs: list[Pairs] = []
        if data == NONE:
            return
        size = None if data.startswith(("emoji/", "icons/")) else guides.size
        examples = read_examples(data, size=size, limit=count)
        if not examples.captions:
            raise UsageError(
                f"the pictures of --reference {data[:200]} have no captions: give a folder of pictures, each with a "
                "text file of its name beside it, emoji/guide-styles, or none"
            )
        captions = [own[0] for own in examples.captions]
        for referee in guides.referees:
            self.pairs.append(Pairs.of(referee, examples.images, captions, f"{referee.card.name}, reference"))

    def targets(self, guides: Guides, prompts: Sequence[Prompt], *, neighbours: int, blending: float) -> list[Target]:
        """The guides' targets for these prompts, corrected."""
        targets = guides.targets(prompts)
        if not self.pairs:
            return targets
        texts = torch.zeros_like(targets[0].weights, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            texts[row, : len(prompt.parts)] = torch.tensor([part.kind == "text" for part in prompt.parts])
        return [
            aligned(target, texts, pairs, neighbours=neighbours, blending=blending)
            for target, pairs in zip(targets, self.pairs, strict=True)
        ]
