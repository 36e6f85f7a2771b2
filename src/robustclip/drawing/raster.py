"""Anti-aliased, differentiable rasteriser of vector drawings in pure torch: gradients to points, widths and colours.

Tiled like on a graphics card: each line is compared only with pixels of near tiles, without a graph, to find the
nearest line of each shape. Covered pixels become fragments, and the graph holds only these: its size is the painted
area, not pixels times curves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustclip.drawing.shapes import Drawing, Lines, lines_of
from robustclip.errors import RunError, UsageError

NEARLY: Final = 1 - 1e-9  # alpha of an opaque fragment, so that log(1 - alpha) is finite


def composite(
    background: Float[Tensor, "n 3"],
    pixel: Int[Tensor, " f"],
    rank: Int[Tensor, " f"],
    colour: Float[Tensor, "f 3"],
    alpha: Float[Tensor, " f"],
) -> Float[Tensor, "n 3"]:
    """Porter and Duff's "over": each of F fragments covers `alpha` of its `pixel` with `colour`, higher ranks on top.

    A fragment's visibility is its alpha times the product of (1 - alpha) of those above it. The products are
    differences of one cumulative sum of logarithms, in float64, for any number of fragments per pixel. Memory and time
    grow with F.
    """
    device = background.device
    if device.type == "mps":  # which has no float64
        parts = (background, pixel, rank, colour, alpha)
        return composite(*(part.cpu() for part in parts)).to(device)
    order = (pixel * (int(rank.max()) + 1 if len(rank) else 1) + rank).argsort()
    pixel, colour, alpha = pixel[order], colour[order].double(), alpha[order].double() * NEARLY
    passed = torch.log1p(-alpha)
    counts = torch.bincount(pixel, minlength=len(background))
    total = torch.cat([passed.new_zeros(1), passed.cumsum(0)])  # of the first k fragments
    end = counts.cumsum(0)
    visible = alpha * (total[end[pixel]] - total[1:]).exp()
    behind = (total[end] - total[end - counts]).exp()
    image = background.double() * behind[:, None]
    return image.index_add(0, pixel, colour * visible[:, None]).to(background.dtype)


TILE: Final = 8
"""Pixels of a tile's side."""
AT_ONCE: Final = 1 << 22
"""Distances of pixels and lines in memory at a time."""
TINY: Final = 1e-12


