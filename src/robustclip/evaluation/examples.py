"""What is evaluated: images with labels, captions or both, from the embedded set or from a folder.

Images of a folder are decoded when a batch asks for them, so that a set need not fit into memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from robustclip.data import load_split
from robustclip.data.decoding import Skip, decode
from robustclip.errors import RunError, UsageError
from robustclip.evaluation.similarity import Images
from robustclip.images import from_pil, resize
from robustclip.rng import generator

PICTURES = ("webp", "png", "jpg", "jpeg")
GZIP = b"\x1f\x8b"
SHOW_DATA = (
    "give emoji/SPLIT, a folder with one sub-folder of images a class, or a clip_benchmark webdataset folder "
    "(test/*.tar beside classnames.txt)"
)


@dataclass(frozen=True)
class Examples:
    """N images, all of `size` (height, width), in [0,1], and what is known of them.

    `label_names` are all labels of the set, also those that no image has, and `labels` (N,) their indices; both empty
    where the set has none. `captions` holds a list for each image; empty where the set has none. `templates` are those
    that came with the set, if any.
    """

    name: str
    images: Images
    size: tuple[int, int]
    ids: list[str]
    labels: Int[Tensor, " n"]
    label_names: list[str]
    captions: list[list[str]]
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Stored:
    """Where bytes lie: a file, or `length` bytes (-1: all) from its `offset`; `content` holds what was packed."""

    path: Path
    offset: int = 0
    length: int = -1
    content: bytes | None = None

    def read(self) -> bytes:
        """The bytes."""
        if self.content is not None:
            return self.content
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)

    def text(self) -> str:
        """The bytes as text, without white space around it. Raises UsageError where they are none."""
        try:
            return self.read().decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.path} (byte {self.offset}) holds no UTF-8 text: {error}") from error

    def number(self) -> int:
        """The bytes as a whole number from 0. Raises UsageError where they are none."""
        text = self.text()
        if not text.isdecimal():
            raise UsageError(
                f"{self.path} (byte {self.offset}) holds no label but {text[:20]!r}: a .cls is a number from 0"
            )
        return int(text)

    def image(self) -> Float[Tensor, "3 h w"]:
        """The bytes as an image, on white. Raises RunError naming the place where that fails."""
        return from_pil(self._decoded())

    def size(self) -> tuple[int, int]:
        """Height and width of the image. Raises RunError where there is none."""
        picture = self._decoded()
        return picture.height, picture.width

    def _decoded(self) -> Image.Image:
        try:
            return decode(self.read())
        except Skip as error:  # training skips such a picture; a measurement must not lose one quietly
            raise RunError(f"{self.path} (byte {self.offset}) holds no readable picture: {error}") from error


@final
class Pictures:
    """Images of a folder, decoded when asked for: shorter side resized to the size's, then the centre cut out."""

    def __init__(self, pictures: Sequence[Stored], size: tuple[int, int]) -> None:
        self.pictures = pictures
        self.size = size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: Tensor, /) -> Float[Tensor, "b 3 h w"]:
        chosen = [self.pictures[index] for index in indices.tolist()]
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
            return torch.stack(list(pool.map(lambda picture: fit(picture.image(), self.size), chosen)))


def fit(image: Float[Tensor, "3 h w"], size: tuple[int, int]) -> Float[Tensor, "3 h2 w2"]:
    """The largest centred cut of the size's shape, resized (bicubic, antialiased); as it is where it has the size."""
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    whole = resize(image[None], (max(size[0], round(height * scale)), max(size[1], round(width * scale))))[0]
    top, left = (whole.shape[-2] - size[0]) // 2, (whole.shape[-1] - size[1]) // 2
    return whole[:, top : top + size[0], left : left + size[1]]


