"""Save pictures with provenance (PNG text chunk), film strips and GIFs."""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from robustclip.data.images import from_pil, grid, resize, save_image, titled_grid, to_pil
from robustclip.errors import UsageError
from robustclip.flags import Enlarge
from robustclip.runs.files import atomic_write, plain, read_bytes
from robustclip.synthesis.items import Item
from robustclip.synthesis.loop import Moment

CHUNK: Final = "robustclip"
LONGEST_FACTS: Final = 2**20
"""Maximum bytes of the facts in a picture."""
LARGEST: Final = 2**28
"""Bytes of a picture's file."""
SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
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
    """Facts written by `write_picture`. Raises UsageError for a file that is not a complete PNG or has none."""
    for kind, data in _chunks(path):
        keyword, zero, text = data.partition(b"\0") if kind == b"tEXt" else (b"", b"", b"")
        if keyword == CHUNK.encode() and zero and len(text) <= LONGEST_FACTS:
            try:
                facts = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"the facts of {path} are not JSON ({error})", "not_json", source=path) from error
            if isinstance(facts, dict):
                return facts
    raise UsageError(f"{path} has no text chunk {CHUNK!r} with facts", "no_facts", path=path)


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether the PNG file exists and is complete."""
    try:
        return any(kind == b"IDAT" for kind, _ in _chunks(path))
    except UsageError:
        return False


def enlarged(
    images: Float[Tensor, "n 3 h w"], how: Enlarge = "nearest", smallest: int = SHOWN
) -> Float[Tensor, "n 3 h2 w2"]:
    """Enlarge pictures whose longer side is below `smallest` pixels by an integer factor: nearest or bicubic."""
    height, width = images.shape[-2:]
    times = max(1, -(-smallest // max(height, width)))
    if how == "bicubic":
        return resize(images, (height * times, width * times))
    return images.repeat_interleave(times, -1).repeat_interleave(times, -2)


def font_of(width: int) -> int:
    """Font size at which titles of a sheet of this width are readable at READ_AT pixels."""
    return max(FONT_SIZE, math.ceil(FONT_SIZE * width / READ_AT))


def film_strip(
    frames: Float[Tensor, "f 3 h w"], steps: Sequence[int], how: Enlarge = "nearest"
) -> Float[Tensor, "3 h2 w2"]:
    """Frames in a row, titled by step."""
    frames = enlarged(frames, how)
    titles = [f"step {step}" for step in steps]
    return titled_grid([""], titles, frames, font_size=font_of(len(frames) * frames.shape[-1]))


def write_strip(
    path: str | os.PathLike[str], frames: Float[Tensor, "f 3 h w"], steps: Sequence[int], how: Enlarge = "nearest"
) -> None:
    """`film_strip` as a picture file."""
    save_image(film_strip(frames, steps, how), path)


def write_gif(path: str | os.PathLike[str], frames: Float[Tensor, "f 3 h w"], how: Enlarge = "nearest") -> None:
    """Frames as a looping GIF with a longer last frame. Raises UsageError for no frames."""
    if not len(frames):
        raise UsageError("a loop needs at least one frame", "too_few", frames=0)
    first, *others = [to_pil(frame) for frame in enlarged(frames, how)]
    durations = [FRAME_MILLISECONDS] * len(others) + [LAST_MILLISECONDS]
    with atomic_write(path) as file:
        first.save(file, format="gif", save_all=True, append_images=others, duration=durations, loop=0)


def _chunks(path: str | os.PathLike[str]) -> list[tuple[bytes, bytes]]:
    """(kind, data) of a PNG's chunks. Raises UsageError unless all of them, to the end, are undamaged."""
    data = read_bytes(Path(path), LARGEST)
    if not data.startswith(SIGNATURE):
        raise UsageError(f"{path} is not a PNG picture")
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


MOST: Final = 100
"""Pictures on a sheet; the first ones of more."""
OVERVIEW: Final = 16
"""Pictures of a batch that an overview shows."""
WIDEST_TABLE: Final = 8
"""Prompts that stand side by side."""
LARGEST_CELL, SMALLEST_CELL = 256, 96
"""Pixels of a cell's longer side: larger pictures are scaled down, smaller ones enlarged to SHOWN, and in an overview
to the smallest."""
PADDING, CAPTION_LINES = 4, 3

ImageOf = Callable[[int], Float[Tensor, "3 h w"]]
"""The picture of an item, by its place among the items."""


def contact_sheet(items: Sequence[Item], image_of: ImageOf, how: Enlarge = "nearest") -> Float[Tensor, "3 h w"]:
    """Pictures with titles readable at 1280 pixels: seeds in rows and prompts in columns, for few prompts with the same
    seeds; otherwise row by row with captions. At most `MOST` pictures; small ones are enlarged by `how`.

    Raises UsageError for no items.
    """
    if not items:
        raise UsageError("a contact sheet needs at least one picture", "too_few", pictures=0)
    prompts = list(dict.fromkeys((item.prompt, item.repeat) for item in items))
    seeds = list(dict.fromkeys(item.seed for item in items))
    places = {(item.prompt, item.repeat, item.seed): index for index, item in enumerate(items)}
    is_table = len(prompts) <= WIDEST_TABLE and len(items) == len(places) == len(prompts) * len(seeds)
    if is_table and len(items) <= MOST:
        images = cells([image_of(places[*prompt, seed]) for seed in seeds for prompt in prompts], how)
        rows = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else [""]
        font_size = font_of(len(prompts) * images.shape[-1])
        return titled_grid(rows, [prompt.title for prompt, _ in prompts], images, font_size=font_size)
    shown = items[:MOST]
    captions = [item.prompt.title + (f" ({item.seed})" if len(seeds) > 1 else "") for item in shown]
    return captioned_grid(cells([image_of(index) for index in range(len(shown))], how), captions)


