"""Random crops, rescaling, and affine and perspective warps with bilinear sampling.

Homographies are kornia's. The warps are as in kornia's `warp_affine` and `warp_perspective` (tests compare them), in
two thirds of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustclip.attacks.threat import height_and_width
from robustclip.errors import UsageError
from robustclip.views.views import Draws, Range, check_ends, check_number

Padding = Literal["zeros", "border", "reflection"] | float
"""Padding outside a picture: 0, its border pixels, its reflection, or a constant (1.0: white)."""


@final
@dataclass(frozen=True)
class Affine:
    """Turn each view by U(degrees) counter-clockwise and shear it sideways by U(shear) degrees, about its centre,
    enlarge it by U(scale), and shift it by up to `translate` of its (height, width) in both directions; with
    probability 1 - p a view is unchanged.

    VQGAN+CLIP: degrees (-15, 15), translate (0.1, 0), shear (-5, 5), p 0.7, zeros (kornia reads the 0.1 written there
    as vertical only). Referee-Can-Play: degrees (-30, 30), translate the same, zeros.
    Raises UsageError for illegal ranges, shears of 90 degrees or more, scales outside [0.01, 100], and a p or
    translations outside [0, 1].
    """

    degrees: Range = (0.0, 0.0)
    translate: tuple[float, float] = (0.0, 0.0)
    scale: Range = (1.0, 1.0)
    shear: Range = (0.0, 0.0)
    padding: Padding = "zeros"
    p: float = 1.0

    def __post_init__(self) -> None:
        check_ends("Affine(degrees={})", self.degrees)
        check_ends("Affine(scale={})", self.scale, 0.01, 100)
        check_ends("Affine(shear={})", self.shear, -89, 89)
        if not isinstance(self.translate, tuple) or len(self.translate) != 2:
            raise UsageError(
                f"Affine(translate={self.translate!r}): give fractions of the height and of the width, "
                "as in (0.1, 0.1)",
                "not_a_range",
                call=f"Affine(translate={self.translate!r})",
            )
        for fraction in self.translate:
            check_number("Affine(translate=({0}, {0}))", fraction, 0, 1, 0.1)
        check_number("Affine(p={})", self.p, 0, 1, 0.7)
        _check_padding("Affine", self.padding)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        height, width = images.shape[-2:]
        chosen = draws.chance(self.p)
        angle = torch.where(chosen, draws.uniform(*self.degrees), 0).deg2rad()
        scale = torch.where(chosen, draws.uniform(*self.scale), 1)
        slant = torch.where(chosen, draws.uniform(*self.shear), 0).deg2rad().tan()
        most = torch.tensor(self.translate[::-1], device=draws.device)  # x, y, as in grids
        shift = torch.where(chosen[:, None], draws.uniform(-1, 1, 2) * most, 0)

        # Inverse map, from a view's pixel to the picture's: shift, scale, rotation, shear. Grid units are half sides,
        # so rotations of rectangles need the ratio of height and width.
        cos, sin = angle.cos() / scale, angle.sin() / scale
        matrix = torch.stack(
            [cos + slant * sin, (slant * cos - sin) * (height / width), sin * (width / height), cos], 1
        ).unflatten(1, (2, 2))
        offset = -2 * torch.einsum("bij,bj->bi", matrix, shift)
        theta = torch.cat([matrix, offset[:, :, None]], 2)
        return sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), self.padding)


@final
@dataclass(frozen=True)
class Perspective:
    """Tilt each view: its corners move inwards, each by up to half of `distortion` of the width and of the height; with
    probability 1 - p a view is unchanged.

    CLIPDraw: 0.5 onto white (padding 1.0); CLIPStyler: 0.5; VQGAN+CLIP: 0.7, p 0.7; Referee-Can-Play: 0.2, p 0.4.
    Raises UsageError for a distortion outside [0, 0.99] and a p outside [0, 1].
    """

    distortion: float = 0.5
    p: float = 1.0
    padding: Padding = "zeros"

    def __post_init__(self) -> None:
        check_number("Perspective({})", self.distortion, 0, 0.99, 0.5)
        check_number("Perspective(p={})", self.p, 0, 1, 0.7)
        _check_padding("Perspective", self.padding)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        from kornia.geometry.transform import get_perspective_transform  # here, since its import takes a second

        height, width = images.shape[-2:]
        chosen = draws.chance(self.p)[:, None, None]
        inwards = torch.where(chosen, draws.uniform(0, self.distortion, 4, 2), 0)
        signs = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], device=draws.device)
        reach = torch.tensor([1 - 1 / width, 1 - 1 / height], device=draws.device)  # centre of a corner pixel
        corners = (signs * reach).expand_as(inwards)
        matrix = get_perspective_transform(corners * (1 - inwards), corners)
        x, y = (torch.arange(side, device=draws.device).mul(2).add(1).div(side).sub(1) for side in (width, height))
        places = torch.stack(
            [x.expand(height, -1), y[:, None].expand(-1, width), torch.ones_like(x).expand(height, -1)]
        )
        across, down, depth = (matrix @ places.flatten(1)).unflatten(2, (height, width)).unbind(1)
        return sample(images, torch.stack([across / depth, down / depth], 3), self.padding)


def sample(
    images: Float[Tensor, "b 3 h w"], grid: Float[Tensor, "b h2 w2 2"], padding: Padding
) -> Float[Tensor, "b 3 h2 w2"]:
    """Bilinear sampling at grid coordinates (x, y), where -1 and 1 are the outer edges of the border pixels."""
    # Half precision cannot resolve the coordinates of large pictures.
    wide = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    grid = grid.to(wide)
    if isinstance(padding, str):
        return F.grid_sample(wide, grid, padding_mode=padding, align_corners=False).to(images.dtype)
    return (F.grid_sample(wide - padding, grid, align_corners=False) + padding).to(images.dtype)


def _check_padding(name: str, padding: object) -> None:
    if padding not in ("zeros", "border", "reflection") and not isinstance(padding, int | float):
        raise UsageError(
            f"{name}(padding={padding!r}): use 'zeros', 'border', 'reflection' or a number, as in {name}(padding=1.0)",
            "unknown_choice",
            argument="padding",
            given=padding,
        )


@final
@dataclass(frozen=True)
class Translation:
    """Shift each view by up to `fraction` of its height down or up and of its width left or right, by whole pixels,
    uniformly; empty areas are 0. 0.125 is DiffAugment's. Raises UsageError for a fraction outside [0, 1]."""

    fraction: float = 0.125

    def __post_init__(self) -> None:
        check_number("Translation({})", self.fraction, 0, 1, 0.125)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        height, width = images.shape[-2:]
        rows = _moved(draws, height, round_half_up(self.fraction * height))
        columns = _moved(draws, width, round_half_up(self.fraction * width))
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        return pick(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1)) * inside[:, None]


