"""Batched cosine similarities of images and texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from robustclip.data.pictures import Images
from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.runs.devices import autocast
from robustclip.runs.files import is_file, read_lines
from robustclip.runs.progress import watched
from robustclip.runs.terminal import counted


def cosines(
    referee: TwoTower, images: Float[Tensor, "b 3 h w"], texts: Float[Tensor, "t d"], dtype: torch.dtype
) -> Float[Tensor, "b t"]:
    """Cosine of each image with each unit vector of `texts`; differentiable with respect to the images.

    The tower computes in `dtype`; normalisation and cosines are in float32, since bfloat16's precision would cause ties
    among many labels.
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
    """Cosines of all images with all texts, on the CPU."""
    rows = [
        cosines(referee, images[batch].to(texts.device), texts, dtype).cpu()
        for batch in batches(torch.arange(len(images)), batch_size, title)
    ]
    return torch.cat(rows)


@torch.no_grad()
def embed_images(
    referee: TwoTower, images: Images, *, batch_size: int, dtype: torch.dtype = torch.float32, title: str = ""
) -> Float[Tensor, "n d"]:
    """Unit vectors of all images in float32, on the CPU; the tower computes in `dtype`."""
    rows = []
    for batch in batches(torch.arange(len(images)), batch_size, title):
        with autocast(referee.device, dtype):
            embeddings = referee.embed_images(images[batch].to(referee.device), normalize=False)
        rows.append(F.normalize(embeddings.float(), dim=-1).cpu())
    return torch.cat(rows) if rows else torch.empty(0, referee.width)


def batches(indices: Int[Tensor, " n"], batch_size: int, title: str = "") -> Iterator[Int[Tensor, " b"]]:
    """Split indices into batches; with a title under a progress bar, or one line without a terminal."""
    parts: Sequence[Tensor] = indices.split(batch_size) if len(indices) else ()
    yield from watched(parts, title and f"{title}: {counted(len(indices), 'image')}", title)


TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "emoji": ("{}", "an emoji of {}", "{}, a small colourful drawing"),  # ours
    "photo": ("a photo of a {}.",),  # Radford et al. 2021, the default prompt
    # Seven of ImageNet's 80, selected in the notebook of Radford et al. 2021.
    "openai-simple": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}

TEXTS_AT_ONCE = 256
BANKS, BANK = 4, 10_000  # number of cached banks of texts, and of texts in the largest (15 MB at width 384)
_banks: dict[str, Float[Tensor, "t d"]] = {}


def resolve_templates(name: str | Path | Sequence[str]) -> tuple[str, ...]:
    """The templates called `name`, or those of a text file, one per line, or a list of templates.

    `{c}` counts as `{}`, as in clip_benchmark's zeroshot_classification_templates.txt.
    Raises UsageError for an unknown name, an empty list, or a template without exactly one place for the label.
    """
    if isinstance(name, str) and name in TEMPLATES:
        return TEMPLATES[name]
    if isinstance(name, str | Path):
        if not is_file(name):
            message = f"unknown templates {str(name)[:100]!r}: use {', '.join(TEMPLATES)}, or a text file of templates"
            raise UsageError(message, "unknown_templates", given=str(name))
        lines: Sequence[str] = [line for line in read_lines(name) if line]
    else:
        lines = name
    templates = tuple(line.strip().replace("{c}", "{}") for line in lines)
    if not templates:
        raise UsageError(f"no templates in {str(name)!r}: give at least one, e.g. 'a photo of a {{}}.'", "no_templates")
    for template in templates:
        if template.count("{}") != 1:
            message = f"the template {template[:100]!r} needs exactly one {{}} where the label goes"
            raise UsageError(message, "not_a_template", given=template)
    return templates


@torch.no_grad()
def class_embeddings(
    referee: TwoTower, label_names: Sequence[str], templates: Sequence[str] = ("{}",)
) -> Float[Tensor, "c d"]:
    """One unit vector per label, on the referee's device: the normalised mean over its templates' unit vectors."""
    texts = [template.replace("{}", label) for label in label_names for template in templates]
    embeddings = embed_texts(referee, texts).view(len(label_names), len(templates), -1)
    return F.normalize(embeddings.mean(1), dim=-1)


@torch.no_grad()
def embed_texts(referee: TwoTower, texts: Sequence[str]) -> Float[Tensor, "t d"]:
    """Unit vectors of texts in float32, computed in batches.

    Large banks of texts are cached per process for all referees with the same installed encoder.
    """
    key = _bank(referee, texts)
    if key is not None and key in _banks:
        _banks[key] = _banks.pop(key)  # move to the end: least recently used is evicted first
        return _banks[key].clone()
    parts = [
        referee.embed_texts(list(texts[start : start + TEXTS_AT_ONCE])).float()
        for start in range(0, len(texts), TEXTS_AT_ONCE)
    ]
    embeddings = torch.cat(parts)
    if key is not None:
        _banks[key] = embeddings.clone()
        if len(_banks) > BANKS:
            del _banks[next(iter(_banks))]
    return embeddings


def _bank(referee: TwoTower, texts: Sequence[str]) -> str | None:
    """Cache key of the embeddings of many texts; None for few texts, and for towers that are not loaded by name."""
    tower = referee.text_tower
    cast = torch.is_autocast_enabled(referee.device.type)
    if not TEXTS_AT_ONCE <= len(texts) <= BANK or cast or tower.source() is None:
        return None
    content = hashlib.sha256(repr((type(tower), tower.source(), tower.context, referee.device)).encode())
    for name, value in tower.state_dict().items():
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    content.update(repr(list(texts)).encode())
    return content.hexdigest()
