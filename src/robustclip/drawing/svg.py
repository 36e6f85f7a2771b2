"""Write drawings as SVG, with the same shapes, order and background."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final
from xml.etree import ElementTree

from robustclip.drawing.shapes import Drawing
from robustclip.errors import UsageError

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
    return UsageError(f"{name} has {what}, which is not supported: {cure}")


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
