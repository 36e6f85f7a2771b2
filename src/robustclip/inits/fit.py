"""`robustclip mixture fit DATA --out FILE`: fit a Gaussian mixture on pictures, as an init."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from robustclip.data import load_split
from robustclip.data.examples import read_examples
from robustclip.data.folders import find_pictures
from robustclip.data.images import decode, from_pil, resize
from robustclip.data.pictures import Pictures, Stored, draw_subset, resize_and_crop
from robustclip.data.samples import Sample
from robustclip.data.shards import SUFFIXES, ShardSource, shards_in
from robustclip.errors import Fault, RunError, Skip, UsageError, faults_of
from robustclip.inits.mixture import RIDGE, check_installed, fit_classes, fit_components
from robustclip.inits.mixture_file import LARGEST_SIDE, SUFFIX, Precision, save_mixture
from robustclip.runs.files import check_new_file, is_folder
from robustclip.runs.progress import TrainingProgress
from robustclip.signatures import typed

AT_ONCE = 256  # pictures per batch of decoding threads
SHOW_DATA = (
    "give emoji/SPLIT, a folder of images, one with a sub-folder a class, or webdataset shards "
    "('cc3m/{00000..00331}.tar', or their folder)"
)


class Encoded(NamedTuple):
    """An undecoded picture: `decode` returns it, or raises Skip or RunError; `label` is its class, -1 for none."""

    decode: Callable[[], Float[Tensor, "3 h w"]]
    label: int


@dataclass(frozen=True)
class Small:
    """N pictures in [0,1] at `images.shape[-2:]`, and their classes: all -1 without names if the data has none.

    `skipped` counts unreadable pictures by fault.
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
    first that many). Raises UsageError for missing data.
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"limit {limit}: give at least 1, or leave it out", "out_of_range", argument="limit", given=limit
        )
    text = os.fspath(data)
    if text.startswith("emoji/") and not text.endswith(SUFFIXES) and not is_folder(text):
        return _split(text, size, limit, seed)
    if is_folder(text):
        folder = Path(text)
        if shards_in(folder) and not _labelled(folder):
            return _shards(text, size, limit)
        pictures = find_pictures(folder).pictures
        if any(path.parent == folder for path in pictures):  # a plain folder, with its sub-folders
            return _small([Encoded(Stored(path).image, -1) for path in draw_subset(pictures, limit, seed)], size, [])
        examples = read_examples(folder, size=size, limit=limit, seed=seed)
        assert isinstance(examples.images, Pictures)
        labels = examples.labels.tolist() or [-1] * len(examples)
        encoded = [Encoded(one.image, label) for one, label in zip(examples.images.pictures, labels, strict=True)]
        return _small(encoded, size, examples.label_names)
    if text.endswith(SUFFIXES) or any(sign in text for sign in "{*?"):
        return _shards(text, size, limit)
    raise UsageError(f"no data at {text[:200]!r}: {SHOW_DATA}", "no_data", data=text)


def _split(name: str, size: int, limit: int | None, seed: int) -> Small:
    dataset, part = name.split("/", 1)
    split = load_split(dataset, part)
    rows = torch.tensor(draw_subset(range(len(split)), limit, seed))
    parts = [resize(split.images[part], size) for part in rows.split(AT_ONCE)]
    return Small(torch.cat(parts), split.labels[rows], split.label_names, Counter())


def _labelled(folder: Path) -> bool:
    """Whether shards have a `.cls` that counts the lines of a classnames.txt, as clip_benchmark's do."""
    return any((place / "classnames.txt").is_file() for place in (folder, folder.parent))


def _shards(pattern: str, size: int, limit: int | None) -> Small:
    """Read shards in order; samples need neither caption nor concept."""
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
            for one, made in zip(batch, pool.map(lambda one: _made_small(one, size), batch), strict=True):
                if isinstance(made, Tensor):
                    images.append(made)
                    labels.append(one.label)
                else:
                    skipped[made] += 1
            progress.advance(images=len(batch))
            if limit is not None and len(images) >= limit:
                break
    kept = torch.stack(images[:limit]) if images else torch.empty(0, 3, size, size)
    return Small(kept, torch.tensor(labels[:limit], dtype=torch.long), class_names, skipped)


