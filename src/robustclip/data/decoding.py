"""Decode encoded pictures to 8-bit RGB at the training resolution."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from robustclip.data.images import MAX_PIXELS, decode
from robustclip.errors import Fault, Skip, UsageError

BICUBIC = Image.Resampling.BICUBIC
RATIO = (3 / 4, 4 / 3)  # of width to height, Inception's range, as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes `size` (height, width; one number for a square).

    crop        "random": a crop of `scale` of the area and a ratio of 3:4 to 4:3, resized; "center": the shorter side
                resized, the middle kept (CLIP's evaluation transform).
    scale       (0.9, 1.0) is open_clip's for training; CLIPAG's text names no augmentation.
    background  what transparent pictures are laid on: "white", or one "random" colour a sample.

    Resizing is bicubic and antialiased, as in CLIP. Raises UsageError for values outside their ranges.
    """

    size: int | tuple[int, int]
    crop: Literal["random", "center"] = "random"
    scale: tuple[float, float] = (0.9, 1.0)
    background: Literal["white", "random"] = "white"

    def __post_init__(self) -> None:
        faults = []
        if min(self.shape) < 1:
            faults.append(f"size {self.size}: give pixels, e.g. 224")
        if self.crop not in ("random", "center"):
            faults.append(f"crop {self.crop!r}: use 'random' or 'center'")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            faults.append(f"scale {self.scale}: give two shares of the area, e.g. (0.9, 1.0)")
        if self.background not in ("white", "random"):
            faults.append(f"background {self.background!r}: use 'white' or 'random'")
        if faults:
            raise UsageError("\n".join(faults))

    @property
    def shape(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(
        self, encoded: bytes | Path, generator: torch.Generator, remarks: Counter[str] | None = None
    ) -> UInt8[Tensor, "3 h w"]:
        """The prepared picture. Raises Skip where there is none; `remarks` as in `images.decode`."""
        colour = (255, 255, 255)
        if self.background == "random":
            red, green, blue = torch.randint(256, (3,), generator=generator).tolist()
            colour = (red, green, blue)
        picture = decode(encoded, colour, remarks)
        if self.crop == "center":
            return pixels(center_crop(picture, self.shape))
        box = random_box(picture.height, picture.width, self.scale, generator)
        return pixels(picture.crop(box).resize(self.shape[::-1], BICUBIC))


def center_crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The shorter side resized to that of `size` (height, width), the middle kept: torchvision's Resize and CenterCrop,
    CLIP's evaluation transform, pixel for pixel.

    Raises Skip for a picture so long that it would grow beyond all bounds.
    """
    height, width = size
    if picture.width * height < picture.height * width:  # too tall
        tall, wide = max(height, int(width * picture.height / picture.width)), width
    else:
        tall, wide = height, max(width, int(height * picture.width / picture.height))
    if tall * wide > MAX_PIXELS:
        raise Skip(Fault.TOO_LARGE)
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    return picture.resize((wide, tall), BICUBIC).crop((left, top, left + width, top + height))


def random_box(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop, drawn as by torchvision's RandomResizedCrop, which takes no generator.

    The largest central crop of a legal ratio where ten draws find none that fits.
    """
    shares = torch.empty(10).uniform_(*scale, generator=generator).tolist()
    ratios = torch.empty(10).uniform_(math.log(RATIO[0]), math.log(RATIO[1]), generator=generator).exp().tolist()
    for share, ratio in zip(shares, ratios, strict=True):
        w = round(math.sqrt(height * width * share * ratio))
        h = round(math.sqrt(height * width * share / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(width - w + 1, (), generator=generator))
            top = int(torch.randint(height - h + 1, (), generator=generator))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * RATIO[1])))
    h = max(1, min(height, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def pixels(picture: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """An RGB picture as a tensor of its 8-bit values."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
