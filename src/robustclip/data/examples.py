"""Evaluation data: images with labels, captions or both, from the embedded set or a folder.

Images of a folder are decoded per batch, so that a set need not fit into memory.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from robustclip.data import load_split
from robustclip.data.emoji import load_labels
from robustclip.data.folders import NAMES, caption_lines, class_names, read_folder
from robustclip.data.images import BROKEN_METADATA
from robustclip.data.images import ENDINGS as PICTURES
from robustclip.data.pictures import Images, Pictures, Stored, draw_subset
from robustclip.data.scenes import SCENES, compose_scenes
from robustclip.data.shards import SUFFIX, not_shards, shards_in
from robustclip.data.tars import (
    EXPANSION,
    GZIP,
    MAX_MEMBER,
    StrictHeader,
    belongs_to_another,
    is_hidden,
    parents,
    split_name,
)
from robustclip.errors import RunError, UsageError
from robustclip.runs.files import is_folder, read_lines

SHOW_DATA = (
    "give emoji/SPLIT, icons/SPLIT, emoji/scenes, a folder with one sub-folder of images a class, a clip_benchmark "
    "webdataset folder (test/*.tar beside classnames.txt), or wds/NAME, one of clip_benchmark's on the Hugging Face hub"
)
WDS = re.compile(r"wds/(\w[\w.-]*(/\w[\w.-]*)*)", re.ASCII)
"""clip_benchmark's names of webdataset data sets: wds/imagenet1k, wds/vtab/cifar10."""
TEMPLATES_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class Examples:
    """N images of `size` (height, width) in [0,1], with labels, captions or boxes.

    `label_names` are all labels of the set, and `labels` (N,) indices into them; both empty if the set has none.
    `captions` holds a list per image; empty if the set has none. `templates` are those of the set, if any. `boxes`
    (top, left, bottom, right; half-open pixels) locate the objects of the first captions, in sets with boxes. `choices`
    are a nearer and a farther image to each image, in sets of triplets (NIGHTS).
    `reported` lists what was read, and what was left out.
    """

    name: str
    images: Images
    size: tuple[int, int]
    ids: list[str]
    labels: Int[Tensor, " n"]
    label_names: list[str]
    captions: list[list[str]]
    templates: tuple[str, ...] = ()
    boxes: Int[Tensor, "n 4"] | None = None
    reported: tuple[str, ...] = ()
    choices: tuple[Images, Images] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def odd_pictures(examples: Examples) -> Iterator[str]:
    """Note with the number of decoded pictures with unreadable metadata."""
    images = examples.images
    if isinstance(images, Pictures) and images.odd:
        yield f"{len(images.odd)} pictures have {BROKEN_METADATA}, e.g. {examples.ids[min(images.odd)]}"


def read_examples(
    data: str | Path, *, size: int | tuple[int, int] | None = None, limit: int | None = None, seed: int = 0
) -> Examples:
    """Read evaluation data: `emoji/SPLIT`, `icons/SPLIT`, a folder of class folders, a clip_benchmark webdataset
    folder, or `wds/NAME`: the test split of clip_benchmark's data set of that name, from the hub's cache or the hub.

    `size`: images of a folder are resized and cropped to it; None keeps their own, if they all have the same. `limit`:
    a random subset, drawn by the seed, in the original order. Raises UsageError if there is no such data, if it is
    empty, or if a size is missing or not applicable; RunError if the hub is out of reach.
    """
    folder = Path(data)
    if str(data) and is_folder(folder):
        shards = _shards_of(folder)
        examples = _read_shards(folder, shards) if shards else _read_folder(folder)
    elif wds := WDS.fullmatch(str(data)):
        folder = _fetched(wds[1])
        examples = replace(_read_shards(folder, _shards_of(folder)), name=wds[0])
    elif data == SCENES:
        examples = _read_scenes()
    elif isinstance(data, str) and data.startswith(("emoji/", "icons/")):
        examples = _read_split(data, limit, seed)
    else:
        raise UsageError(f"no data at {str(data)[:200]!r}: {SHOW_DATA}", "no_data", data=str(data))
    if len(examples) == 0:
        raise UsageError(f"the data at {str(data)!r} is empty: {SHOW_DATA}", "no_data", data=str(data))
    return _sized(_subset(examples, limit, seed), size)