@final
@dataclass(frozen=True)
class Jitter:
    """Roll each view by up to `pixels` down or up and left or right, cyclically,
    then keep the centre of `size` (default: all of it). Direct Ascent Synthesis takes 224 of 336, by 28 or 56.

    Raises UsageError for negative pixels and, when called, for pictures smaller than `size`.
    """

    pixels: int
    size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, int) or self.pixels < 0:
            message = f"Jitter({self.pixels!r}) is not a number of pixels: 0 or more, as in Jitter(28, size=224)"
            raise UsageError(message, "not_a_size", size=self.pixels)
        if self.size is not None:
            height_and_width(self.size)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h2 w2"]:
        height, width = images.shape[-2:]
        inner_height, inner_width = (height, width) if self.size is None else height_and_width(self.size)
        if inner_height > height or inner_width > width:
            raise UsageError(
                f"{self} keeps more than pictures of {height}x{width} have: "
                f"use Jitter({self.pixels}, size={min(height, width)}), or pictures larger by the jitter on each side",
                "too_large",
                size=self.size,
                most=min(height, width),
            )
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        rows = _moved(draws, height, self.pixels)[:, top : top + inner_height] % height
        columns = _moved(draws, width, self.pixels)[:, left : left + inner_width] % width
        return pick(images, rows, columns)


def pick(
    images: Float[Tensor, "b 3 h w"], rows: Int[Tensor, "b h2"], columns: Int[Tensor, "b w2"]
) -> Float[Tensor, "b 3 h2 w2"]:
    """Gather rows and columns per image (on a CPU three times as fast as indexing, including the gradient)."""
    places = (rows[:, :, None] * images.shape[-1] + columns[:, None]).flatten(1)[:, None]
    chosen = images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1))
    return chosen.unflatten(2, (rows.shape[1], columns.shape[1]))


