"""Guides that include pair readers (BLIP-2), alone or beside CLIPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.losses.pairing import Pairing
from robustclip.referees.blip2 import Blip2
from robustclip.referees.pair_readers import is_pair_reader, load_pair_reader, pair_fingerprint
from robustclip.runs.devices import UNNAMED, pick_dtype
from robustclip.synthesis.guides import Given, Guides, parse_weight
from robustclip.synthesis.prompts import Prompt


@final
class PairGuides(Guides):
    """Pair readers and CLIPs, each with its weight. Where a pair reader is among them, the similarity that is shown is
    its probability of a match."""

    def __init__(self, readers: Sequence[tuple[Blip2, float]], clips: Guides | None, dtype: torch.dtype) -> None:
        super().__init__(clips.referees if clips else [], clips.weights if clips else [], dtype)
        self.readers = list(readers)

    @classmethod
    def load_all(
        cls,
        given: Given | Sequence[Given],
        *,
        device: torch.device,
        dtype: str | torch.dtype = "auto",
        recorded: str | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> PairGuides:
        """Pair readers and CLIPs by name, folder or object, `NAME=WEIGHT` for one that counts more or less.

        Raises UsageError as `Guides.load`.
        """
        listed: list[Any] = [given] if not isinstance(given, list | tuple) else list(given)
        pairs = [one for one in listed if isinstance(one, str) and is_pair_reader(parse_weight(one)[0])]
        rest = [one for one in listed if one not in pairs]
        if len(set(pairs)) < len(pairs):
            raise UsageError(f"the referee {pairs[0]} comes twice: give it once, as NAME=2 if it is to count double")
        if dtype in UNNAMED and recorded is not None:
            dtype = recorded
        clips = None
        if rest or not pairs:
            clips = Guides.load(rest, device=device, dtype=dtype, channels_last=channels_last, compile=compile)
        readers = [(load_pair_reader(name, device), weight) for name, weight in (parse_weight(one) for one in pairs)]
        if channels_last:
            readers = [(reader.to(memory_format=torch.channels_last), weight) for reader, weight in readers]
        return cls(
            readers, clips, clips.dtype if clips else pick_dtype("float32" if dtype in UNNAMED else dtype, device)
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.readers[0][0].image_size if self.readers else super().size

    @property
    def device(self) -> torch.device:
        return self.readers[0][0].device if self.readers else super().device

    def check(self, prompts: Sequence[Prompt]) -> None:
        super().check(prompts)
        for reader, _ in self.readers:
            reader.check_texts([text_of(prompt) for prompt in prompts])

    def pairings(self, prompts: Sequence[Prompt], *, matching: float, captioning: float) -> list[tuple[Pairing, float]]:
        """The loss of each pair reader for these prompts, and its weight."""
        texts = [text_of(prompt) for prompt in prompts]
        return [
            (Pairing(reader, texts, matching=matching, captioning=captioning, dtype=self.dtype), weight)
            for reader, weight in self.readers
        ]

    @torch.no_grad()
    def similarity(self, images: Float[Tensor, "p 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " p"]:
        if not self.readers:
            return super().similarity(images, prompts)
        texts = [text_of(prompt) for prompt in prompts]
        chances = [weight * reader.matching_logits(images, texts).softmax(1)[:, 1] for reader, weight in self.readers]
        return torch.stack(chances).sum(0) / sum(weight for _, weight in self.readers)

    def describe(self) -> list[dict[str, Any]]:
        readers = [
            {"name": reader.card.name, "weight": weight, "fingerprint": pair_fingerprint(reader)}
            for reader, weight in self.readers
        ]
        return [*readers, *super().describe()]


def text_of(prompt: Prompt) -> str:
    """The text of a prompt of one text. Raises UsageError for others: a pair reader has no direction to weigh."""
    if len(prompt.parts) != 1 or prompt.parts[0].kind != "text" or prompt.parts[0].weight != 1:
        raise UsageError(
            f"{str(prompt)[:100]!r} has weights, parts or pictures, and a pair reader reads one text: give it as it "
            'stands, e.g. "a yellow banana and a blue butterfly"'
        )
    return prompt.parts[0].content