def _fetched(name: str) -> Path:
    """The folder of a data set of clip_benchmark, with all shards that its test/nshards.txt counts. Raises RunError
    where the hub is out of reach and the cache has fewer."""
    from robustclip.runs.hub import data_set_folder  # here, since its import is slow

    repository = f"clip-benchmark/wds_{name.replace('/', '-')}"
    otherwise = "download it elsewhere, and give its folder (test/*.tar beside classnames.txt)"
    folder = data_set_folder(repository, ("test/*", NAMES, TEMPLATES_FILE), otherwise)
    counted = folder / "test" / "nshards.txt"
    text = counted.read_text().strip() if counted.is_file() else ""
    if not text.isdecimal():
        raise UsageError(f"{repository} has no test/nshards.txt: it is not in clip_benchmark's layout", "not_wds")
    missing = [shard for number in range(int(text)) if not (folder / (shard := f"test/{number}.tar")).is_file()]
    if missing:
        raise RunError(
            f"the cache has {int(text) - len(missing)} of the {text} shards of {repository} ({missing[0]} is missing): "
            f"run once where there is a network, or {otherwise}",
            "unreachable",
            missing=missing,
        )
    return folder


def _read_scenes() -> Examples:
    """Scenes of emoji in unseen styles: no labels, one caption each, and the box of its object."""
    scenes = compose_scenes()
    images = torch.stack([scene.image for scene in scenes])
    captions, boxes = [[scene.text] for scene in scenes], torch.tensor([scene.box for scene in scenes])
    height, width = images.shape[-2:]
    nothing = torch.empty(0, dtype=torch.long)
    ids = [scene.id for scene in scenes]
    return Examples(SCENES, images, (height, width), ids, nothing, [], captions, boxes=boxes)


def _read_split(data: str, limit: int | None, seed: int) -> Examples:
    """The images of a split; with `limit` only the drawn ones are decoded."""
    dataset, _, name = data.partition("/")
    rows = None if limit is None else draw_subset(range(len(load_labels(name, dataset))), limit, seed)
    split = load_split(dataset, name, rows)
    height, width = split.images.shape[-2:]
    return Examples(data, split.images, (height, width), split.ids, split.labels, split.label_names, split.captions)


def _read_folder(folder: Path) -> Examples:
    """Class folders, or pictures with captions beside them: the layouts of training."""
    content = read_folder(folder)
    examples = _from_pictures(
        folder,
        [Stored(path) for path in content.pictures],
        ids=content.ids(),
        labels=content.labels,
        label_names=content.names,
        captions=[caption_lines(path) for path in content.pictures] if content.layout == "pairs" else [],
        templates=_templates(folder),
    )
    return replace(examples, reported=(content.reported, *content.left_out))


def _templates(folder: Path) -> list[str]:
    return [line for line in _lines(folder / TEMPLATES_FILE) if line]


def _shards_of(folder: Path) -> list[Path]:
    return shards_in(folder) or (shards_in(folder / "test") if is_folder(folder / "test") else [])


def _members(shard: Path) -> Iterator[tuple[str, Stored]]:
    """Names and offsets of a tar file's members; members of a compressed tar are read into memory.

    Raises UsageError for an archive that is damaged, claims more than it holds, or has links or devices: training skips
    such members, but a measurement must not.
    """
    if not shard.is_file():
        raise UsageError(f"{shard} is not a file")
    try:
        with shard.open("rb") as file:
            packed = file.read(2) == GZIP
        limit = shard.stat().st_size * (EXPANSION if packed else 1)
        with tarfile.open(shard, "r:gz" if packed else "r:", tarinfo=StrictHeader) as tar:
            for member in tar:
                if member.size > MAX_MEMBER or member.offset_data + member.size > limit:
                    raise UsageError(f"{shard} is refused: {member.name!r} claims {member.size} bytes")
                if member.isreg() and not member.issparse():
                    file_in_tar = tar.extractfile(member)
                    content = file_in_tar.read() if packed and file_in_tar else None
                    yield member.name, Stored(shard, member.offset_data, member.size, content)
                elif not member.isdir():
                    raise UsageError(f"{shard} is refused: {member.name!r} is a link or a device, not a file")
    except (tarfile.TarError, zlib.error, EOFError, OSError, RecursionError) as error:
        raise UsageError(f"{shard} is not a whole tar file: {error}", "not_a_tar", path=shard) from error


