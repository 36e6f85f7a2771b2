"""Labelled images from files, whole in memory: an image folder, or a folder as clip_benchmark lays it out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip import rng
from robustclip.data.decoding import Skip, center_crop, decode, pixels
from robustclip.data.labelled import LabelledImages
from robustclip.data.shards import IMAGES, find_shards, read_members
from robustclip.data.tables import class_folders, read_lines
from robustclip.errors import RunError, UsageError

Size = int | tuple[int, int]


def labelled_from_folder(
    folder: str | os.PathLike[str], *, size: Size | None = None, limit: int | None = None, seed: int = 0
) -> LabelledImages:
    """Pictures in one folder a class; the caption of each is its class's name.

    Pictures are brought to `size` (height, width) as CLIP's evaluation transform does: the shorter side resized, the
    middle kept; None keeps theirs. `limit` takes that many, drawn by the seed, in their old order; a thousand at 224
    are 0.6 GB. Raises UsageError where the folder is none of this kind, RunError where a picture can't be used.
    """
    folder = Path(folder)
    classes = class_folders(folder)
    files = [(label, path) for label, (_, paths) in enumerate(classes) for path in paths]
    files = [files[place] for place in subset(len(files), limit, seed)]
    names = [name for name, _ in classes]
    ids = [path.relative_to(folder).as_posix() for _, path in files]
    return LabelledImages(
        images=decode_all(folder, [path for _, path in files], ids, size),
        labels=torch.tensor([label for label, _ in files]),
        label_names=names,
        captions=[[names[label]] for label, _ in files],
        ids=ids,
        styles=[folder.absolute().name] * len(files),
    )


def labelled_from_shards(
    folder: str | os.PathLike[str],
    *,
    split: str = "test",
    size: Size | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> LabelledImages:
    """clip_benchmark's layout: FOLDER/test/0.tar, 1.tar, ... (their number in nshards.txt) and FOLDER/classnames.txt.

    A sample has a picture and a .cls member, the index of its class name. In a retrieval set (dataset_type.txt says so)
    it has a .txt member instead, one caption a line; there every image is a label of its own, named by its first
    caption. The rest is as in `labelled_from_folder`.
    """
    folder = Path(folder)
    kind_file = folder / "dataset_type.txt"
    retrieval = kind_file.is_file() and read_lines(kind_file) == ["retrieval"]
    ending = "txt" if retrieval else "cls"
    found: list[dict[str, bytes]] = []
    errors: list[Exception] = []
    for shard in find_shards(numbered_shards(folder / split)):
        found.extend(read_members(shard, (*IMAGES, ending), errors))
        if errors:
            raise RunError(f"{shard} is not a whole tar file: {errors[0]}")
    samples = [found[place] for place in subset(len(found), limit, seed)]
    ids = [str(sample["__key__"]) for sample in samples]
    for key, sample in zip(ids, samples, strict=True):
        if ending not in sample or not any(image in sample for image in IMAGES):
            raise RunError(f"{folder / split}: sample {key} needs a picture and a .{ending} member")
    texts = [text_of(sample[ending], f"{key}.{ending}") for key, sample in zip(ids, samples, strict=True)]
    if retrieval:
        captions = [text.splitlines() for text in texts]
        labels, names = list(range(len(texts))), [own[0] for own in captions]
    else:
        names = read_lines(folder / "classnames.txt")
        labels = [label_of(text, key, names) for key, text in zip(ids, texts, strict=True)]
        captions = [[names[label]] for label in labels]
    pictures = [next(sample[image] for image in IMAGES if image in sample) for sample in samples]
    return LabelledImages(
        images=decode_all(folder, pictures, ids, size),
        labels=torch.tensor(labels),
        label_names=names,
        captions=captions,
        ids=ids,
        styles=[folder.absolute().name] * len(ids),
    )


def numbered_shards(folder: Path) -> list[Path]:
    """0.tar, 1.tar, ... as nshards.txt counts them; all shards of the folder where there is no such file."""
    listed = folder / "nshards.txt"
    if not listed.is_file():
        return [folder]
    lines = read_lines(listed)
    if len(lines) != 1 or not lines[0].isdecimal() or not 0 < int(lines[0]) <= 1_000_000:
        raise UsageError(f"{listed} must hold one number, that of the shards, not {' '.join(lines)!r}")
    return [folder / f"{number}.tar" for number in range(int(lines[0]))]


def text_of(member: bytes, name: str) -> str:
    try:
        text = member.decode().strip()
    except UnicodeDecodeError as error:
        raise RunError(f"{name} is not in UTF-8") from error
    if not text:
        raise RunError(f"{name} is empty")
    return text


def label_of(text: str, key: str, names: Sequence[str]) -> int:
    if not text.isdecimal() or int(text) >= len(names):
        raise RunError(f"{key}.cls is {text!r}: it must be a number below {len(names)}, the number of class names")
    return int(text)


def subset(count: int, limit: int | None, seed: int) -> list[int]:
    """Which of `count` to take: all, or `limit` of them drawn by the seed, in ascending order."""
    if count == 0:
        raise RunError("empty data: there are no samples")
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise UsageError(f"limit {limit}: give at least 1")
    return torch.randperm(count, generator=rng.generator(seed, "subset"))[:limit].sort().values.tolist()


def decode_all(
    folder: Path, pictures: Sequence[bytes | Path], ids: Sequence[str], size: Size | None
) -> Float[Tensor, "n 3 h w"]:
    """All pictures on white, in [0, 1]. A measurement must not lose some quietly, so a single bad one raises RunError,
    with the count of each kind; without a `size`, UsageError where theirs differ."""
    shape = (size, size) if isinstance(size, int) else size
    images: list[Tensor] = []
    bad: dict[str, list[str]] = {}
    for encoded, key in zip(pictures, ids, strict=True):
        try:
            picture = decode(encoded)
            images.append(pixels(picture if shape is None else center_crop(picture, shape)))
        except Skip as skip:
            bad.setdefault(skip.fault.value, []).append(key)
    if bad:
        kinds = "; ".join(f"{len(keys)} {kind} (first: {keys[0]})" for kind, keys in bad.items())
        raise RunError(f"{folder}: of {len(pictures)} pictures, {kinds}. Take them out to measure on the rest")
    if len({image.shape for image in images}) > 1:
        raise UsageError(f"the pictures of {folder} differ in size: give one, e.g. size=224")
    return torch.stack(images).float().div_(255)
