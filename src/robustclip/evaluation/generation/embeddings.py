"""Embed pictures and prompts once per judge, and measure them: cosine similarity, CLIPScore, and R-Precision, how
often the judge ranks a picture's own prompt first (CLIPAG App. A.2).

Embeddings are unit vectors on the CPU. CLIPScore is 2.5 * max(cos, 0) with "A photo depicts " before the text (Hessel
et al. 2021; their clipscore.py). Other work reports the plain cosine, without prefix, under the same name
(T2I-CompBench); here they are separate metrics. Both use the judge's own preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.data.pictures import Images
from robustclip.errors import RunError, UsageError
from robustclip.evaluation.zeroshot import ranks
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import embed_images
from robustclip.runs.rng import each

BATCH = 64


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
    with attacking(judge):
        embeddings = embed_images(judge, images, batch_size=batch_size, dtype=dtype, title=title)
    if not embeddings.isfinite().all():
        lost = int((~embeddings.isfinite().all(dim=1)).sum())
        raise RunError(
            f"{judge.card.name} has no finite embedding of {lost} of {len(images)} pictures: judge with "
            "--dtype float32",
            "not_finite",
            lost=lost,
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
            message = f"{unknown[0]!r} is not among the {len(self)} texts to choose from: embed it with them"
            raise UsageError(message, "unknown_text", given=unknown[0])
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
        raise UsageError("a prompt is empty: give a text", "no_prompt")
    parts = [
        judge.embed_texts([prefix + text for text in different[at : at + batch_size]]).float().cpu()
        for at in range(0, len(different), batch_size)
    ]
    return Texts(tuple(different), torch.cat(parts) if parts else torch.empty(0, judge.width))


PREFIX: Final = "A photo depicts "
SCALE: Final = 2.5


def cosine(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Cosine of each picture with its own text, in [-1,1]; both are unit embeddings."""
    if images.shape != texts.shape:
        raise UsageError(
            f"pictures {tuple(images.shape)} and texts {tuple(texts.shape)} are compared one by one", "wrong_shape"
        )
    return (images * texts).sum(dim=1)


def clip_score(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Hessel's CLIPScore in [0, 2.5]; `texts` are embedded with `PREFIX` before the prompt."""
    return SCALE * cosine(images, texts).clamp(min=0)


def directional_similarity(
    judge: TwoTower, pictures: Images, contents: Images, styles: Sequence[str], source: str
) -> Float[Tensor, " n"]:
    """cos(E(picture) - E(content), E(style) - E(source)) of the judge's unit embeddings, (N,) in [-1,1]; 0 for an
    unchanged picture. `source` is a text that describes the content images."""
    moved = embed(judge, pictures) - embed(judge, contents)
    texts = judge.embed_texts([source, *styles]).float().cpu()
    return F.cosine_similarity(moved, texts[1:] - texts[0], dim=1)


def content_similarity(judge: TwoTower, pictures: Images, contents: Images) -> Float[Tensor, " n"]:
    """Cosine of each picture with its content, (N,): 1 for the content itself."""
    return (embed(judge, pictures) * embed(judge, contents)).sum(1)


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
        message = f"{len(images)} pictures, {len(prompts)} prompts and {len(ids)} ids: give one each"
        raise UsageError(message, "unequal_lengths", pictures=len(images), prompts=len(prompts), ids=len(ids))
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
            "or leave r-precision out of the metrics",
            "too_few",
            candidates=count,
        )
    if count > texts:
        fewer = f"among fewer candidates, e.g. --candidates {texts}" if texts > 1 else "leave r-precision out"
        raise UsageError(
            f"R-Precision among {count} candidates needs {count} different prompts, and there are {texts}: "
            f"judge more prompts, or {fewer}",
            "too_few_prompts",
            candidates=count,
            prompts=texts,
        )
    return count


def _drawn(own: Int[Tensor, " b"], total: int, count: int, ids: Sequence[str], seed: int) -> Int[Tensor, "b k"]:
    """Indices of each picture's candidates among `total` texts: its own first, then count - 1 others."""
    others = [torch.randperm(total - 1, generator=stream)[: count - 1] for stream in each(seed, "candidates", ids=ids)]
    drawn = torch.stack(others)
    drawn += drawn >= own[:, None]  # skip the own index
    return torch.cat([own[:, None], drawn], dim=1)