def _read_shards(folder: Path, shards: Sequence[Path]) -> Examples:
    """clip_benchmark's layout: FOLDER/test/*.tar beside classnames.txt; or FOLDER/*.tar, the names there or above."""
    root = folder if shards[0].parent != folder or (folder / "classnames.txt").is_file() else folder.parent
    samples: dict[str, dict[str, Stored]] = {}
    passed: list[str] = []
    for shard in shards:
        for name, stored in _members(shard):
            key, ending, _ = split_name(name)
            if is_hidden(name):
                passed.append(name)
                continue
            sample = samples.setdefault(f"{SUFFIX.sub('', shard.name)}/{key}", {})
            if ending in sample:
                raise UsageError(f"{shard} has {name!r} twice: remove one of them")
            sample[ending] = stored

    pictures: dict[str, Stored] = {}
    for key, sample in samples.items():
        images = [sample[end] for end in PICTURES if end in sample]
        annotated = {"cls", "txt"} & sample.keys()
        if images and (annotated or not any(other in samples for other in parents(key))):
            pictures[key] = images[0]
        elif annotated and not belongs_to_another(key, sample, samples):
            message = f"{folder}: the sample {key} has a label or a caption and no picture ({', '.join(sample)})"
            raise UsageError(message, "no_picture", sample=key)
        else:
            passed.append(key)
    labels = [samples[key]["cls"].number() for key in pictures if "cls" in samples[key]]
    captions = [_captions(samples[key]["txt"]) for key in pictures if "txt" in samples[key]]
    for what, given in (("label (.cls)", labels), ("caption (.txt)", captions)):
        if given and len(given) != len(pictures):
            message = f"{folder}: {len(given)} of {len(pictures)} images have a {what}: give it to all or none"
            raise UsageError(message, "unequal_counts", given=len(given), pictures=len(pictures))
    examples = _from_pictures(
        folder,
        list(pictures.values()),
        ids=list(pictures),
        labels=labels,
        label_names=class_names(root / NAMES),
        captions=captions,
        templates=_templates(root),
    )
    reported = [f"{len(pictures):,} pictures of {len(shards):,} shards", *not_shards(shards[0].parent)]
    if passed:
        reported.append(f"{len(passed):,} members that belong to no sample left out ({', '.join(passed[:3])})")
    return replace(examples, reported=tuple(reported))


def _from_pictures(
    folder: Path,
    pictures: list[Stored],
    *,
    ids: list[str],
    labels: list[int],
    label_names: list[str],
    captions: list[list[str]],
    templates: Sequence[str] = (),
) -> Examples:
    if labels and not max(labels) < len(label_names):
        message = f"{folder}: labels up to {max(labels)} need {max(labels) + 1} names, {len(label_names)} are there"
        raise UsageError(message, "too_few_names", labels=max(labels) + 1, names=len(label_names))
    return Examples(
        folder.as_posix(),
        Pictures(pictures, (0, 0)),  # sized once the subset is known
        (0, 0),
        ids,
        torch.tensor(labels, dtype=torch.long),
        label_names if labels else [],
        captions,
        tuple(templates),
    )


def _subset(examples: Examples, limit: int | None, seed: int) -> Examples:
    if limit is None or limit >= len(examples):
        return examples
    places, images = draw_subset(range(len(examples)), limit, seed), examples.images
    chosen = torch.tensor(places)
    return replace(
        examples,
        images=Pictures([images.pictures[i] for i in places], images.size)
        if isinstance(images, Pictures)
        else images[chosen],
        ids=[examples.ids[i] for i in places],
        labels=examples.labels[chosen] if examples.label_names else examples.labels,
        captions=[examples.captions[i] for i in places] if examples.captions else [],
        boxes=None if examples.boxes is None else examples.boxes[chosen],
    )


def _sized(examples: Examples, size: int | tuple[int, int] | None) -> Examples:
    wanted = (size, size) if isinstance(size, int) else size
    images = examples.images
    if not isinstance(images, Pictures):
        if wanted not in (None, examples.size):
            raise UsageError(f"{examples.name} is evaluated at its own size {examples.size}: leave out size={size!r}")
        return examples
    if wanted is None:
        sizes = {picture.size() for picture in images.pictures}
        if len(sizes) > 1:
            message = f"images of {examples.name} have {len(sizes)} different sizes: give one, e.g. size=224"
            raise UsageError(message, "unequal_sizes", sizes=len(sizes))
        wanted = sizes.pop()
    return replace(examples, images=Pictures(images.pictures, wanted), size=wanted)


def _captions(stored: Stored) -> list[str]:
    """One per line. Raises UsageError if there is none."""
    captions = [line.strip() for line in stored.text().split("\n") if line.strip()]
    if not captions:
        raise UsageError(f"{stored.path} (byte {stored.offset}) holds an empty caption: an image needs at least one")
    return captions


def _lines(path: Path) -> list[str]:
    if not os.path.lexists(path):
        return []
    lines = read_lines(path)
    return [] if lines == [""] else lines