def _moved(draws: Draws, side: int, most: int) -> Int[Tensor, "b side"]:
    """Source row (or column) of each row under a shift of up to `most`; may be outside."""
    return torch.arange(side, device=draws.device) - draws.integers(-most, most, 1)


def round_half_up(number: float) -> int:
    """Round lengths to whole pixels as DiffAugment does."""
    return int(number + 0.5)


@final
@dataclass(frozen=True)
class Cutout:
    """Blank (to 0) a box of `fraction` of the height and of the width of each view. As in DiffAugment the centre lies
    anywhere in the picture, so the box may be cut by the edge. Raises UsageError for a fraction outside [0, 1]."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_number("Cutout({})", self.fraction, 0, 1, 0.5)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        height, width = (round_half_up(self.fraction * side) for side in images.shape[-2:])
        top = draws.integers(0, images.shape[-2] - height % 2) - height // 2
        left = draws.integers(0, images.shape[-1] - width % 2) - width // 2
        return images * ~boxes(images, top, left, top + height, left + width)


@final
@dataclass(frozen=True)
class Erasing:
    """Blank (to 0), with probability p, a box inside each view: its area U(area) of the picture's, its height to its
    width log-uniform in `ratio`, limited to the picture. With `shared`, all views of a picture have the same box.

    VQGAN+CLIP's and Referee-Can-Play's ranges (area 0.1 to 0.4, ratio 0.3 to 1/0.3, shared); p is 0.7 and 1 there.
    Raises UsageError for illegal ranges, areas outside [0, 1], ratios not above 0, p outside [0, 1].
    """

    area: Range = (0.1, 0.4)
    ratio: Range = (0.3, 1 / 0.3)
    p: float = 1.0
    shared: bool = False

    def __post_init__(self) -> None:
        check_ends("Erasing(area={})", self.area, 0, 1)
        check_ends("Erasing(ratio={})", self.ratio, 0.01, 100)
        check_number("Erasing(p={})", self.p, 0, 1, 0.7)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        sides = images.shape[-2:]
        area = draws.uniform(*self.area, shared=self.shared) * math.prod(sides)
        ratio = draws.log_uniform(*self.ratio, shared=self.shared)
        lengths = ((area * ratio).sqrt(), (area / ratio).sqrt())
        height, width = (length.round().clamp(max=side) for length, side in zip(lengths, sides, strict=True))
        top = (draws.uniform(0, 1, shared=self.shared) * (sides[0] - height + 1)).floor()
        left = (draws.uniform(0, 1, shared=self.shared) * (sides[1] - width + 1)).floor()
        chosen = draws.chance(self.p, shared=self.shared)[:, None, None, None]
        return images * ~(boxes(images, top, left, top + height, left + width) & chosen)


def boxes(
    like: Float[Tensor, "b 3 h w"], top: Tensor, left: Tensor, bottom: Tensor, right: Tensor
) -> Bool[Tensor, "b 1 h w"]:
    """Boolean masks of boxes: rows top to bottom, columns left to right, exclusive ends, each (B,)."""

    def between(first: Tensor, end: Tensor, side: int) -> Bool[Tensor, "b side"]:
        places: Int[Tensor, " side"] = torch.arange(side, device=like.device)
        return (places >= first[:, None]) & (places < end[:, None])

    return (between(top, bottom, like.shape[-2])[:, :, None] & between(left, right, like.shape[-1])[:, None])[:, None]


@final
@dataclass(frozen=True)
class RandomCrop:
    """Uniformly random crop of each view, resized bilinearly to `size` (default: not resized).

    `side` is a whole number of pixels, which makes square crops (CLIPAG's notebook: 128 of 224, to 224), or a fraction
    of the picture's height and of its width (1.0 is all of it, 1 is one pixel). Raises UsageError for a side that is
    neither and, when called, for one larger than the picture.
    """

    side: int | float
    size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.side, int | float) or not 0 < self.side < math.inf:
            message = f"RandomCrop({self.side!r}) has no side: give pixels, as in 128, or a fraction, as in 0.5"
            raise UsageError(message, "not_a_size", size=self.side)
        if isinstance(self.side, float) and self.side > 1:
            raise UsageError(
                f"RandomCrop({self.side}) takes more than the picture: a fraction is at most 1.0, pixels are whole, "
                f"as in RandomCrop({int(self.side)})",
                "out_of_range",
                call=f"RandomCrop({self.side})",
            )
        if self.size is not None:
            height_and_width(self.size)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h2 w2"]:
        sides = [
            self.side if isinstance(self.side, int) else max(1, round_half_up(self.side * whole))
            for whole in images.shape[-2:]
        ]
        if isinstance(self.side, int) and self.side > min(images.shape[-2:]):
            height, width = images.shape[-2:]
            raise UsageError(
                f"a crop of {self.side} pixels is larger than pictures of {height}x{width}: use at most "
                f"RandomCrop({min(height, width)}), or a fraction, as in RandomCrop(0.5)",
                "too_large",
                size=self.side,
                most=min(height, width),
            )
        rows, columns = (
            draws.integers(0, whole - side, 1) + torch.arange(side, device=draws.device)
            for whole, side in zip(images.shape[-2:], sides, strict=True)
        )
        crops = pick(images, rows, columns)
        if self.size is None:
            return crops
        return F.interpolate(crops, height_and_width(self.size), mode="bilinear", align_corners=False)


@final
@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of each view of its own size and shape, resized to `size`: its area is U(area) of the picture's, its
    height to its width, over the picture's own, log-uniform in `ratio`, cut to what fits; all places are alike.

    CLIPDraw takes areas of 0.7 to 0.9 and ratios of 3/4 to 4/3. Bilinear without antialiasing, so a size far below
    the crop's skips pixels. Raises UsageError for illegal ranges, areas outside (0, 1], ratios not above 0.
    """

    size: int | tuple[int, int]
    area: Range = (0.7, 0.9)
    ratio: Range = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        height_and_width(self.size)
        check_ends(f"RandomResizedCrop({self.size}, area={{}})", self.area, 1e-6, 1)
        check_ends(f"RandomResizedCrop({self.size}, ratio={{}})", self.ratio, 0.01, 100)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h2 w2"]:
        area = draws.uniform(*self.area)
        ratio = draws.log_uniform(*self.ratio)
        # In units of half the picture, as of torch's grids: the picture spans -1 to 1.
        spans = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 1).clamp(max=1)
        centres = (1 - spans) * draws.uniform(-1, 1, 2)
        theta = torch.cat([torch.diag_embed(spans), centres[:, :, None]], 2)
        grid = F.affine_grid(theta, [len(images), 3, *height_and_width(self.size)], align_corners=False)
        return sample(images, grid, "border")


