"""Write drawings as SVG, with the same shapes, order and background."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from robustclip.drawing.shapes import Drawing
from robustclip.errors import UsageError

BACKGROUND: Final = "background"
"""The id of the rectangle that is none of the drawing's shapes."""
PLACES: Final = 3  # decimals of a coordinate: a thousandth of a pixel


def to_svg(drawing: Drawing, size: tuple[int, int], *, background: str | None = "#ffffff", title: str = "") -> str:
    """The drawing of one picture, of `size` (height, width) in pixels, as the text of an SVG file: these are its
    viewBox, and it has no width or height of its own, so that it fills the page that shows it.

    Colours are rounded to 8 bits a channel. Raises UsageError for a drawing of several pictures.
    """
    if len(drawing) != 1:
        raise UsageError(f"an SVG file shows one picture, and these are {len(drawing)}: write drawing.picture(0)")
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
