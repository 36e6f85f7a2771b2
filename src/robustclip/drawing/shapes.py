"""Shapes of a vector drawing, random strokes to start from, and the drawing as SVG, with the same shapes, order and
background."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, final
from xml.etree import ElementTree

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
            message = f"points of a drawing are (P,S,3n+1,2), not {tuple(self.points.shape)}"
            raise UsageError(message, "wrong_shape", points=tuple(self.points.shape))
        shapes = self.points.shape[:2]
        shapes_of = {
            "curves": self.curves.shape,
            "widths": self.widths.shape,
            "colours": self.colours.shape[:-1],
            "filled": self.filled.shape,
        }
        if wrong := [name for name, shape in shapes_of.items() if shape != shapes]:
            message = f"{wrong[0]} are {tuple(shapes_of[wrong[0]])} for {tuple(shapes)} shapes: give one for each"
            raise UsageError(message, "wrong_shape", argument=wrong[0], shape=tuple(shapes_of[wrong[0]]))
        if self.colours.shape[-1] != 4:
            message = f"colours are (P,S,4): red, green, blue, opacity; not {tuple(self.colours.shape)}"
            raise UsageError(message, "wrong_shape", colours=tuple(self.colours.shape))
        if self.curves.numel() and not 1 <= int(self.curves.min()) <= int(self.curves.max()) <= self.most_curves:
            message = f"shapes of {self.points.shape[2]} points have 1 to {self.most_curves} curves each"
            raise UsageError(message, "out_of_range", argument="curves", most=self.most_curves)

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


SHAPES: Final = ("path", "rect", "circle", "ellipse", "line", "polyline", "polygon")
HARMLESS: Final = {
    "clip-path": ("none",),
    "mask": ("none",),
    "filter": ("none",),
    "stroke-dasharray": ("none", "0"),
    "mix-blend-mode": ("normal",),
    "paint-order": ("normal", "fill", "fill stroke", "fill stroke markers"),
    "vector-effect": ("none",),
    "transform-origin": ("0", "0 0"),
}
"""Unsupported properties, with the values that have no effect."""
ALIGNED: Final = ("", "xMidYMid", "xMidYMid meet")
ROUND: Final = "stroke with flat ends or sharp corners, drawn round"
SELECTORS: Final = re.compile(r"\s*(?:[.#]?[\w-]+|\*)(?:\s*,\s*(?:[.#]?[\w-]+|\*))*\s*")


def check_honoured(root: ElementTree.Element, name: str, notes: Counter[str]) -> None:
    """Replace the opacity of groups by that of their one shape, and count strokes whose ends are drawn round.

    Raises UsageError for clip paths, masks, filters, dashes, blending, paint orders, strokes that do not scale,
    transforms in styles, alignment inside the file, stylesheets of more than plain selectors, and an opacity over
    several shapes or over fill and stroke of one.
    """
    _check(root, name, 1.0, {}, notes)


def _check(
    element: ElementTree.Element, name: str, opacity: float, inherited: Mapping[str, str], notes: Counter[str]
) -> int:
    """Number of fills and strokes in an element."""
    tag = tag_of(element)
    if tag == "style":
        _check_stylesheet(element.text or "", name)
        return 0
    if tag == "switch":
        raise _refused(name, "<switch>", "keep one of its children")
    said = properties(element)
    for key, values in HARMLESS.items():
        if key in said and said[key] not in values:
            raise _refused(name, f'{key}="{said[key][:60]}"', "flatten or expand it into plain paths")
    if "transform" in _declarations(element.get("style", "")):
        raise _refused(name, "a transform in a style", "write it as the attribute transform")
    if inherited and element.get("preserveAspectRatio", "").strip() not in ALIGNED:
        raise _refused(name, "preserveAspectRatio inside the file", "leave it out")
    if said.get("stroke-width", "").endswith("%"):
        raise _refused(name, f'stroke-width="{said["stroke-width"]}"', "give a number")
    own = share(said.get("opacity", "1"))
    _drop_opacity(element)
    now = {"fill": "black", "stroke": "none", **inherited, **said}
    if tag in SHAPES:
        stroked = now["stroke"] != "none"
        painted = int(now["fill"] != "none" and tag != "line") + int(stroked)
        if stroked and not (now.get("stroke-linecap") == now.get("stroke-linejoin") == "round"):
            notes[ROUND] += 1
        element.set("opacity", repr(opacity * own))
    else:
        painted = sum(_check(child, name, opacity * own, now, notes) for child in element)
    if own < 1 and painted > 1:
        what = "fill and stroke" if tag in SHAPES else f"{painted} fills and strokes"
        raise _refused(name, f'opacity="{own:g}" over {what} together', "use fill-opacity and stroke-opacity of each")
    return painted


def _check_stylesheet(text: str, name: str) -> None:
    """Raise UsageError for unsupported rules."""
    for rule in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).split("}"):
        if not rule.strip():
            continue
        selector, brace, body = rule.partition("{")
        if not brace or not SELECTORS.fullmatch(selector) or "!important" in body:
            raise _refused(name, f"the style {rule.strip()[:60]!r}", "use plain selectors: .name, #name, path")
        for key, value in _declarations(body).items():
            if key in ("opacity", "transform") or (key in HARMLESS and value not in HARMLESS[key]):
                raise _refused(name, f"{key} in a stylesheet", "write it as an attribute, or expand it")


def properties(element: ElementTree.Element) -> dict[str, str]:
    """Attributes, overridden by declarations of the style."""
    return {key: value.strip() for key, value in element.attrib.items()} | _declarations(element.get("style", ""))


def share(text: str) -> float:
    """An opacity, `0.5` or `50%`, in [0,1]; 1 if invalid."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return 1.0
    return min(max(number, 0.0), 1.0)


