"""The embedded emoji set: eight drawing styles of 1,631 concepts at 64x64, read from the shards of robustclip-emoji.

Splits (see DATA_CARD.md beside the shards):

- guide-styles: six styles, without the held-out concepts; what guides are trained on.
- unseen-styles: twemoji and openmoji, without the held-out concepts; what guides are measured on.
- unseen-train: the same images as unseen-styles, under the name by which the disjoint judge trains on them.
- heldout-concepts: all styles of the concepts that no referee is trained on.
- judge-train: all styles, without the held-out concepts and the images held back from the judge.
- judge-heldback: two images (one guide style, one unseen) of each of the judge's 200 labels.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from robustclip import embedded
from robustclip.data.labelled import LabelledImages, Labels
from robustclip.errors import RunError, UsageError

SPLITS = ("guide-styles", "unseen-styles", "unseen-train", "heldout-concepts", "judge-train", "judge-heldback")


@dataclass(frozen=True)
class Sample:
    """One drawing as it lies in its shard: WebP bytes with alpha, and its metadata."""

    id: str
    concept: str
    style: str
    captions: list[str]
    webp: bytes


@cache
def label_index() -> tuple[list[str], dict[str, int]]:
    """(names of all labels in their fixed order, {concept id: position})."""
    records = json.loads(embedded.path("emoji", "labels.json").read_text(encoding="utf-8"))
    return [record["label"] for record in records], {record["id"]: i for i, record in enumerate(records)}


@cache
def splits() -> dict[str, Any]:
    """Which styles and concepts are held out or held back, as DATA_CARD.md explains."""
    return json.loads(embedded.path("emoji", "splits.json").read_text(encoding="utf-8"))


def load_emoji(split: str, rows: Sequence[int] | None = None) -> LabelledImages:
    """The images of `split` on white, (N, 3, 64, 64) float32 in [0,1], with all that is known of them.

    N runs from 400 (judge-heldback) to about 11,000 (judge-train, half a gigabyte). `rows` are the numbers of those
    wanted, in the order wanted; others are not decoded.
    """
    rgba, labels = load_rgba(split, rows)
    images = torch.empty(len(rgba), 3, *rgba.shape[2:])
    for start in range(0, len(rgba), 1024):  # in parts: the whole in float with alpha would double the memory
        part = rgba[start : start + 1024].float() / 255
        colour, alpha = part[:, :3], part[:, 3:]
        images[start : start + 1024] = colour * alpha + (1 - alpha)
    return LabelledImages(images=images, **vars(labels))


def load_rgba(split: str, rows: Sequence[int] | None = None) -> tuple[UInt8[Tensor, "n 4 h w"], Labels]:
    """The drawings of `split` (or these `rows` of it) with their alpha, (N, 4, 64, 64) uint8, colours not
    premultiplied, for any background.

    Raises UsageError for a split that is not there, with the near name.
    """
    samples = list(_samples(split))
    if rows is not None:
        samples = [samples[row] for row in rows]
    pixels = np.empty((len(samples), 64, 64, 4), dtype=np.uint8)
    for row, sample in enumerate(samples):
        pixels[row] = np.asarray(Image.open(io.BytesIO(sample.webp)).convert("RGBA"))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), _labels(samples)


def load_labels(split: str) -> Labels:
    """What is known of the images of `split`, without decoding them."""
    return _labels(list(_samples(split)))


def _labels(samples: list[Sample]) -> Labels:
    names, index = label_index()
    return Labels(
        labels=torch.tensor([index[sample.concept] for sample in samples], dtype=torch.long),
        label_names=names,
        captions=[sample.captions for sample in samples],
        ids=[sample.id for sample in samples],
        styles=[sample.style for sample in samples],
    )


def _samples(split: str) -> Iterator[Sample]:
    if split not in SPLITS:
        near = get_close_matches(split, SPLITS, n=1, cutoff=0.4)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise UsageError(f'the emoji set has no split "{split}"{hint}; it has: {", ".join(SPLITS)}')
    known = splits()
    guide, unseen = known["guide_styles"], known["unseen_styles"]
    held_out = set(known["heldout_concepts"])
    held_back = {f"{concept}-{style}" for concept, styles in known["judge_heldback"].items() for style in styles}
    match split:
        case "guide-styles":
            styles = guide
        case "unseen-styles" | "unseen-train":
            styles = unseen
        case _:
            styles = [*guide, *unseen]
    for sample in chain.from_iterable(map(read_shard, styles)):
        match split:
            case "heldout-concepts":
                wanted = sample.concept in held_out
            case "judge-heldback":
                wanted = sample.id in held_back
            case "judge-train":
                wanted = sample.concept not in held_out and sample.id not in held_back
            case _:
                wanted = sample.concept not in held_out
        if wanted:
            yield sample


@cache
def read_shard(style: str) -> list[Sample]:
    """Samples of one style in the order of the shard. Kept, since splits share shards: 25 MB for all eight."""
    plain = io.BytesIO(gzip.decompress(embedded.path("emoji", f"emoji-{style}.tar.gz").read_bytes()))
    with tarfile.open(fileobj=plain) as tar:
        contents = {member.name: _content(tar, member) for member in tar}
    samples = []
    for name, content in contents.items():
        key, _, extension = name.partition(".")
        if extension == "json":
            record = json.loads(content)
            samples.append(Sample(key, record["concept"], record["style"], record["captions"], contents[f"{key}.webp"]))
    return samples


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise RunError(f"{member.name} in an embedded shard is no file; reinstall robustclip-emoji")
    return file.read()
