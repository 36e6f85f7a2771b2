"""Lazily decoded pictures of files and archives, so that a set need not fit into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, final

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from robustclip.data.images import BROKEN_METADATA, advice, decode, from_pil, resize
from robustclip.data.tars import MAX_MEMBER
from robustclip.errors import RunError, Skip, UsageError
from robustclip.runs.files import read_bytes
from robustclip.runs.rng import generator

T = TypeVar("T")

LONGEST_LABEL = 9  # digits
LONGEST = 100  # maximal aspect ratio, since the whole picture is resized before it is cropped


class Images(Protocol):
    """Images by index: a (N,3,H,W) tensor, or lazily decoded `Pictures`."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Stored:
    """Location of a file's bytes: a whole file (`length` None), or `length` bytes from `offset`; `content`: the bytes
    of a member of a compressed archive."""

    path: Path
    offset: int = 0
    length: int | None = None
    content: bytes | None = None

    def read(self) -> bytes:
        """The bytes. Raises UsageError for a pipe, a device or a file too large for a picture."""
        if self.content is not None:
            return self.content
        if self.length is None:
            return read_bytes(self.path, MAX_MEMBER)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)

    def text(self) -> str:
        """The bytes as stripped text. Raises UsageError unless they are UTF-8."""
        try:
            return self.read().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            message = f"{self.path} (byte {self.offset}) is not UTF-8 text: {error}"
            raise UsageError(message, "not_utf8", path=str(self.path)) from error

    def number(self) -> int:
        """The bytes as an integer from 0. Raises UsageError for anything else."""
        text = self.text()
        if not (text.isascii() and text.isdecimal() and len(text) <= LONGEST_LABEL):
            message = f"{self.path} (byte {self.offset}) is {text[:20]!r}, and a .cls is a label's number from 0"
            raise UsageError(message, "not_a_label", given=text)
        return int(text)

    def image(self, remarks: Counter[str] | None = None) -> Float[Tensor, "3 h w"]:
        """The decoded image (see `images.decode`). Raises RunError naming an unreadable picture."""
        return from_pil(self._decoded(remarks))

    def size(self) -> tuple[int, int]:
        """Height and width of the image. Raises RunError for an unreadable picture."""
        picture = self._decoded()
        return picture.height, picture.width

    def _decoded(self, remarks: Counter[str] | None = None) -> Image.Image:
        try:
            return decode(self.read(), remarks=remarks)
        except Skip as error:  # training skips such a picture; a measurement must not
            where = f"{self.path} (byte {self.offset})"
            message = f"{where} contains no readable picture: {error} ({advice(error.fault)})"
            raise RunError(message, "not_a_picture", path=self.path) from error


@final
class Pictures:
    """Lazily decoded images: the shorter side resized to the size's, then centre-cropped."""

    def __init__(self, pictures: Sequence[Stored], size: tuple[int, int]) -> None:
        self.pictures = pictures
        self.size = size
        self.odd: set[int] = set()  # indices of pictures with unreadable metadata

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: Tensor, /) -> Float[Tensor, "b 3 h w"]:
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
            return torch.stack(list(pool.map(self._read, indices.tolist())))

    def _read(self, index: int) -> Float[Tensor, "3 h w"]:
        remarks: Counter[str] = Counter()
        image = resize_and_crop(self.pictures[index].image(remarks), self.size)
        if remarks[BROKEN_METADATA]:
            self.odd.add(index)
        return image


def resize_and_crop(image: Float[Tensor, "3 h w"], size: tuple[int, int]) -> Float[Tensor, "3 h2 w2"]:
    """The largest centre crop of the size's aspect ratio, resized (bicubic, antialiased).

    Raises RunError for an aspect ratio beyond LONGEST.
    """
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    grown = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    if grown[0] * grown[1] > LONGEST * size[0] * size[1]:
        raise RunError(f"a picture of {height}x{width} pixels is too long for {size[0]}x{size[1]}: cut it first")
    whole = resize(image[None], grown)[0]
    top, left = (whole.shape[-2] - size[0]) // 2, (whole.shape[-1] - size[1]) // 2
    return whole[:, top : top + size[0], left : left + size[1]]


def draw_subset(things: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """A random subset of `limit` things in their order, drawn by the seed; all of them if there are no more."""
    if limit is None or limit >= len(things):
        return list(things)
    drawn = torch.randperm(len(things), generator=generator(seed, "subset"))[:limit].sort().values
    return [things[place] for place in drawn.tolist()]
