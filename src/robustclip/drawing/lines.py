"""Flatten Bezier curves to line segments, as many as each needs for its curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.drawing.shapes import Drawing

TOLERANCE: Final = 0.05
"""Pixels that a line may be away from its curve."""
MOST_LINES: Final = 64
"""Lines of one curve: enough for curves of thousands of pixels."""


@final
@dataclass(frozen=True)
class Lines:
    """L lines from `starts` to `ends`, (L,2) in pixels with gradients to the drawing's points, in the order of shapes.

    shape: (L,) which shape a line belongs to, pictures major: p * S + s.
    """

    starts: Float[Tensor, "l 2"]
    ends: Float[Tensor, "l 2"]
    shape: Int[Tensor, " l"]


def lines_of(drawing: Drawing) -> Lines:
    """All curves of all shapes as lines; a filled shape also has the line that closes it.

    A curve's number of lines depends on nothing but the curve, so no picture depends on its neighbours.
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