def _made_small(picture: Encoded, size: int) -> Float[Tensor, "3 h w"] | str:
    try:
        return resize_and_crop(picture.decode(), (size, size))
    except Skip as error:
        return str(error.fault)
    except (RunError, UsageError) as error:  # of a Stored file
        return str(error.__cause__ or "unreadable or too long")


@typed
def fit(
    data: Annotated[str, "emoji/SPLIT, a folder of images or of class sub-folders, or webdataset shards"],
    *,
    out: Annotated[str | os.PathLike[str], "the .safetensors file to write"],
    size: Annotated[int, "height and width of the Gaussians, in pixels", Field(ge=1, le=LARGEST_SIDE)] = 16,
    components: Annotated[
        Literal["classes"] | PositiveInt, "classes: one Gaussian per class; or a number of k-means clusters"
    ] = "classes",
    limit: Annotated[int | None, "maximum number of pictures"] = None,
    seed: int = 0,
    ridge: Annotated[float, "ridge added to every variance, for pixels in [-1, 1]", Field(gt=0, le=1)] = RIDGE,
    directions: Annotated[PositiveInt | None, "number of principal components to keep; default: all"] = None,
    precision: Annotated[Precision, "bits per number: 32, 16 or 8"] = "half",
    notes: Annotated[str, "note stored in the file, e.g. the licence of the pictures"] = "",
    overwrite: bool = False,  # noqa: ARG001  (see `faults`)
) -> dict[str, Any]:
    """Fit Gaussians on resized pictures, and write them to a file for `--init`.

    Pictures are centre-cropped and resized to size x size; transparency is composited over white, broken pictures are
    counted and skipped. One Gaussian per class, as in CLIPAG (App. A.3), or per k-means cluster.

    Returns images, skipped (counts by fault), gaussians, size, directions, bytes and out. Raises UsageError for all
    faults of the call, before data is read; RunError if no picture could be read.
    """
    small = read_small(data, size, limit=limit, seed=seed)
    if not len(small.images):
        message = f"none of the {small.skipped.total()} pictures of {data} could be read: {_faults(small.skipped)}"
        raise RunError(message, "no_pictures", skipped=dict(small.skipped))
    if components == "classes":
        if not small.class_names or int(small.labels.min()) < 0:
            raise UsageError(
                f"{data} has no classes, or pictures without one: give a number of components, e.g. --components 20",
                "no_classes",
                data=data,
            )
        mixture = fit_classes(small.images, small.labels, small.class_names, ridge=ridge, directions=directions)
    else:
        mixture = fit_components(small.images, components, ridge=ridge, directions=directions, seed=seed)
    about = {"data": os.fspath(data), "images": str(len(small.images)), "components": str(components)}
    save_mixture(mixture, out, precision=precision, notes=about | ({"notes": notes} if notes else {}))
    return {
        "images": len(small.images),
        "skipped": dict(small.skipped),
        "gaussians": len(mixture),
        "size": size,
        "directions": mixture.means.shape[1],
        "bytes": Path(out).stat().st_size,
        "out": str(out),
    }


def faults(out: str | os.PathLike[str], components: str | int, overwrite: bool) -> Iterator[UsageError]:
    """Faults of a call of `fit` that can be found before reading data."""
    if Path(out).suffix != SUFFIX:
        yield UsageError(f"--out {out}: a mixture is a {SUFFIX} file", "other_suffix", out=out)
    yield from faults_of([check_installed] if components != "classes" else [])
    yield from faults_of([partial(check_new_file, out, overwrite=overwrite)])


def _faults(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count} x {fault}" for fault, count in skipped.items()) or "there are none"
