"""Style transfer metrics by a held-out judge: directional similarity and content (CLIPStyler, StyleGAN-NADA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustclip.data.pictures import Images
from robustclip.evaluation.generation.embeddings import embed
from robustclip.referees.base import TwoTower


def directional_similarity(
    judge: TwoTower, pictures: Images, contents: Images, styles: Sequence[str], source: str
) -> Float[Tensor, " n"]:
    """cos(E(picture) - E(content), E(style) - E(source)) of the judge's unit embeddings, (N,) in [-1,1]: whether a
    picture moved the way its style's text says. 0 where it did not move. `source` says what the content is."""
    moved = embed(judge, pictures) - embed(judge, contents)
    texts = judge.embed_texts([source, *styles]).float().cpu()
    return F.cosine_similarity(moved, texts[1:] - texts[0], dim=1)


def content_similarity(judge: TwoTower, pictures: Images, contents: Images) -> Float[Tensor, " n"]:
    """Cosine of each picture with its content, (N,): 1 for the content itself."""
    return (embed(judge, pictures) * embed(judge, contents)).sum(1)
