"""Embed pictures and prompts once per judge, for all metrics.

Embeddings are unit vectors on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.data.pictures import Images
from robustclip.errors import RunError, UsageError
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.similarity import batches
from robustclip.runs.devices import autocast

BATCH = 64


@torch.no_grad()
def embed(
    judge: TwoTower,
    images: Images,
    *,
    batch_size: int = BATCH,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> Float[Tensor, "n d"]:
    """Unit embeddings of images in [0,1], `batch_size` at a time on the judge's device; float32, on the CPU.

    The tower computes in `dtype` and in eval mode. Raises UsageError for pixels outside [0,1], RunError for an
    embedding that is not finite.
    """
    parts = []
    with attacking(judge):
        for batch in batches(torch.arange(len(images)), batch_size, title):
            with autocast(judge.device, dtype):
                embedded = judge.embed_images(images[batch].to(judge.device), normalize=False)
            parts.append(unit(embedded.float()).cpu())
    embeddings = torch.cat(parts) if parts else torch.empty(0, judge.width)
    if not embeddings.isfinite().all():
        lost = int((~embeddings.isfinite().all(dim=1)).sum())
        raise RunError(
            f"{judge.card.name} has no finite embedding of {lost} of {len(images)} pictures: judge with --dtype float32"
        )
    return embeddings


@dataclass(frozen=True)
class Texts:
    """Distinct texts in alphabetical order, so that results do not depend on the order of pictures, and their unit
    embeddings."""

    texts: tuple[str, ...]
    embeddings: Float[Tensor, "t d"]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def places(self) -> dict[str, int]:
        """Index of each text."""
        return {text: place for place, text in enumerate(self.texts)}

    def index(self, prompts: Sequence[str]) -> Int[Tensor, " n"]:
        """The index of each prompt. Raises UsageError for one that is not among the texts."""
        if unknown := [prompt for prompt in prompts if prompt not in self.places]:
            raise UsageError(f"{unknown[0]!r} is not among the {len(self)} texts to choose from: embed it with them")
        return torch.tensor([self.places[prompt] for prompt in prompts], dtype=torch.long)

    def of(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The embedding of each prompt, in their order."""
        return self.embeddings[self.index(prompts)]


def embed_texts(judge: TwoTower, texts: Sequence[str], *, prefix: str = "", batch_size: int = 256) -> Texts:
    """Embed the distinct `texts` with `prefix` before each. Raises UsageError for an empty text."""
    if isinstance(texts, str):
        raise UsageError(f"texts are a list, and this is one text: write [{texts!r}]")
    different = sorted(set(texts))
    if any(not text.strip() for text in different):
        raise UsageError("a prompt is empty: give a text")
    parts = [
        judge.embed_texts([prefix + text for text in different[at : at + batch_size]]).float().cpu()
        for at in range(0, len(different), batch_size)
    ]
    return Texts(tuple(different), torch.cat(parts) if parts else torch.empty(0, judge.width))
