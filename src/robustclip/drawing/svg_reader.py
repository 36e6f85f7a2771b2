"""Read SVG files as drawings: paths and basic shapes become strokes and filled shapes.

Other elements are left out and reported: pictures, text, clones, gradients, and everything active or external.
Unsupported properties that change the look of paths are refused. Nothing outside the file is read.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import torch

from robustclip.drawing.shapes import BACKGROUND, Drawing, check_honoured, lines_of, share, tag_of
from robustclip.errors import UsageError, require

LARGEST: Final = 10_000_000
"""Bytes of a file."""
DEEPEST: Final = 100
"""Maximum depth of groups, because XML is read and written recursively."""
MOST_NUMBERS: Final = 4_000_000
"""Coordinates of a drawing, shapes times those of the longest."""
LEFT_OUT: Final = {
    "script": "script",
    "foreignObject": "foreign object",
    "image": "picture",
    "use": "clone",
    "text": "text",
    "animate": "animation",
    "animateTransform": "animation",
    "animateMotion": "animation",
    "set": "animation",
    "filter": "filter",
    "mask": "mask",
    "clipPath": "clip path",
    "pattern": "pattern",
    "marker": "marker",
    "symbol": "symbol",
}
GRID: Final = 64
"""Rows and columns of the points at which a path and its parts are compared."""
SHARES: Final = {"Min": 0.0, "Mid": 0.5, "Max": 1.0}
UNITS: Final = {"px": 1.0, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4, "pt": 96 / 72, "pc": 16.0}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")

Curve = list[tuple[float, float]]  # 3n + 1 points
Shape = tuple[Curve, float, list[float], bool]  # points, width, colour, filled


def read_svg(path: str | Path, size: tuple[int, int]) -> tuple[Drawing, list[str]]:
    """Read an SVG: (the drawing, fitted and centred in `size` (height, width); notes on dropped parts).

    A shape with a fill and a stroke becomes two, and each part of a path with several parts a shape of its own. Raises
    UsageError for a file that can't be read, is no SVG, declares entities, has nothing to draw, holes, or what is not
    honoured here (see `check_honoured`).
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{str(path)[:200]} can't be read ({error.strerror or error})", "not_readable") from error
    root, notes = _checked(data, path.name)
    check_honoured(root, path.name, notes)
    shapes = list(_shapes(root, path.name, notes))
    if not shapes:
        message = f"{path.name} has no path with a fill or a stroke, which would be drawn: {_listed(notes)}"
        raise UsageError(message, "no_paths", left_out=dict(notes))
    scale, shift = _fit(root, size, path.name)
    return _drawing(shapes, scale, shift, path.name), [f"{count} {name}" for name, count in notes.items()]


def _checked(data: bytes, name: str) -> tuple[ElementTree.Element, Counter[str]]:
    """The root element without what is left out, which is counted by its name."""
    if len(data) > LARGEST:
        raise UsageError(
            f"{name} is larger than {LARGEST // 10**6} MB: simplify it, a drawing to start from is small", "too_large"
        )
    if re.search(rb"<!\s*(ENTITY|DOCTYPE[^>]*\[)", data, re.IGNORECASE) or b"\0" in data:
        raise UsageError(
            f"{name} declares entities or holds zero bytes: save it as plain SVG, in UTF-8", "declares_entities"
        )
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UsageError(f"{name} is not well-formed XML ({error}): save it as SVG once more", "not_xml") from error
    if tag_of(root) != "svg":
        raise UsageError(
            f"{name} is XML, but its root is <{tag_of(root)[:40]}>, not <svg>", "not_svg", root=tag_of(root)
        )
    left_out: Counter[str] = Counter()
    if _prune(root, left_out) > DEEPEST:
        raise UsageError(f"{name} nests groups more than {DEEPEST} deep: ungroup them")
    return root, left_out


def _prune(root: ElementTree.Element, left_out: Counter[str]) -> int:
    """Remove what is left out; how deep what stays is nested."""
    stack, deepest = [(root, 0)], 0
    while stack:
        parent, depth = stack.pop()
        deepest = max(deepest, depth)
        for attribute in [key for key in parent.attrib if key.rpartition("}")[2].lower().startswith("on")]:
            left_out["event handler"] += 1
            del parent.attrib[attribute]
        for child in list(parent):
            tag = tag_of(child)
            if tag == "rect" and child.get("id") == BACKGROUND:  # of a file that we wrote
                parent.remove(child)
            elif tag in LEFT_OUT:
                left_out[LEFT_OUT[tag]] += 1
                parent.remove(child)
            elif tag == "style" and re.search(r"@import|url\(\s*['\"]?(?!#)", child.text or ""):
                left_out["external reference"] += 1
                parent.remove(child)
            else:
                stack.append((child, depth + 1))
    return deepest