def rasterise(
    drawing: Drawing,
    size: tuple[int, int],
    *,
    background: Float[Tensor, "p 3 h w"] | float = 1.0,
    softness: float = 1.0,
) -> Float[Tensor, "p 3 h w"]:
    """P pictures of `size` (height, width) in [0,1], of shapes painted in order over the background (1.0: white).

    A pixel's coverage is the part of a segment of `softness` pixels across the edge that lies inside: at 1 a box filter
    for edges along the pixels. Larger values blur edges, so that more pixels contribute to their gradients. Gradients
    come from edges, where coverage changes, and are exact for the rendered picture.

    Raises UsageError for a softness that is not positive, RunError for points or widths that are not numbers.
    """
    if not softness > 0:
        message = f"softness {softness}: edges are blurred over a positive number of pixels, e.g. 1.0"
        raise UsageError(message, "not_positive", argument="softness", given=softness)
    if not (drawing.points.isfinite().all() and drawing.widths.isfinite().all()):
        raise RunError(
            "points or widths of strokes are not numbers: take smaller steps (--lr), or --dtype float32", "not_finite"
        )
    height, width = size
    lines = lines_of(drawing)
    found = _Fragments.cat(list(_fragments(drawing, lines, size, softness)), lines.starts.device)
    coverage = _coverage(drawing, lines, found, softness)
    colours = drawing.colours.flatten(0, 1)[found.shape]
    shapes = drawing.points.shape[1]
    pixel = found.shape // shapes * (height * width) + found.y * width + found.x
    if isinstance(background, Tensor):
        behind = background.permute(0, 2, 3, 1).reshape(-1, 3).to(drawing.points)
    else:
        behind = drawing.points.new_full((len(drawing) * height * width, 3), background)
    image = composite(behind, pixel, found.shape % shapes, colours[:, :3], coverage * colours[:, 3])
    return image.view(len(drawing), height, width, 3).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Fragments:
    """Pixels covered by a shape at least in part: position, nearest line, position on that line (0 to 1), and whether
    it is inside a filled shape."""

    shape: Int[Tensor, " f"]
    x: Int[Tensor, " f"]
    y: Int[Tensor, " f"]
    line: Int[Tensor, " f"]
    place: Float[Tensor, " f"]
    inside: Bool[Tensor, " f"]

    @staticmethod
    def cat(parts: list[_Fragments], device: torch.device) -> _Fragments:
        if not parts:
            none = torch.zeros(0, dtype=torch.long, device=device)
            return _Fragments(none, none, none, none, none.float(), none.bool())
        names = ("shape", "x", "y", "line", "place", "inside")
        return _Fragments(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _coverage(drawing: Drawing, lines: Lines, at: _Fragments, softness: float) -> Float[Tensor, " f"]:
    """Coverage of each fragment, with gradients.

    The nearest point of a line is a minimum of the distance, so its position on the line is a constant here.
    """
    start, end = lines.starts[at.line], lines.ends[at.line]
    nearest = start + at.place.to(start)[:, None] * (end - start)
    pixels = torch.stack([at.x, at.y], 1).to(start) + 0.5
    distance = (pixels - nearest).square().sum(1).clamp(min=TINY).sqrt()
    half = drawing.widths.flatten()[at.shape] / 2
    filled = drawing.filled.flatten()[at.shape]
    covered = covered_by_stroke(distance, half, softness)
    if filled.any():
        covered = torch.where(filled, covered_by_fill(distance, at.inside, softness), covered)
    return covered


def covered_by_stroke(distance: Float[Tensor, "*f"], half: Float[Tensor, "*f"], softness: float) -> Float[Tensor, "*f"]:
    """Share of the segment distance -+ softness / 2 inside -half to half."""
    low, high = torch.maximum(distance - softness / 2, -half), torch.minimum(distance + softness / 2, half)
    return ((high - low) / softness).clamp(0, 1)


def covered_by_fill(distance: Float[Tensor, "*f"], inside: Bool[Tensor, "*f"], softness: float) -> Float[Tensor, "*f"]:
    """Share of the segment across the edge that lies inside."""
    return (0.5 + torch.where(inside, distance, -distance) / softness).clamp(0, 1)


@torch.no_grad()
def _fragments(drawing: Drawing, lines: Lines, size: tuple[int, int], softness: float) -> Iterator[_Fragments]:
    """All fragments, a bounded number of distances at a time."""
    height, width = size
    across, down = -(-width // TILE), -(-height // TILE)
    filled = drawing.filled.flatten()
    half = (drawing.widths.flatten() / 2).masked_fill(filled, 0)
    line, tile = _near(lines, half + softness / 2, filled, (down, across))
    # A unit is a shape in a tile; its lines are adjacent in this order.
    unit, order = (lines.shape[line] * (down * across) + tile).sort(stable=True)
    line = line[order]
    unit, counts = unit.unique_consecutive(return_counts=True)
    first = counts.cumsum(0) - counts
    shape, tile = unit // (down * across), unit % (down * across)
    within = torch.arange(TILE * TILE, device=line.device)
    for chosen in _similar(counts, filled[shape]):
        most = int(counts[chosen].max())
        slots = torch.arange(most, device=line.device)
        real = slots < counts[chosen, None]
        candidates = line[first[chosen, None] + torch.minimum(slots, counts[chosen, None] - 1)]  # (u, most)
        x = (tile[chosen] % across * TILE)[:, None] + within % TILE
        y = (tile[chosen] // across * TILE)[:, None] + within // TILE
        distance, place, nearest = _nearest(lines, candidates, x, y)
        owner = shape[chosen, None].expand_as(x)
        if filled[shape[chosen[0]]]:
            inside = _inside(lines, candidates, real, x, y)
            covered = covered_by_fill(distance, inside, softness)
        else:
            inside = torch.zeros_like(x, dtype=torch.bool)
            covered = covered_by_stroke(distance, half[owner], softness)
        kept = (covered > 0) & (x < width) & (y < height)
        yield _Fragments(owner[kept], x[kept], y[kept], nearest[kept], place[kept], inside[kept])


def _near(
    lines: Lines, reach: Float[Tensor, " shapes"], filled: Bool[Tensor, " shapes"], tiles: tuple[int, int]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """(line, tile) pairs: the tiles that a stroke's line comes within `reach` of; all tiles of the box about a filled
    shape, whose inside needs all of its lines."""
    low, high = torch.minimum(lines.starts, lines.ends), torch.maximum(lines.starts, lines.ends)
    if filled.any():
        index = lines.shape[:, None].expand(-1, 2)
        box_low = low.new_full((len(filled), 2), torch.inf).scatter_reduce(0, index, low, "amin")
        box_high = high.new_full((len(filled), 2), -torch.inf).scatter_reduce(0, index, high, "amax")
        fills = filled[lines.shape, None]
        low, high = torch.where(fills, box_low[lines.shape], low), torch.where(fills, box_high[lines.shape], high)
    reaches = reach[lines.shape, None]
    last = torch.tensor([tiles[1], tiles[0]], device=low.device) - 1
    first_tile = ((low - reaches) / TILE).clamp(min=-1e6, max=1e6).floor().long().clamp(min=0)
    last_tile = torch.minimum(((high + reaches) / TILE).clamp(min=-1e6, max=1e6).floor().long(), last)
    spans = (last_tile - first_tile + 1).clamp(min=0)
    counts = spans.prod(1)
    line = torch.repeat_interleave(counts)
    number = torch.arange(len(line), device=low.device) - (counts.cumsum(0) - counts)[line]
    x = first_tile[line, 0] + number % spans[line, 0]
    y = first_tile[line, 1] + number // spans[line, 0]
    # A slanted line's box has tiles that it does not come near to.
    distance, _ = _to_line(lines.starts[line], lines.ends[line], *((at * TILE + TILE / 2).to(low) for at in (x, y)))
    close = (distance <= reaches[line, 0] + TILE * 0.5**0.5) | filled[lines.shape[line]]
    return line[close], (y * tiles[1] + x)[close]


def _similar(counts: Int[Tensor, " u"], filled: Bool[Tensor, " u"]) -> Iterator[Int[Tensor, " c"]]:
    """Units with similar numbers of lines, strokes or filled ones, as many at a time as memory is meant for."""
    # On the CPU, since MPS has no float64.
    bucket = (counts.cpu() - 1).clamp(min=0).double().add(0.5).log2().floor().long().clamp(min=-1) + 1
    kinds = bucket.to(counts.device) * 2 + filled.long()
    for kind in kinds.unique().tolist():
        which = (kinds == kind).nonzero()[:, 0]
        yield from which.split(max(1, AT_ONCE // (TILE * TILE * int(counts[which].max()))))


def _nearest(
    lines: Lines, candidates: Int[Tensor, "u c"], x: Int[Tensor, "u t"], y: Int[Tensor, "u t"]
) -> tuple[Float[Tensor, "u t"], Float[Tensor, "u t"], Int[Tensor, "u t"]]:
    """(distance, place on the line, line) of the nearest of the candidates to each pixel's middle."""
    starts, ends = lines.starts[candidates][:, :, None], lines.ends[candidates][:, :, None]
    distance, place = _to_line(starts, ends, *((at[:, None] + 0.5).to(starts) for at in (x, y)))
    distance, slot = distance.min(1)
    return distance, place.gather(1, slot[:, None])[:, 0], candidates.gather(1, slot)


def _to_line(
    starts: Float[Tensor, "*n 2"], ends: Float[Tensor, "*n 2"], x: Float[Tensor, "*n"], y: Float[Tensor, "*n"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """(distance, place from 0 to 1) of the point of a line nearest to (x, y); a line may be of no length."""
    (x0, y0), (dx, dy) = starts.unbind(-1), (ends - starts).unbind(-1)
    x, y = x - x0, y - y0
    place = ((x * dx + y * dy) / (dx * dx + dy * dy).clamp(min=TINY)).clamp(0, 1)
    return torch.hypot(x - place * dx, y - place * dy), place


def _inside(
    lines: Lines,
    candidates: Int[Tensor, "u c"],
    real: Bool[Tensor, "u c"],
    x: Int[Tensor, "u t"],
    y: Int[Tensor, "u t"],
) -> Bool[Tensor, "u t"]:
    """Whether the winding number about a pixel's middle is not 0: lines that cross the ray to its right, up or down."""
    starts, ends = lines.starts[candidates][:, :, None], lines.ends[candidates][:, :, None]
    (x0, y0), (x1, y1) = starts.unbind(-1), ends.unbind(-1)
    px, py = ((at[:, None] + 0.5).to(starts) for at in (x, y))
    up, down = (y0 <= py) & (y1 > py), (y0 > py) & (y1 <= py)
    side = (x1 - x0) * (py - y0) - (px - x0) * (y1 - y0)  # positive where the point lies on the line's left
    winding = (up & (side > 0)).int() - (down & (side < 0)).int()
    return (winding * real[..., None]).sum(1) != 0