def captioned_grid(images: Float[Tensor, "n 3 h w"], captions: Sequence[str]) -> Float[Tensor, "3 h2 w2"]:
    """Pictures in a nearly square grid, above captions of at most three lines."""
    count, _, height, width = images.shape
    columns = math.ceil(count**0.5)
    font = ImageFont.load_default(font_of(columns * width))
    line = font.getbbox("Ag")[3] + 2
    wrapped = [_wrap(caption, width, font) for caption in captions]
    below = int(line * max(map(len, wrapped))) + PADDING
    across, down = width + PADDING, height + below + PADDING
    sheet = Image.new("RGB", (PADDING + columns * across, PADDING + -(-count // columns) * down), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, lines) in enumerate(zip(images, wrapped, strict=True)):
        left, top = PADDING + index % columns * across, PADDING + index // columns * down
        sheet.paste(to_pil(image), (left, top))
        for number, text in enumerate(lines):
            draw.text((left + width / 2, top + height + 2 + number * line), text, "black", font, anchor="ma")
    return from_pil(sheet)


def overview(images: Float[Tensor, "p 3 h w"]) -> Float[Tensor, "3 h2 w2"]:
    """The first pictures of a batch in a nearly square grid, without titles."""
    shown = cells(list(images[:OVERVIEW].float().cpu()), smallest=SMALLEST_CELL)
    return grid(shown, columns=math.ceil(len(shown) ** 0.5))


def cells(
    images: Sequence[Float[Tensor, "3 h w"]], how: Enlarge = "nearest", smallest: int = SHOWN
) -> Float[Tensor, "n 3 h w"]:
    """Pictures resized to a sheet's cells, by the size of the first."""
    height, width = images[0].shape[-2:]
    if max(height, width) > LARGEST_CELL:
        scale = LARGEST_CELL / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return torch.cat([resize(image[None], size) for image in images])
    resized = torch.cat([resize(image[None], (height, width)) for image in images])
    return enlarged(resized, how, smallest)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """A caption in at most three lines of `width` pixels; longer words are broken, and "..." stands for the rest."""
    lines = [""]
    for word in text.split():
        for piece in _pieces(word, width, font):
            longer = f"{lines[-1]} {piece}".strip()
            if lines[-1] and font.getlength(longer) > width:
                lines.append(piece)
            else:
                lines[-1] = longer
        if len(lines) > CAPTION_LINES:
            return [*lines[: CAPTION_LINES - 1], f"{lines[CAPTION_LINES - 1]} ..."]
    return lines


def _pieces(word: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    if font.getlength(word) <= width:
        return [word]
    letters = max(1, int(len(word) * width / font.getlength(word)))
    return [word[at : at + letters] for at in range(0, min(len(word), letters * (CAPTION_LINES + 1)), letters)]


STEP: Final = 0.5  # RMS change of a latent that is shown
DEVIATIONS: Final = 3.0  # standard deviations of the change that reach from grey to black or white


@final
class GradientPictures:
    """Callback that visualises each stream's gradient at evenly spread steps: the change of the picture by a small step
    along it, around grey, scaled by its deviation."""

    def __init__(self, steps: int, count: int) -> None:
        self.wanted = sorted({round(index * steps / max(count, 1)) for index in range(count)})
        self.steps: list[int] = []
        self.pictures: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def __call__(self, moment: Moment) -> None:
        if moment.step not in self.wanted:
            return
        self.steps.append(moment.step)
        before = moment.canvas.render()["image"].clone()
        for name, gradients in moment.gradients.items():
            parameters = list(moment.canvas.parameters())
            kept = [parameter.clone() for parameter in parameters]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                length = gradient.flatten(1).square().mean(1).sqrt().clamp(min=1e-20)
                parameter.sub_(STEP * gradient / length.view(-1, *[1] * (gradient.ndim - 1)))
            change = moment.canvas.picture(moment.canvas.render()["image"] - before)
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
            spread = change.flatten(1).std(1).clamp(min=1e-6).view(-1, 1, 1, 1)
            shown = (0.5 + change / (2 * DEVIATIONS * spread)).clamp(0, 1).cpu()
            self.pictures.setdefault(name, []).append(shown)

    def of(self, picture: int) -> dict[str, Float[Tensor, "f 3 h w"]]:
        """Pictures of the steps in which each stream was active."""
        return {name: torch.stack([frame[picture] for frame in frames]) for name, frames in self.pictures.items()}


def strip(pictures: dict[str, Float[Tensor, "f 3 h w"]], steps: list[int]) -> Float[Tensor, "3 h2 w2"]:
    """A row per stream and a column per step; grey if the stream was inactive."""
    frames = []
    for own in pictures.values():
        grey = torch.full_like(own[:1], 0.5).expand(len(steps) - len(own), -1, -1, -1)
        frames.append(torch.cat([own, grey]))
    titles = [f"step {step}" for step in steps]
    return titled_grid(list(pictures), titles, torch.cat(frames))