def _shapes(root: ElementTree.Element, name: str, notes: Counter[str]) -> Iterator[Shape]:
    """In the file's order."""
    require("svgelements", "synthesis", "reading SVG")
    import svgelements

    root = ElementTree.fromstring(ElementTree.tostring(root))
    if box := _view_box(root):
        root.set("width", str(box[2]))
        root.set("height", str(box[3]))
    try:
        elements = list(
            svgelements.SVG.parse(io.StringIO(ElementTree.tostring(root, "unicode")), reify=True).elements()
        )
        for element in elements:
            if not isinstance(element, svgelements.Shape):
                continue
            values: dict[str, Any] = element.values
            if values.get("visibility") in ("hidden", "collapse") or values.get("display") == "none":
                continue
            parts = [curve for part in _subpaths(svgelements, element) if (curve := _curve(svgelements, part))]
            opacity = share(str(values.get("opacity", 1)))
            fill, stroke = (
                None if _is_reference(values.get(paint), notes) else _rgba(getattr(element, paint), opacity)
                for paint in ("fill", "stroke")
            )
            width = float(element.implicit_stroke_width or 0)
            evenodd = values.get("fill-rule") == "evenodd"
            if fill and parts and (_holed(parts, evenodd) or _crossed(parts, evenodd, fill[3] < 1, name)):
                raise UsageError(
                    f"{name} has a filled path with holes, or parts that overlap: split it into plain paths", "holes"
                )
            if fill:  # black where a file says nothing
                yield from ((points, 0.0, fill, True) for points in parts if _has_inside(points))
            if stroke and width > 0:
                yield from ((points, width, stroke, False) for points in parts)
    except UsageError:
        raise
    except (ValueError, TypeError, IndexError, AttributeError, KeyError, ZeroDivisionError, OverflowError) as error:
        # What the parser raises for paths and transforms that are none.
        raise UsageError(
            f"{name} has a path or transform that can't be read ({str(error)[:100]}): mend it", "not_readable"
        ) from error


def _is_reference(paint: Any, notes: Counter[str]) -> bool:
    """Whether a fill or stroke is not a colour but a gradient or pattern from elsewhere."""
    found = str(paint or "").strip().startswith("url")
    if found:
        notes["gradient or pattern"] += 1
    return found


def _subpaths(svgelements: Any, element: Any) -> Iterator[Any]:
    whole = abs(svgelements.Path(element))  # a turned rectangle still has its transform
    whole.approximate_arcs_with_cubics()
    yield from whole.as_subpaths()


def _curve(svgelements: Any, part: Any) -> Curve | None:
    """A part of a path as cubic curves; None where it only moves."""
    points: Curve = []
    for segment in part:
        if isinstance(segment, svgelements.Move):
            continue
        start, end = (_pair(at) for at in (segment.start, segment.end))
        if isinstance(segment, svgelements.CubicBezier):
            first, second = _pair(segment.control1), _pair(segment.control2)
        elif isinstance(segment, svgelements.QuadraticBezier):  # raised by one degree
            control = _pair(segment.control)
            first, second = _between(start, control, 2 / 3), _between(end, control, 2 / 3)
        else:  # a line, or the one that closes
            if isinstance(segment, svgelements.Close) and points and start == end:
                continue
            first, second = _between(start, end, 1 / 3), _between(start, end, 2 / 3)
        points += [first, second, end] if points else [start, first, second, end]
    if not all(math.isfinite(number) for point in points for number in point):
        raise ValueError("a coordinate is not finite")
    return points or None


def _holed(parts: list[Curve], evenodd: bool) -> bool:
    """Whether parts of one path take from each other's inside: one that lies in the box of another and runs the other
    way, or by the even-odd rule boxes that meet."""
    boxes = torch.tensor([[min(x), min(y), max(x), max(y)] for x, y in (zip(*part, strict=True) for part in parts)])
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    others = torch.eye(len(parts)) == 0
    if evenodd:
        return bool(((low < boxes[None, :, 2:]) & (boxes[None, :, :2] < high)).all(2)[others].any())
    within = ((low <= boxes[None, :, :2]) & (boxes[None, :, 2:] <= high)).all(2)
    signs = torch.tensor([_area(part) > 0 for part in parts])
    return bool((within & (signs[:, None] != signs[None]))[others].any())


def _crossed(parts: list[Curve], evenodd: bool, see_through: bool, name: str) -> bool:
    """Whether a path differs from its parts drawn one above the other, each where its winding number is not 0, at
    points of a grid: a line that crosses itself by the even-odd rule, parts that take from each other's inside, or
    parts above each other that are seen through."""
    if len(parts) < 2 and not evenodd:
        return False
    left, top, right, below = (
        pick(one[axis] for part in parts for one in part) for pick in (min, max) for axis in (0, 1)
    )
    scale = GRID / max(right - left, below - top, 1e-30)
    shapes: list[Shape] = [(part, 0.0, [0.0, 0.0, 0.0, 1.0], True) for part in parts]
    lines = lines_of(_drawing(shapes, scale, (-scale * left, -scale * top), name))
    places = torch.arange(GRID) + 0.5
    (x0, y0), (x1, y1) = lines.starts.unbind(1), lines.ends.unbind(1)
    row, line = ((y0 <= places[:, None]) != (y1 <= places[:, None])).nonzero().unbind(1)
    across = x0[line] + (places[row] - y0[line]) / (y1 - y0)[line] * (x1 - x0)[line]
    turns = (y1 - y0)[line, None].sign() * (across[:, None] > places)
    winding = torch.zeros(GRID * len(parts), GRID).index_add(0, row * len(parts) + lines.shape[line], turns)
    each = winding.unflatten(0, (GRID, len(parts)))
    drawn, whole = (each != 0).sum(1), each.sum(1)
    inside = whole % 2 != 0 if evenodd else whole != 0
    return bool((inside != (drawn > 0)).any() or (see_through and (drawn > 1).any()))


