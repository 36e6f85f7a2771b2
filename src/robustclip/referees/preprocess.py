"""Differentiable resizing, cropping and normalisation of [0,1] images for a tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from robustclip.data.images import to_pil
from robustclip.errors import UsageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SMALLEST_STD = 1e-6
LARGEST = 4096
"""Maximal side in pixels, since cards are untrusted."""
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
RESIZE_MODES = ("shortest", "squash", "longest", "none")
CROPS = ("round", "floor")
DEFAULT = {"size", "mean", "std", "interpolation", "resize_mode", "fill_color"}
"""The keys of open_clip's `preprocess_cfg`, besides its `mode`."""


class Preprocess(nn.Module):
    """Resize (antialiased) to `size`, then normalise: open_clip's evaluation transform, on tensors and with gradients.

    The names are those of an open_clip `preprocess_cfg`. `resize_mode` "shortest" fits the shorter edge and crops the
    centre, "squash" ignores the aspect ratio, "longest" fits the longer edge and pads with `fill_color` (0..255),
    "none" crops or pads the centre only. `resize_to` is the size that is fitted before the centre of `size` is
    cropped, by default `size`; `crop` says how an odd number of surplus pixels is halved: "round" (torchvision) or
    "floor" (transformers). These two, "none" and the interpolation "nearest" are beyond an open_clip `preprocess_cfg`.
    An image of the right size is not resampled.

    Deliberate deviation from the PIL transform: bicubic overshoot beyond [0,1] is neither clamped nor rounded to 8
    bits, since a clamp has no gradient on saturated pixels, and a white background without gradients would look like
    robustness. With the attribute `exact`, values are Pillow's, resampled on the CPU (images are rounded to 8 bits
    first), with straight-through gradients.

    Raises UsageError for invalid values, including sides beyond 4096 pixels and a std of zero.
    """

    exact = False

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        mean: tuple[float, ...] = CLIP_MEAN,
        std: tuple[float, ...] = CLIP_STD,
        interpolation: str = "bicubic",
        resize_mode: str = "shortest",
        fill_color: int = 0,
        resize_to: int | tuple[int, int] | None = None,
        crop: str = "round",
    ) -> None:
        super().__init__()
        if interpolation not in INTERPOLATIONS:
            message = f"interpolation {interpolation!r} is not one of {', '.join(INTERPOLATIONS)}"
            raise UsageError(message, "unknown_choice", argument="interpolation", given=interpolation)
        if resize_mode not in RESIZE_MODES:
            message = f"resize_mode {resize_mode!r} is not one of {', '.join(RESIZE_MODES)}"
            raise UsageError(message, "unknown_choice", argument="resize_mode", given=resize_mode)
        if crop not in CROPS:
            raise UsageError(
                f"crop {crop!r} is not one of {', '.join(CROPS)}", "unknown_choice", argument="crop", given=crop
            )
        self.crop = crop
        self.size = _sides(size, "size")
        self.resize_to = self.size if resize_to is None else _sides(resize_to, "resize_to")
        for name, numbers in (("mean", mean), ("std", std)):
            if not isinstance(numbers, tuple) or len(numbers) != 3 or not all(map(_is_number, numbers)):
                message = f"{name} {numbers!r} is not three numbers, one per channel"
                raise UsageError(message, "not_three_numbers", argument=name, given=numbers)
        if min(std) < SMALLEST_STD:
            message = f"std {std!r}: pixels are divided by it, so none may be below {SMALLEST_STD}"
            raise UsageError(message, "too_small", argument="std", given=std)
        if not _is_number(fill_color) or not 0 <= fill_color <= 255:
            message = f"fill_color {fill_color!r} is not a level of 0 to 255"
            raise UsageError(message, "out_of_range", argument="fill_color", given=fill_color)
        self.interpolation = interpolation
        self.resize_mode = resize_mode
        self.fill_color = fill_color
        self.statistics = {"mean": list(mean), "std": list(std)}
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocess:
        """Build from an open_clip `preprocess_cfg`, or the output of `config`; `size` is required."""
        allowed = DEFAULT | {"resize_to", "crop"}
        unknown = sorted(set(config) - allowed - {"mode"})
        if unknown or "size" not in config:
            raise UsageError(
                f"a preprocess_cfg has the keys {', '.join(sorted(allowed))} (size is needed); "
                f"{'unknown: ' + ', '.join(unknown) if unknown else 'size is missing'}",
                "wrong_entries",
                missing=[] if "size" in config else ["size"],
                unknown=unknown,
            )
        if config.get("mode", "RGB") != "RGB":
            raise UsageError(
                f"images are RGB; the preprocess_cfg says mode={config['mode']!r}", "not_rgb", mode=config["mode"]
            )
        size = config["size"]
        options = {key: config[key] for key in allowed - {"size"} if key in config}
        for key in ("mean", "std"):
            if isinstance(options.get(key), list):
                options[key] = tuple(options[key])
        return cls(size, **options)

    def config(self) -> dict[str, Any]:
        """The open_clip `preprocess_cfg` of these settings; `resize_to` and `crop` if not the default."""
        values = {
            "size": list(self.size),
            "mode": "RGB",
            **self.statistics,
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "fill_color": self.fill_color,
        }
        values |= {} if self.resize_to == self.size else {"resize_to": list(self.resize_to)}
        return values if self.crop == "round" else {**values, "crop": self.crop}

    def beyond_open_clip(self) -> str:
        """Settings that an open_clip `preprocess_cfg` cannot express, as text; empty if none."""
        faults = []
        if self.resize_to != self.size and self.resize_mode != "none":
            faults.append(f"a resize to {_by(self.resize_to)} before a crop of {_by(self.size)}")
        if self.resize_mode == "none":
            faults.append("a crop without a resize")
        if self.interpolation == "nearest":
            faults.append("nearest-neighbour resampling")
        return ", ".join(faults)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 h w"]:
        """[0,1] pixels of any size to normalised float32 pixels of `size`."""
        return self.normalise(self.resize(images.float()))

    def normalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalise pixels on the [0,1] scale, without resizing."""
        return (images.float() - self.mean) / self.std

    def resize(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 h w"]:
        """Bring images to `size`; the pixels stay on the [0,1] scale."""
        if self.exact:
            images = _rounded(images)
        height, width = images.shape[-2:]
        fit = self._fitted(height, width)
        if fit != (height, width):
            images = self._resampled(images, fit)
        return self._centred(images) if fit != self.size else images

    def _resampled(self, images: Float[Tensor, "b 3 H W"], fit: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
        if self.interpolation == "nearest":
            return F.interpolate(images, fit, mode="nearest-exact")
        smooth = F.interpolate(images, fit, mode=self.interpolation, align_corners=False, antialias=True)
        if not self.exact:
            return smooth
        resampling = Image.Resampling[self.interpolation.upper()]
        pictures = [to_pil(image).resize(fit[::-1], resampling) for image in images]
        stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
        return smooth + (stacked.to(images.device).float() / 255 - smooth.detach())

    def placed_back(self, maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b H W"]:
        """Place maps of the tower's input size on images of the given size: 0 outside the crop."""
        height, width = self._fitted(*size)
        down, right = max(self.size[0] - height, 0) // 2, max(self.size[1] - width, 0) // 2  # padding around the image
        top, left = (self._cut(max(fit - side, 0)) for fit, side in zip((height, width), self.size, strict=True))
        inner = maps[:, down : down + height, right : right + width]
        whole = F.pad(inner, (left, width - left - inner.shape[2], top, height - top - inner.shape[1]))
        if (height, width) == size:
            return whole
        return F.interpolate(whole[:, None], size, mode="bilinear", align_corners=False)[:, 0]

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        if self.resize_mode == "none":
            return height, width
        if self.resize_mode == "squash":
            return self.resize_to
        target_height, target_width = self.resize_to
        if self.resize_mode == "shortest" and target_height == target_width:  # torchvision truncates the long edge
            short, long = min(height, width), max(height, width)
            length = int(target_height * long / short)
            return (target_height, length) if height <= width else (length, target_height)
        ratios = (height / target_height, width / target_width)  # rounded as open_clip's ResizeKeepRatio does
        ratio = min(ratios) if self.resize_mode == "shortest" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _cut(self, surplus: int) -> int:
        """Pixels cropped at the top or left, of the surplus."""
        return round(surplus / 2) if self.crop == "round" else surplus // 2

    def _centred(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 h w"]:
        height, width = images.shape[-2:]
        down, right = self.size[0] - height, self.size[1] - width
        if down > 0 or right > 0:
            down, right = max(down, 0), max(right, 0)
            pad = (right // 2, right - right // 2, down // 2, down - down // 2)
            images = F.pad(images, pad, value=self.fill_color / 255)
            height, width = images.shape[-2:]
        top, left = self._cut(height - self.size[0]), self._cut(width - self.size[1])
        return images[..., top : top + self.size[0], left : left + self.size[1]]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _rounded(images: Tensor) -> Tensor:
    """8-bit values, as Pillow keeps pixels (halves round up); the gradient is that of the identity."""
    return images + ((images.detach().clamp(0, 1) * 255 + 0.5).floor() / 255 - images.detach())


def _by(sides: tuple[int, int]) -> str:
    return "x".join(map(str, sides))


def _sides(size: Any, name: str) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    is_pair = isinstance(sides, list | tuple) and len(sides) == 2
    if not is_pair or not all(type(side) is int and 0 < side <= LARGEST for side in sides):
        message = f"{name} {size!r} is not one or two numbers of pixels from 1 to {LARGEST}"
        raise UsageError(message, "not_a_size", argument=name, size=size)
    return sides[0], sides[1]
