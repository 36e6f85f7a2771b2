"""Shapes of a vector drawing, and random strokes to start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from robustclip.errors import UsageError


@final
@dataclass(frozen=True)
class Drawing:
    """P pictures of S shapes each, painted in order, the last one on top.

    points      (P,S,M,2) control points, x then y, in pixels; (0, 0) is the picture's upper left corner. A shape of n
                cubic curves has 3n + 1 of them, end points shared; what follows them is padding.
    curves      (P,S) how many curves each shape has: at least 1, 3n + 1 <= M.
    widths      (P,S) of the stroke in pixels, with round ends and joints; a filled shape has none.
    colours     (P,S,4) red, green, blue and opacity in [0,1], not premultiplied.
    filled      (P,S) whether the shape is the inside of its curve, closed by a straight line where it is open, instead
                of a stroke along it. Inside is where the winding number is not 0.

    Raises UsageError where shapes do not fit together.
    """

    points: Float[Tensor, "p s m 2"]
    curves: Int[Tensor, "p s"]
    widths: Float[Tensor, "p s"]
    colours: Float[Tensor, "p s 4"]
    filled: Bool[Tensor, "p s"]

    def __post_init__(self) -> None:
        if self.points.ndim != 4 or self.points.shape[-1] != 2 or self.points.shape[2] % 3 != 1:
            raise UsageError(f"points of a drawing are (P,S,3n+1,2), not {tuple(self.points.shape)}")
        shapes = self.points.shape[:2]
        given = {
            "curves": self.curves.shape,
            "widths": self.widths.shape,
            "colours": self.colours.shape[:-1],
            "filled": self.filled.shape,
        }
        if wrong := [name for name, shape in given.items() if shape != shapes]:
            raise UsageError(f"{wrong[0]} are {tuple(given[wrong[0]])} for {tuple(shapes)} shapes: give one for each")
        if self.colours.shape[-1] != 4:
            raise UsageError(f"colours are (P,S,4): red, green, blue, opacity; not {tuple(self.colours.shape)}")
        if self.curves.numel() and not 1 <= int(self.curves.min()) <= int(self.curves.max()) <= self.most_curves:
            raise UsageError(f"shapes of {self.points.shape[2]} points have 1 to {self.most_curves} curves each")

    @property
    def most_curves(self) -> int:
        """Curves that a shape has room for."""
        return (self.points.shape[2] - 1) // 3

    def __len__(self) -> int:
        return len(self.points)

    def picture(self, index: int) -> Drawing:
        """One of the pictures, as a drawing of one."""
        return self._mapped(lambda field: field[index : index + 1])

    def repeated(self, count: int) -> Drawing:
        """The first picture `count` times."""
        return self.picture(0)._mapped(lambda field: field.repeat(count, *[1] * (field.ndim - 1)))

    def to(self, device: str | torch.device) -> Drawing:
        """The drawing on another device."""
        return self._mapped(lambda field: field.to(device))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Drawing:
        return Drawing(*(change(field) for field in (self.points, self.curves, self.widths, self.colours, self.filled)))


def random_strokes(
    count: int,
    size: tuple[int, int],
    generators: Sequence[Generator],
    *,
    curves: tuple[int, int] = (1, 3),
    reach: float = 0.1,
    width: float = 1.0,
    device: str | torch.device = "cpu",
) -> Drawing:
    """`count` open strokes for each of P pictures of `size` (height, width), each picture from its own generator.

    As CLIPDraw (clipdraw.ipynb): 1 to 3 curves; the first point anywhere; each next one `reach` U(-.5, .5) of the sides
    away from the one before; colour and opacity uniform.

    Raises UsageError for no strokes, and for numbers of curves that are none.
    """
    low, high = curves
    if count < 1 or not 1 <= low <= high:
        raise UsageError(f"{count} strokes of {low} to {high} curves: give 1 or more of 1 or more, as in 1 to 3")
    sides = torch.tensor([size[1], size[0]], dtype=torch.float32)
    points, number, colours = [], [], []
    for generator in generators:
        uniform = partial(torch.rand, generator=generator, device=generator.device)
        first = uniform(count, 1, 2)
        ways = reach * (uniform(count, 3 * high, 2) - 0.5)
        points.append(torch.cat([first, first + ways.cumsum(1)], 1).cpu() * sides)
        number.append(torch.randint(low, high + 1, (count,), generator=generator, device=generator.device).cpu())
        colours.append(uniform(count, 4).cpu())
    shapes = (len(generators), count)
    return Drawing(
        torch.stack(points).to(device),
        torch.stack(number).to(device),
        torch.full(shapes, float(width), device=device),
        torch.stack(colours).to(device),
        torch.zeros(shapes, dtype=torch.bool, device=device),
    )
