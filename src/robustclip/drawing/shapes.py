"""Shapes of a vector drawing, and random strokes to start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, final

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
        shapes_of = {
            "curves": self.curves.shape,
            "widths": self.widths.shape,
            "colours": self.colours.shape[:-1],
            "filled": self.filled.shape,
        }
        if wrong := [name for name, shape in shapes_of.items() if shape != shapes]:
            raise UsageError(
                f"{wrong[0]} are {tuple(shapes_of[wrong[0]])} for {tuple(shapes)} shapes: give one for each"
            )
        if self.colours.shape[-1] != 4:
            raise UsageError(f"colours are (P,S,4): red, green, blue, opacity; not {tuple(self.colours.shape)}")
        if self.curves.numel() and not 1 <= int(self.curves.min()) <= int(self.curves.max()) <= self.most_curves:
            raise UsageError(f"shapes of {self.points.shape[2]} points have 1 to {self.most_curves} curves each")

    @property
    def most_curves(self) -> int:
        """Maximum number of curves of a shape."""
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

    As CLIPDraw (clipdraw.ipynb): 1 to 3 curves; uniform first point; each next one `reach` U(-.5, .5) of the sides from
    the previous one; uniform colour and opacity. Raises UsageError for no strokes and invalid numbers of curves.
    """
    low, high = curves
    if count < 1 or not 1 <= low <= high:
        raise UsageError(f"{count} strokes of {low} to {high} curves: give 1 or more of 1 or more, as in 1 to 3")
    sides = torch.tensor([size[1], size[0]], dtype=torch.float32)
    points, number, colours = [], [], []
    for generator in generators:
        uniform = partial(torch.rand, generator=generator, device=generator.device)
        first = uniform(count, 1, 2)
        offsets = reach * (uniform(count, 3 * high, 2) - 0.5)
        points.append(torch.cat([first, first + offsets.cumsum(1)], 1).cpu() * sides)
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


TOLERANCE: Final = 0.05
"""Maximum distance of a line from its curve, in pixels."""
MOST_LINES: Final = 64
"""Lines of one curve: enough for curves of thousands of pixels."""


@final
@dataclass(frozen=True)
class Lines:
    """L lines from `starts` to `ends`, (L,2) in pixels with gradients to the drawing's points, in the order of shapes.

    shape: (L,) index of a line's shape, pictures major: p * S + s.
    """

    starts: Float[Tensor, "l 2"]
    ends: Float[Tensor, "l 2"]
    shape: Int[Tensor, " l"]


def lines_of(drawing: Drawing) -> Lines:
    """All curves of all shapes as line segments; filled shapes are closed.

    A curve's number of lines depends only on the curve, so pictures are independent.
    """
    shapes = drawing.points.shape[0] * drawing.points.shape[1]
    points = drawing.points.flatten(0, 1)
    pieces = points.unfold(1, 4, 3).transpose(2, 3)  # (shapes, curves, 4, 2)
    there = torch.arange(pieces.shape[1], device=points.device) < drawing.curves.flatten()[:, None]
    owner = torch.arange(shapes, device=points.device)[:, None].expand_as(there)[there]
    curves = pieces[there]
    counts = _lines_needed(curves.detach())
    curve = torch.repeat_interleave(counts)
    number = torch.arange(len(curve), device=points.device) - (counts.cumsum(0) - counts)[curve]
    share = number.to(points) / counts[curve]
    starts = _at(curves[curve], share)
    ends = _at(curves[curve], (number + 1).to(points) / counts[curve])
    shape = owner[curve]
    filled = drawing.filled.flatten()
    if filled.any():
        last = points[torch.arange(shapes, device=points.device), 3 * drawing.curves.flatten()]
        which = filled.nonzero()[:, 0]
        starts, ends = torch.cat([starts, last[which]]), torch.cat([ends, points[which, 0]])
        shape, order = torch.cat([shape, which]).sort(stable=True)
        starts, ends = starts[order], ends[order]
    return Lines(starts, ends, shape)


def _lines_needed(curves: Float[Tensor, "n 4 2"]) -> Int[Tensor, " n"]:
    """A cubic cut into n equal pieces is at most 6/8 d / n^2 away from its lines, d being the largest second difference
    of its control points: the interpolation error of a function whose second derivative is at most 6 d."""
    bend = (curves[:, :-2] - 2 * curves[:, 1:-1] + curves[:, 2:]).norm(dim=-1).amax(1)
    return (0.75 * bend / TOLERANCE).sqrt().ceil().clamp(1, MOST_LINES).long()


def _at(curves: Float[Tensor, "l 4 2"], t: Float[Tensor, " l"]) -> Float[Tensor, "l 2"]:
    """Bernstein's form of a cubic."""
    s = 1 - t
    weights = torch.stack([s**3, 3 * s * s * t, 3 * s * t * t, t**3], 1)
    return torch.einsum("lk,lkc->lc", weights, curves)
