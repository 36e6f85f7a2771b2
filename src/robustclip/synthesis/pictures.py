"""Save pictures with provenance (PNG text chunk), film strips and GIFs."""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from jaxtyping import Float
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from robustclip.data.images import resize, save_image, titled_grid, to_pil
from robustclip.errors import UsageError
from robustclip.runs.files import atomic_write, plain, read_bytes

CHUNK: Final = "robustclip"
LONGEST_FACTS: Final = 2**20
"""Bytes of the facts in a picture: what a recipe was asked and a prompt come nowhere near."""
LARGEST: Final = 2**28
"""Bytes of a picture's file."""
SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
Enlarge = Literal["nearest", "bicubic"]
SHOWN: Final = 256
"""Pixels of the longer side that a picture has at least in loops, strips and sheets."""
READ_AT: Final = 1280
FONT_SIZE: Final = 12
FRAME_MILLISECONDS, LAST_MILLISECONDS = 120, 1500


def write_picture(path: str | os.PathLike[str], image: Float[Tensor, "3 h w"], facts: Mapping[str, Any]) -> None:
    """Write a PNG (8 bits a channel) atomically, with `facts` as printable ASCII. Raises OSError, and UsageError for
    facts of more than 1 MB."""
    text = json.dumps(plain(facts), ensure_ascii=True, allow_nan=False)
    if len(text) > LONGEST_FACTS:
        raise UsageError(f"the facts of {path} are {len(text)} bytes: a picture keeps at most {LONGEST_FACTS}")
    notes = PngInfo()
    notes.add_text(CHUNK, text.replace("\x7f", "\\u007f"))
    with atomic_write(path) as file:
        to_pil(image).save(file, format="png", pnginfo=notes)


def read_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_picture` noted. Raises UsageError for a file that is no whole PNG, or has no such note."""
    for kind, data in _chunks(path):
        keyword, zero, text = data.partition(b"\0") if kind == b"tEXt" else (b"", b"", b"")
        if keyword == CHUNK.encode() and zero and len(text) <= LONGEST_FACTS:
            try:
                facts = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path} says in no JSON how it was made ({error})") from error
            if isinstance(facts, dict):
                return facts
    raise UsageError(f"{path} does not say how it was made: it has no text chunk {CHUNK!r}")


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether there is a PNG file that is undamaged to its end."""
    try:
        return any(kind == b"IDAT" for kind, _ in _chunks(path))
    except UsageError:
        return False


def enlarged(
    images: Float[Tensor, "n 3 h w"], how: Enlarge = "nearest", smallest: int = SHOWN
) -> Float[Tensor, "n 3 h2 w2"]:
    """Pictures whose longer side is below `smallest` pixels, larger by the first whole number that reaches it: each
    pixel repeated, or bicubic."""
    height, width = images.shape[-2:]
    times = max(1, -(-smallest // max(height, width)))
    if how == "bicubic":
        return resize(images, (height * times, width * times))
    return images.repeat_interleave(times, -1).repeat_interleave(times, -2)


def font_of(width: int) -> int:
    """The font size at which titles of a sheet of that width are read where it is shown READ_AT pixels wide."""
    return max(FONT_SIZE, math.ceil(FONT_SIZE * width / READ_AT))


def film_strip(
    frames: Float[Tensor, "f 3 h w"], steps: Sequence[int], how: Enlarge = "nearest"
) -> Float[Tensor, "3 h2 w2"]:
    """The way side by side, each picture below its step."""
    frames = enlarged(frames, how)
    titles = [f"step {step}" for step in steps]
    return titled_grid([""], titles, frames, font_size=font_of(len(frames) * frames.shape[-1]))


def write_strip(
    path: str | os.PathLike[str], frames: Float[Tensor, "f 3 h w"], steps: Sequence[int], how: Enlarge = "nearest"
) -> None:
    """`film_strip` as a picture file."""
    save_image(film_strip(frames, steps, how), path)


def write_gif(path: str | os.PathLike[str], frames: Float[Tensor, "f 3 h w"], how: Enlarge = "nearest") -> None:
    """The way as an endless loop that rests on its last picture. Raises UsageError for no frames."""
    if not len(frames):
        raise UsageError("a loop needs at least one frame")
    first, *others = [to_pil(frame) for frame in enlarged(frames, how)]
    durations = [FRAME_MILLISECONDS] * len(others) + [LAST_MILLISECONDS]
    with atomic_write(path) as file:
        first.save(file, format="gif", save_all=True, append_images=others, duration=durations, loop=0)


def _chunks(path: str | os.PathLike[str]) -> list[tuple[bytes, bytes]]:
    """(kind, data) of a PNG's chunks. Raises UsageError unless all of them, to the end, are undamaged."""
    data = read_bytes(Path(path), LARGEST)
    if not data.startswith(SIGNATURE):
        raise UsageError(f"{path} is no PNG picture")
    found = list(_walk(data))
    if not found or found[-1][0] != b"IEND":
        raise UsageError(f"{path} is damaged, or was cut short")
    return found


def _walk(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks up to the first that is damaged, or IEND."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body, end = data[at + 4 : at + 8 + length], at + 12 + length
        if end > len(data) or zlib.crc32(body) != struct.unpack_from(">I", data, end - 4)[0]:
            return
        yield body[:4], body[4:]
        if body[:4] == b"IEND":
            return
        at = end
