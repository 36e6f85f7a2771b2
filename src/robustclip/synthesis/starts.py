"""Parse the `--init` flag."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, final

import torch
from jaxtyping import Float
from pydantic import AfterValidator, PositiveInt
from torch import Tensor

from robustclip.data.images import load_image, resize
from robustclip.errors import UsageError
from robustclip.inits import basic
from robustclip.inits.basic import Pool, embedder
from robustclip.inits.mixture_file import SUFFIX, load_mixture
from robustclip.referees.card import Card
from robustclip.runs.devices import check_memory
from robustclip.runs.files import is_file
from robustclip.runs.rng import generator
from robustclip.synthesis.guides import Guides
from robustclip.synthesis.items import Item

MIXTURE: Final = "emoji-groups"
"""The embedded mixture, fitted on the drawings that the emoji referees were trained on."""
AUTO: Final = "auto"
WITHOUT: Final = "grey"
"""The start of `auto` if no guide's card names a mixture."""
PLAIN: Final = {"noise": basic.noise, "grey": basic.grey, "gradient": basic.gradient}
BYTES_OF_A_CANDIDATE: Final = 4 * 3 * 16 * 16  # of the embedded mixtures
KEPT: Final = 2**28
"""Bytes of cached candidates, of 4 seeds at least."""


def check_init(text: str) -> str:
    """Validate the `--init` flag. Raises UsageError for unknown names and files."""
    if text in (AUTO, *PLAIN, "mixture"):
        return text
    if not is_file(text):
        raise UsageError(
            f"there is no file {text[:200]!r} to start from: give an image, a mixture's file, "
            f"or {AUTO}, mixture, {', '.join(PLAIN)}",
            "missing_file",
            path=text,
        )
    if text.endswith(SUFFIX):
        load_mixture(text)
    else:
        load_image(text)
    return text


def _candidates(count: int) -> int:
    check_memory(count * BYTES_OF_A_CANDIDATE, f"{count:,} candidates")
    return count


Candidates = Annotated[
    PositiveInt, AfterValidator(_candidates), "number of mixture candidates; each picture starts from the most similar"
]
Init = Annotated[
    str,
    AfterValidator(check_init),
    f"auto (the mixture that the referee's card names, else {WITHOUT}), mixture (that of emoji), {', '.join(PLAIN)}, "
    "an image, or a file of robustclip mixture fit",
]


def named_mixture(card: Card) -> str | None:
    """The default mixture of a referee: the `mixture` of its card's provenance, or the embedded one if it was trained
    on the emoji set; else None.
    """
    named, data = card.provenance.get("mixture"), card.provenance.get("data")
    if isinstance(named, str) and named == Path(named).name:  # not a path, because cards can come from elsewhere
        return named
    return MIXTURE if isinstance(data, dict) and data.get("source") == "emoji" else None


@final
class Starts:
    """Items -> initial images (P,3,H,W) in [0,1].

    With a mixture, each picture starts from the candidate most similar to its prompt by the guides. Pictures of a seed
    share `candidates`, which are embedded once. `notebook`, as CLIPAG's: candidates of the first classes only, ranked
    without the referee's normalisation. `auto`: the mixture of the first guide whose card names one, else grey;
    `source` is the result. Raises UsageError for a file that is neither an image nor a mixture.
    """

    def __init__(
        self,
        init: str,
        size: tuple[int, int],
        guides: Guides,
        *,
        candidates: int = 1000,
        temperature: float = 1.0,
        strength: float = 1.0,
        notebook: bool = False,
    ) -> None:
        if init == AUTO:
            named = [found for one in guides.referees if (found := named_mixture(one.card))]
            init = named[0] if named else WITHOUT
        elif init == "mixture":
            init = MIXTURE
        self.source = init
        self.size = size
        self.guides = guides
        self.count = candidates
        self.temperature = temperature
        self.notebook = notebook
        self.plain: basic.Init | None = PLAIN.get(init)
        self.mixture = None
        seeds = 4
        if self.plain is None and is_file(init) and not init.endswith(SUFFIX):
            self.plain = basic.from_image(load_image(init), strength)
        elif self.plain is None:
            self.mixture = load_mixture(init)
            numbers = 3 * math.prod(self.mixture.size) + sum(one.width for one in guides.referees)
            check_memory(4 * candidates * numbers, f"{candidates:,} candidates of {init}")
            seeds = max(seeds, KEPT // (4 * candidates * numbers))
        self._pool = lru_cache(seeds)(self._drawn)

    def __call__(self, items: Sequence[Item]) -> Float[Tensor, "p 3 h w"]:
        device = self.guides.device
        if self.plain is not None:
            return self.plain(*self.size, [item.generator("start", device=device) for item in items], device)
        if self.count == 1:  # nothing to rank, also where no guide is a CLIP
            drawn = torch.cat([self._candidates(item.seed) for item in items])
            return resize(drawn.to(device), self.size)
        directions = self.guides.directions([item.prompt for item in items])
        return torch.cat([self._best(item.seed, one) for item, one in zip(items, directions, strict=True)])

    def _best(self, seed: int, direction: Float[Tensor, " d"]) -> Float[Tensor, "1 3 h w"]:
        pool = self._pool(seed)
        best, _ = pool.best(lambda embeddings: (embeddings @ direction)[None])
        return pool.images(best)

    def _drawn(self, seed: int) -> Pool:
        """The candidates of a seed with their embeddings."""
        embed = embedder(self.guides.referees, raw=self.notebook)
        return Pool.of(self._candidates(seed), embed, *self.size, device=self.guides.device)

    def _candidates(self, seed: int) -> Float[Tensor, "n 3 h w"]:
        assert self.mixture is not None
        return self.mixture.candidates(
            self.count, generator(seed, "candidates"), notebook=self.notebook, temperature=self.temperature
        )
