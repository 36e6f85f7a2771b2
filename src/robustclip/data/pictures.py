"""Encoded pictures of files and archives, decoded and brought to size when asked for, so that a set need not fit into
memory."""

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
LONGEST = 100  # times its shorter side: longer pictures would grow beyond all bounds before the middle is cut out


class Images(Protocol):
    """Something to take images from by their indices: a (N,3,H,W) tensor, or a folder that decodes when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Stored:
    """Where bytes lie: a whole file (`length` None), or `length` bytes from its `offset`; `content` holds what was
    packed."""

    path: Path
    offset: int = 0
    length: int | None = None
    content: bytes | None = None

    def read(self) -> bytes:
        """The bytes. Raises UsageError for a file that is none (a pipe, a device) or too large for a picture."""
        if self.content is not None:
            return self.content
        if self.length is None:
            return read_bytes(self.path, MAX_MEMBER)
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
        if not (text.isascii() and text.isdecimal() and len(text) <= LONGEST_LABEL):
            raise UsageError(
                f"{self.path} (byte {self.offset}) holds no label but {text[:20]!r}: a .cls is a number from 0"
            )
        return int(text)

    def image(self, remarks: Counter[str] | None = None) -> Float[Tensor, "3 h w"]:
        """The bytes as an image, as `images.decode`. Raises RunError naming the place where that fails."""
        return from_pil(self._decoded(remarks))

    def size(self) -> tuple[int, int]:
        """Height and width of the image. Raises RunError where there is none."""
        picture = self._decoded()
        return picture.height, picture.width

    def _decoded(self, remarks: Counter[str] | None = None) -> Image.Image:
        try:
            return decode(self.read(), remarks=remarks)
        except Skip as error:  # training skips such a picture; a measurement must not lose one quietly
            where = f"{self.path} (byte {self.offset})"
            raise RunError(f"{where} holds no readable picture: {error} ({advice(error.fault)})") from error


@final
class Pictures:
    """Images of a folder, decoded when asked for: shorter side resized to the size's, then the centre cut out."""

    def __init__(self, pictures: Sequence[Stored], size: tuple[int, int]) -> None:
        self.pictures = pictures
        self.size = size
        self.odd: set[int] = set()  # places of pictures whose metadata could not be read

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
    """The largest centred cut of the size's shape, resized (bicubic, antialiased); as it is where it has the size.

    Raises RunError for a picture so long that it would grow beyond all bounds.
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
    """`limit` of the things in their order, drawn by the seed alone; all of them without a limit or below it."""
    if limit is None or limit >= len(things):
        return list(things)
    drawn = torch.randperm(len(things), generator=generator(seed, "subset"))[:limit].sort().values
    return [things[place] for place in drawn.tolist()]