def _area(points: Curve) -> float:
    """Of the polygon of its points: positive where it runs clockwise on the screen."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True))


def _has_inside(points: Curve) -> bool:
    """Whether there is anything between the points: they do not all lie on one line."""
    (x0, y0), (x1, y1) = points[0], max(points, key=lambda at: math.dist(at, points[0]))
    least = 1e-9 * math.dist((x0, y0), (x1, y1))
    return any(abs((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) > least for x, y in points)


def _drawing(shapes: list[Shape], scale: float, shift: tuple[float, float], name: str) -> Drawing:
    longest = max(len(points) for points, *_ in shapes)
    if len(shapes) * longest > MOST_NUMBERS:
        message = f"{name} has {len(shapes)} shapes of up to {longest // 3} curves: simplify it"
        raise UsageError(message, "too_large", shapes=len(shapes), curves=longest // 3)
    placed = torch.zeros(1, len(shapes), longest, 2)
    for row, (points, *_) in enumerate(shapes):
        placed[0, row, : len(points)] = torch.tensor(points) * scale + torch.tensor(shift)
        placed[0, row, len(points) :] = placed[0, row, len(points) - 1]
    return Drawing(
        placed,
        torch.tensor([[(len(points) - 1) // 3 for points, *_ in shapes]]),
        torch.tensor([[width * scale for _, width, *_ in shapes]]),
        torch.tensor([[colour for *_, colour, _ in shapes]]),
        torch.tensor([[filled for *_, filled in shapes]]),
    )


def _fit(root: ElementTree.Element, size: tuple[int, int], name: str) -> tuple[float, tuple[float, float]]:
    """Scale, and what is added to x and y after it: the viewBox in the file's width and height, and these in `size`."""
    box = _view_box(root)
    sides = [_length(root.get(side)) for side in ("width", "height")]
    if box and not all(sides):
        sides = box[2:]
    width, height = sides
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise UsageError(f'{name} does not say how large it is: give <svg> a viewBox="0 0 WIDTH HEIGHT"', "no_size")
    scale = min(size[1] / width, size[0] / height)
    shift = ((size[1] - scale * width) / 2, (size[0] - scale * height) / 2)
    if not box:
        return scale, shift
    inner = min(width / box[2], height / box[3])
    aspect = root.get("preserveAspectRatio", "").strip() or "xMidYMid"
    found = re.fullmatch(r"x(Min|Mid|Max)Y(Min|Mid|Max)(\s+meet)?", aspect)
    if found is None and not math.isclose(width / box[2], height / box[3], rel_tol=1e-3):
        message = f'{name} has preserveAspectRatio="{aspect[:40]}": give width and height the shape of its viewBox'
        raise UsageError(message, "unsupported", what="preserveAspectRatio")
    shares = [SHARES[one] for one in found.groups()[:2]] if found else [0.5, 0.5]
    empty = width - inner * box[2], height - inner * box[3]
    return scale * inner, (shift[0] + scale * shares[0] * empty[0], shift[1] + scale * shares[1] * empty[1])


def _view_box(root: ElementTree.Element) -> list[float] | None:
    numbers = [float(found) for found in _NUMBER.findall(root.get("viewBox", ""))]
    return numbers if len(numbers) == 4 and 0 < numbers[2] < math.inf and 0 < numbers[3] < math.inf else None


def _length(text: str | None) -> float:
    """In pixels of 96 to the inch; 0 for what is none, or a share of what is around."""
    found = re.fullmatch(rf"({_NUMBER.pattern})\s*({'|'.join(UNITS)})?", (text or "").strip())
    return float(found[1]) * UNITS[found[2] or "px"] if found else 0.0


def _rgba(colour: Any, opacity: float) -> list[float] | None:
    """Red, green, blue, opacity in [0,1]; None where nothing is painted."""
    if colour is None or colour.value is None:
        return None
    return [colour.red / 255, colour.green / 255, colour.blue / 255, colour.alpha / 255 * opacity]


def _pair(point: Any) -> tuple[float, float]:
    return float(point.x), float(point.y)


def _between(a: tuple[float, float], b: tuple[float, float], share: float) -> tuple[float, float]:
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


def _listed(notes: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in notes.items()) + " left out" if notes else "it is empty"