@final
@dataclass(frozen=True)
class Rescale:
    """Make each picture larger or smaller by U(times), bilinear, about its centre and within its frame: what is larger
    is cut, what is smaller is surrounded by 0. One number serves all views of a picture, as in the DiffAugment of
    CLIPAG's notebook, (0.8, 1.2) there; `Affine(scale=...)` draws one a view.

    Raises UsageError for an illegal range, or one that is not within 0.01 to 100.
    """

    times: Range = (0.8, 1.2)

    def __post_init__(self) -> None:
        check_ends("Rescale({})", self.times, 0.01, 100)

    def __call__(self, images: Float[Tensor, "b 3 h w"], draws: Draws) -> Float[Tensor, "b 3 h w"]:
        times = draws.uniform(*self.times, shared=True)[:: draws.views].tolist()
        pictures = images.split(draws.views)  # each to a size of its own, all its views at once
        return torch.cat([rescale(views, number) for views, number in zip(pictures, times, strict=True)])


def rescale(images: Float[Tensor, "b 3 h w"], times: float) -> Float[Tensor, "b 3 h w"]:
    """Rescale all images by the same factor within their frame; sides are truncated to whole pixels."""
    height, width = images.shape[-2:]
    inner_height, inner_width = max(1, int(times * height)), max(1, int(times * width))
    resized = F.interpolate(images, (inner_height, inner_width), mode="bilinear", align_corners=False)
    top, left = _halved(height - inner_height), _halved(width - inner_width)
    # Negative padding cuts.
    return F.pad(resized, (left, width - inner_width - left, top, height - inner_height - top))


def _halved(number: int) -> int:
    return int(number / 2)  # towards 0, as the notebook
