"""Batched cosine similarities of images and texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from robustclip.referees.base import TwoTower
from robustclip.runs.devices import autocast
from robustclip.runs.progress import watched
from robustclip.runs.terminal import counted


class Images(Protocol):
    """Something to take images from by their indices: a (N,3,H,W) tensor, or a folder that decodes when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...


def cosines(
    referee: TwoTower, images: Float[Tensor, "b 3 h w"], texts: Float[Tensor, "t d"], dtype: torch.dtype
) -> Float[Tensor, "b t"]:
    """Cosine of each image with each unit vector of `texts`; differentiable with respect to the images.

    The tower computes in `dtype`; normalisation and cosines are float32 even then: bfloat16 has three digits, in which
    a thousand labels tie.
    """
    with autocast(images.device, dtype):
        embeddings = referee.embed_images(images, normalize=False)
    return F.normalize(embeddings.float(), dim=-1) @ texts.T


@torch.no_grad()
def all_cosines(
    referee: TwoTower,
    images: Images,
    texts: Float[Tensor, "t d"],
    *,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> Float[Tensor, "n t"]:
    """Cosines of all images with all texts, gathered on the CPU."""
    found = [
        cosines(referee, images[batch].to(texts.device), texts, dtype).cpu()
        for batch in batches(torch.arange(len(images)), batch_size, title)
    ]
    return torch.cat(found)


def batches(indices: Int[Tensor, " n"], batch_size: int, title: str = "") -> Iterator[Int[Tensor, " b"]]:
    """The indices, `batch_size` at a time; with a title under a progress bar, or one line without a terminal."""
    parts: Sequence[Tensor] = indices.split(batch_size) if len(indices) else ()
    yield from watched(parts, title and f"{title}: {counted(len(indices), 'image')}", title)
