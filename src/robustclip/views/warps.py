"""Affine and perspective warps with bilinear sampling.

Homographies are kornia's. The warps are as in kornia's `warp_affine` and `warp_perspective` (tests compare them), in
two thirds of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

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
                f"Affine(translate={self.translate!r}): give fractions of the height and of the width, as in (0.1, 0.1)"
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
            f"{name}(padding={padding!r}): use 'zeros', 'border', 'reflection' or a number, as in {name}(padding=1.0)"
        )
