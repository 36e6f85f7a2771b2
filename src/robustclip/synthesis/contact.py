"""Contact sheets of pictures: prompts x seeds, or a grid with captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from robustclip.data.images import from_pil, grid, resize, titled_grid, to_pil
from robustclip.errors import UsageError
from robustclip.synthesis.items import Item
from robustclip.synthesis.pictures import SHOWN, Enlarge, enlarged, font_of

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


def contact_sheet(
    items: Sequence[Item], image_of: ImageOf, most: int = MOST, how: Enlarge = "nearest"
) -> Float[Tensor, "3 h w"]:
    """Pictures with their titles, which are read where the sheet is shown 1280 pixels wide: seeds in rows and prompts
    in columns where there are a few prompts, each with the same seeds; else row by row, the prompt below each. At most
    `most`, of which only these are read; small ones are enlarged as `how` says.

    Raises UsageError for no items.
    """
    if not items:
        raise UsageError("a contact sheet needs at least one picture")
    prompts = list(dict.fromkeys((item.prompt, item.repeat) for item in items))
    seeds = list(dict.fromkeys(item.seed for item in items))
    places = {(item.prompt, item.repeat, item.seed): index for index, item in enumerate(items)}
    is_table = len(prompts) <= WIDEST_TABLE and len(items) == len(places) == len(prompts) * len(seeds)
    if is_table and len(items) <= most:
        images = cells([image_of(places[*prompt, seed]) for seed in seeds for prompt in prompts], how)
        rows = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else [""]
        font_size = font_of(len(prompts) * images.shape[-1])
        return titled_grid(rows, [prompt.title for prompt, _ in prompts], images, font_size=font_size)
    shown = items[:most]
    captions = [item.prompt.title + (f" ({item.seed})" if len(seeds) > 1 else "") for item in shown]
    return captioned_grid(cells([image_of(index) for index in range(len(shown))], how), captions)


def captioned_grid(
    images: Float[Tensor, "n 3 h w"], captions: Sequence[str], columns: int | None = None
) -> Float[Tensor, "3 h2 w2"]:
    """Pictures row by row, `columns` to a row (default: as square as it gets), each above its caption, which is cut
    after three lines."""
    count, _, height, width = images.shape
    columns = min(columns or math.ceil(count**0.5), count)
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
    """The first pictures of a batch without titles, as square a sheet as it gets."""
    shown = cells(list(images[:OVERVIEW].float().cpu()), smallest=SMALLEST_CELL)
    return grid(shown, columns=math.ceil(len(shown) ** 0.5))


def cells(
    images: Sequence[Float[Tensor, "3 h w"]], how: Enlarge = "nearest", smallest: int = SHOWN
) -> Float[Tensor, "n 3 h w"]:
    """Pictures at the size of a sheet's cells, which is that of the first."""
    height, width = images[0].shape[-2:]
    if max(height, width) > LARGEST_CELL:
        scale = LARGEST_CELL / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return torch.cat([resize(image[None], size) for image in images])
    alike = torch.cat([resize(image[None], (height, width)) for image in images])
    return enlarged(alike, how, smallest)


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