def _declarations(style: str) -> dict[str, str]:
    pairs = (part.partition(":") for part in style.split(";") if ":" in part)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _drop_opacity(element: ElementTree.Element) -> None:
    element.attrib.pop("opacity", None)
    if "style" in element.attrib:
        kept = {key: value for key, value in _declarations(element.attrib["style"]).items() if key != "opacity"}
        element.set("style", ";".join(f"{key}:{value}" for key, value in kept.items()))


def tag_of(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else "comment"


def _refused(name: str, what: str, cure: str) -> UsageError:
    return UsageError(f"{name} has {what}, which is not supported: {cure}", "unsupported", what=what.split("=")[0])


BACKGROUND: Final = "background"
"""The id of the background rectangle, which is not a shape."""
PLACES: Final = 3  # decimals of a coordinate: a thousandth of a pixel


def to_svg(drawing: Drawing, size: tuple[int, int], *, background: str | None = "#ffffff", title: str = "") -> str:
    """The drawing of one picture, of `size` (height, width) in pixels, as the text of an SVG file: its
    viewBox, without width and height, so that it fills the page.

    Colours are rounded to 8 bits a channel. Raises UsageError for a drawing of several pictures.
    """
    if len(drawing) != 1:
        raise UsageError(f"an SVG file shows one picture, not {len(drawing)}: use drawing.picture(0)")
    height, width = size
    sides = f'width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
            *([f"<title>{_escaped(title)}</title>"] if title else []),
            *([f'<rect id="{BACKGROUND}" {sides} fill="{background}"/>'] if background else []),
            *_shapes(drawing),
            "</svg>\n",
        ]
    )


def _shapes(drawing: Drawing) -> Iterator[str]:
    fields = (drawing.points, drawing.curves, drawing.widths, drawing.colours, drawing.filled)
    for points, curves, width, colour, filled in zip(
        *(field.detach().cpu()[0].tolist() for field in fields), strict=True
    ):
        path = _path(points[: 3 * curves + 1])
        rgb = "#" + "".join(f"{round(255 * min(max(value, 0), 1)):02x}" for value in colour[:3])
        opacity = _number(min(max(colour[3], 0), 1))
        if filled:
            yield f'<path d="{path} Z" fill="{rgb}" fill-opacity="{opacity}"/>'
        else:
            yield (
                f'<path d="{path}" fill="none" stroke="{rgb}" stroke-opacity="{opacity}" '
                f'stroke-width="{_number(max(width, 0))}" stroke-linecap="round" stroke-linejoin="round"/>'
            )


def _path(points: list[list[float]]) -> str:
    pairs = [f"{_number(x)} {_number(y)}" for x, y in points]
    return f"M {pairs[0]} " + " ".join("C " + ", ".join(pairs[at : at + 3]) for at in range(1, len(pairs), 3))


def _number(value: float) -> str:
    return f"{value:.{PLACES}f}".rstrip("0").rstrip(".") or "0"


def _escaped(text: str) -> str:
    plain = "".join(letter for letter in text if letter.isprintable())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