def read_examples(
    data: str | Path, *, size: int | tuple[int, int] | None = None, limit: int | None = None, seed: int = 0
) -> Examples:
    """`emoji/SPLIT`, a folder of class sub-folders, or a webdataset folder as clip_benchmark lays it out.

    `size` is what images of a folder are resized and cut to; None keeps theirs, if they all have the same. `limit`
    takes that many of them, drawn by the seed alone, in their old order. Raises UsageError where there is no such data,
    none in it, or a size is missing or of no use.
    """
    folder = Path(data)
    if folder.is_dir():
        shards = _shards_of(folder)
        examples = _read_shards(folder, shards) if shards else _read_class_folders(folder)
    elif isinstance(data, str) and data.startswith("emoji/"):
        examples = _read_split(data)
    else:
        raise UsageError(f"no data at {str(data)!r}: {SHOW_DATA}")
    if len(examples) == 0:
        raise UsageError(f"the data at {str(data)!r} is empty: {SHOW_DATA}")
    return _sized(_subset(examples, limit, seed), size)


def _read_split(data: str) -> Examples:
    dataset, _, name = data.partition("/")
    split = load_split(dataset, name)
    height, width = split.images.shape[-2:]
    return Examples(data, split.images, (height, width), split.ids, split.labels, split.label_names, split.captions)


def _read_class_folders(folder: Path) -> Examples:
    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} is no folder of classes with images: {error}; {SHOW_DATA}") from error
    paths = [Path(path) for path, _ in found.samples]
    names = _lines(folder / "classnames.txt") or [name.replace("_", " ") for name in found.classes]
    return _from_pictures(
        folder,
        [Stored(path) for path in paths],
        ids=[path.relative_to(folder).as_posix() for path in paths],
        labels=[label for _, label in found.samples],
        label_names=names,
        captions=[],
    )


def _shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar")) or sorted((folder / "test").glob("*.tar"))


def _members(shard: Path) -> Iterator[tuple[str, Stored]]:
    """Names and places of a tar file's members; those of a compressed one are read, for they have no place in it."""
    try:
        with shard.open("rb") as file:
            compressed = file.read(2) == GZIP
        with tarfile.open(shard) as tar:
            for member in tar:
                file_in_tar = tar.extractfile(member)
                if file_in_tar is not None:
                    content = file_in_tar.read() if compressed else None
                    yield member.name, Stored(shard, member.offset_data, member.size, content)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"{shard} is not a whole tar file: {error}") from error


def _read_shards(folder: Path, shards: Sequence[Path]) -> Examples:
    """clip_benchmark's layout: FOLDER/test/*.tar beside classnames.txt; or FOLDER/*.tar, the names there or above."""
    root = folder if shards[0].parent != folder or (folder / "classnames.txt").is_file() else folder.parent
    samples: dict[str, dict[str, Stored]] = {}
    for shard in shards:
        for name, stored in _members(shard):
            key, _, ending = name.partition(".")
            samples.setdefault(f"{shard.stem}/{key}", {})[ending.lower()] = stored

    pictures = {key: sample[end] for key, sample in samples.items() for end in PICTURES if end in sample}
    labels = [samples[key]["cls"].number() for key in pictures if "cls" in samples[key]]
    captions = [samples[key]["txt"].text().splitlines() for key in pictures if "txt" in samples[key]]
    for what, held in (("label (.cls)", labels), ("caption (.txt)", captions)):
        if held and len(held) != len(pictures):
            raise UsageError(
                f"{folder}: {len(held)} of {len(pictures)} images have a {what}: all of them or none should"
            )
    return _from_pictures(
        folder,
        list(pictures.values()),
        ids=list(pictures),
        labels=labels,
        label_names=_lines(root / "classnames.txt"),
        captions=captions,
        templates=_lines(root / "zeroshot_classification_templates.txt"),
    )


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
        raise UsageError(
            f"{folder}: labels up to {max(labels)} need {max(labels) + 1} names, {len(label_names)} are there"
        )
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
    chosen = torch.randperm(len(examples), generator=generator(seed, "subset"))[:limit].sort().values
    places, images = chosen.tolist(), examples.images
    return replace(
        examples,
        images=Pictures([images.pictures[i] for i in places], images.size)
        if isinstance(images, Pictures)
        else images[chosen],
        ids=[examples.ids[i] for i in places],
        labels=examples.labels[chosen] if examples.label_names else examples.labels,
        captions=[examples.captions[i] for i in places] if examples.captions else [],
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
            raise UsageError(f"images of {examples.name} have {len(sizes)} different sizes: give one, e.g. size=224")
        wanted = sizes.pop()
    return replace(examples, images=Pictures(images.pictures, wanted), size=wanted)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
