"""Read pictures for a mixture, resized one by one to bound memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustclip.data import load_split
from robustclip.data.folders import find_pictures
from robustclip.data.images import decode, from_pil, resize
from robustclip.data.samples import Sample
from robustclip.data.shard_lists import SUFFIXES, shards_in
from robustclip.data.shards import ShardSource
from robustclip.errors import Fault, RunError, Skip, UsageError
from robustclip.evaluation.examples import Pictures, Stored, fit, read_examples
from robustclip.runs import rng
from robustclip.runs.files import is_folder
from robustclip.runs.progress import TrainingProgress

T = TypeVar("T")
AT_ONCE = 256  # pictures decoded by the threads before the next are begun
SHOW_DATA = (
    "give emoji/SPLIT, a folder of images, one with a sub-folder a class, or webdataset shards "
    "('cc3m/{00000..00331}.tar', or their folder)"
)


class Encoded(NamedTuple):
    """A picture not yet decoded: `decode` gives it, or raises Skip or RunError; `label` is its class, -1 for none."""

    decode: Callable[[], Float[Tensor, "3 h w"]]
    label: int


@dataclass(frozen=True)
class Small:
    """N pictures in [0,1] at `images.shape[-2:]`, and their classes: all -1, and no names, where the data has none.

    `skipped` counts the pictures that could not be read, by what was wrong with them.
    """

    images: Float[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    class_names: list[str]
    skipped: Counter[str]


def read_small(data: str | os.PathLike[str], size: int, *, limit: int | None = None, seed: int = 0) -> Small:
    """The pictures of `data` at size x size: resized (bicubic, antialiased) so that the middle square fills it.

    `data` is emoji/SPLIT, a folder of images or of class sub-folders, clip_benchmark's webdataset folder, or shards (as
    a folder, a brace list or a pattern), whose classes are their samples' `concept`. Transparent parts are laid on
    white; broken pictures are counted and left out. `limit` takes that many pictures, drawn by the seed (of shards: the
    first that many). Raises UsageError where there is no such data.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: give at least 1, or leave it out")
    text = os.fspath(data)
    if text.startswith("emoji/") and not text.endswith(SUFFIXES) and not is_folder(text):
        return _split(text, size, limit, seed)
    if is_folder(text):
        folder = Path(text)
        if shards_in(folder) and not _labelled(folder):
            return _shards(text, size, limit)
        pictures = find_pictures(folder).pictures
        if any(path.parent == folder for path in pictures):  # a plain folder: all that lies in it and below
            return _small([Encoded(Stored(path).image, -1) for path in _some(pictures, limit, seed)], size, [])
        examples = read_examples(folder, size=size, limit=limit, seed=seed)
        assert isinstance(examples.images, Pictures)
        labels = examples.labels.tolist() or [-1] * len(examples)
        encoded = [Encoded(one.image, label) for one, label in zip(examples.images.pictures, labels, strict=True)]
        return _small(encoded, size, examples.label_names)
    if text.endswith(SUFFIXES) or any(sign in text for sign in "{*?"):
        return _shards(text, size, limit)
    raise UsageError(f"no data at {text[:200]!r}: {SHOW_DATA}")


def _split(name: str, size: int, limit: int | None, seed: int) -> Small:
    dataset, part = name.split("/", 1)
    split = load_split(dataset, part)
    rows = torch.tensor(_some(range(len(split)), limit, seed))
    parts = [resize(split.images[part], size) for part in rows.split(AT_ONCE)]
    return Small(torch.cat(parts), split.labels[rows], split.label_names, Counter())


def _labelled(folder: Path) -> bool:
    """Whether shards have a `.cls` that counts the lines of a classnames.txt, as clip_benchmark's do."""
    return any((place / "classnames.txt").is_file() for place in (folder, folder.parent))


def _some(things: Sequence[T], limit: int | None, seed: int) -> list[T]:
    if limit is None or limit >= len(things):
        return list(things)
    drawn = torch.randperm(len(things), generator=rng.generator(seed, "subset"))[:limit].sort().values
    return [things[place] for place in drawn.tolist()]


def _shards(pattern: str, size: int, limit: int | None) -> Small:
    """Shards are read front to back. Samples without a caption or a concept are as good as any: only pixels count."""
    source = ShardSource(pattern)
    names: dict[str, int] = {}

    def encoded() -> Iterator[Encoded]:
        for shard in source.shards:
            for sample in source.read(shard):
                label = -1 if sample.concept is None else names.setdefault(sample.concept, len(names))
                yield Encoded(lambda sample=sample: _decoded(sample), label)  # type: ignore[misc]  # a default binds it

    total = limit or sum(1 for shard in source.shards for _ in source.read(shard))
    small = _small(encoded(), size, [], total=total, limit=limit)
    return Small(small.images, small.labels, list(names), small.skipped)


def _decoded(sample: Sample) -> Float[Tensor, "3 h w"]:
    if sample.fault not in (None, Fault.NO_CAPTION):
        raise Skip(sample.fault)
    return from_pil(decode(sample.image))


def _small(
    pictures: Sequence[Encoded] | Iterator[Encoded],
    size: int,
    class_names: list[str],
    *,
    total: int | None = None,
    limit: int | None = None,
) -> Small:
    images: list[Tensor] = []
    labels: list[int] = []
    skipped: Counter[str] = Counter()
    total = len(pictures) if isinstance(pictures, Sequence) else total or 0
    batches, waiting = -(-total // AT_ONCE), iter(pictures)
    with TrainingProgress(total=batches, title="pictures") as progress, ThreadPoolExecutor() as pool:
        while batch := list(islice(waiting, AT_ONCE)):
            for one, found in zip(batch, pool.map(lambda one: _made_small(one, size), batch), strict=True):
                if isinstance(found, Tensor):
                    images.append(found)
                    labels.append(one.label)
                else:
                    skipped[found] += 1
            progress.advance(images=len(batch))
            if limit is not None and len(images) >= limit:
                break
    kept = torch.stack(images[:limit]) if images else torch.empty(0, 3, size, size)
    return Small(kept, torch.tensor(labels[:limit], dtype=torch.long), class_names, skipped)


def _made_small(picture: Encoded, size: int) -> Float[Tensor, "3 h w"] | str:
    try:
        return fit(picture.decode(), (size, size))
    except Skip as error:
        return str(error.fault)
    except (RunError, UsageError) as error:  # of a Stored file
        return str(error.__cause__ or "unreadable or too long")
