"""Cosine similarity and CLIPScore of pictures and prompts.

CLIPScore is 2.5 * max(cos, 0) with "A photo depicts " before the text (Hessel et al. 2021; their clipscore.py). Other
work reports the plain cosine, without prefix, under the same name (T2I-CompBench); here they are separate metrics. Both
use the judge's own preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustclip.data.pictures import Images
from robustclip.errors import UsageError
from robustclip.evaluation.generation.embeddings import embed
from robustclip.referees.base import TwoTower

PREFIX: Final = "A photo depicts "
SCALE: Final = 2.5


def cosine(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Cosine of each picture with its own text, in [-1,1]; both are unit embeddings."""
    if images.shape != texts.shape:
        raise UsageError(f"pictures {tuple(images.shape)} and texts {tuple(texts.shape)} are compared one by one")
    return (images * texts).sum(dim=1)


def clip_score(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Hessel's CLIPScore in [0, 2.5]; `texts` are embedded with `PREFIX` before the prompt."""
    return SCALE * cosine(images, texts).clamp(min=0)


def ref_clip_score(
    scores: Float[Tensor, " n"], texts: Float[Tensor, "n d"], references: Sequence[Float[Tensor, "r d"]]
) -> Float[Tensor, " n"]:
    """Hessel's RefCLIPScore: the harmonic mean of CLIPScore and of the nearest reference text's cosine, at least 0.

    `references` holds, for each picture, the unit embeddings of its reference captions, with `PREFIX` before each.
    """
    if not len(scores) == len(texts) == len(references):
        raise UsageError(f"{len(scores)} scores, {len(texts)} texts and {len(references)} references: give one each")
    nearest = torch.stack([(others @ text).max().clamp(min=0) for text, others in zip(texts, references, strict=True)])
    total = scores + nearest
    return torch.where(total > 0, 2 * scores * nearest / total, 0.0)


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
