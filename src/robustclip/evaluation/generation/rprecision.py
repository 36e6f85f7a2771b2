"""R-Precision: how often the judge ranks a picture's own prompt first (CLIPAG App. A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.evaluation.generation.embeddings import Texts
from robustclip.evaluation.zeroshot import ranks
from robustclip.runs.rng import each

CHUNK = 1024
"""Pictures at a time: with thirty thousand prompts, their cosines take 120 MB."""


@dataclass(frozen=True)
class RPrecision:
    """For each of N pictures, the rank of its own prompt among the candidates (0: first; ties count as errors), and the
    nearest candidate (`picked`)."""

    ranks: Int[Tensor, " n"]
    picked: list[str]
    candidates: int

    @property
    def hits(self) -> NDArray[np.bool_]:
        """(N,) bool: whether the prompt comes first. Ties are misses."""
        hits: NDArray[np.bool_] = (self.ranks == 0).numpy()
        return hits

    @property
    def chance(self) -> float:
        """The hit rate by chance."""
        return 1 / self.candidates


def r_precision(
    images: Float[Tensor, "n d"],
    prompts: Sequence[str],
    texts: Texts,
    *,
    ids: Sequence[str],
    candidates: int | None = None,
    seed: int = 0,
) -> RPrecision:
    """Rank each picture's prompt among `candidates` different texts: its own, and others drawn from `texts`.

    images      unit embeddings (`embed`), with each picture's prompt in `prompts`.
    texts       pool of candidates, which includes every prompt.
    candidates  number of candidates, including the own prompt; None: all of `texts`.
    ids         keys of the draw, besides the seed: pictures of two methods with the same id (and the same `texts`) get
                the same candidates, so that their hits are paired.

    Raises UsageError for fewer texts than candidates, fewer than 2 candidates, and lists that differ in length.
    """
    if not len(images) == len(prompts) == len(ids):
        raise UsageError(f"{len(images)} pictures, {len(prompts)} prompts and {len(ids)} ids: give one each")
    count = count_candidates(candidates, len(texts))
    own = texts.index(prompts)
    parts, picked = [], []
    for rows in torch.arange(len(images)).split(CHUNK):
        cosines = images[rows] @ texts.embeddings.T
        if count < len(texts):
            drawn = _drawn(own[rows], len(texts), count, [ids[row] for row in rows.tolist()], seed)
            shown = torch.full_like(cosines, -torch.inf).scatter(1, drawn, cosines.gather(1, drawn))
        else:
            shown = cosines
        parts.append(ranks(shown, own[rows]))
        picked += [texts.texts[place] for place in shown.argmax(dim=1).tolist()]
    return RPrecision(torch.cat(parts) if parts else torch.empty(0, dtype=torch.long), picked, count)


def count_candidates(candidates: int | None, texts: int) -> int:
    """Number of candidates for so many texts. Raises UsageError if either is too small."""
    count = texts if candidates is None else candidates
    if count < 2:
        raise UsageError(
            f"R-Precision among {count}: a picture needs its own prompt and at least one other; judge more prompts, "
            "or leave r-precision out of the metrics"
        )
    if count > texts:
        fewer = f"among fewer candidates, e.g. --candidates {texts}" if texts > 1 else "leave r-precision out"
        raise UsageError(
            f"R-Precision among {count} candidates needs {count} different prompts, and there are {texts}: "
            f"judge more prompts, or {fewer}"
        )
    return count


def _drawn(own: Int[Tensor, " b"], total: int, count: int, ids: Sequence[str], seed: int) -> Int[Tensor, "b k"]:
    """Indices of each picture's candidates among `total` texts: its own first, then count - 1 others."""
    others = [torch.randperm(total - 1, generator=stream)[: count - 1] for stream in each(seed, "candidates", ids=ids)]
    drawn = torch.stack(others)
    drawn += drawn >= own[:, None]  # skip the own index
    return torch.cat([own[:, None], drawn], dim=1)
