"""What the reader makes of SVG files, against resvg: rendered alike, refused by name, or said to be left out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustclip.drawing import rasterise
from robustclip.drawing.svg_reader import read_svg
from robustclip.errors import UsageError, coded

SIZE = (100, 200)
NS = 'xmlns="http://www.w3.org/2000/svg"'
V = f'<svg {NS} viewBox="0 0 100 50">'
S = '<path d="M10 10 L60 30 L20 40 Z" fill="red"/>'
# ruff: noqa: E501  (a file of another program a line)
# fmt: off
SAME = {
    "evenodd without a crossing": (
        f'{V}<path d="M10 10 L60 30 L20 40 Z" fill="red" fill-rule="evenodd"/></svg>'),
    "star by the winding rule": (
        f'{V}<path d="M50 2 L65 48 L25 18 H75 L35 48 Z" fill="red"/></svg>'),
    "overlap of one direction": (
        f'{V}<path d="M10 5 H40 V30 H10 Z M30 20 H70 V45 H30 Z" fill="red"/></svg>'),
    "parts that touch, seen through": (
        f'{V}<path d="M10 5 H40 V30 H10 Z M40 5 H70 V30 H40 Z" fill="red" fill-opacity="0.5"/></svg>'),
    "viewbox offset": (
        f'<svg {NS} viewBox="-20 -10 100 50">{S}</svg>'),
    "viewbox commas": (
        f'<svg {NS} viewBox="0,0,100,50">{S}</svg>'),
    "viewbox + width px": (
        f'<svg {NS} width="200" height="100" viewBox="0 0 100 50">{S}</svg>'),
    "viewbox aspect differs": (
        f'<svg {NS} width="100" height="100" viewBox="0 0 100 50">{S}</svg>'),
    "aspect xMin": (
        f'<svg {NS} width="100" height="100" viewBox="0 0 100 50" preserveAspectRatio="xMinYMin meet">'
        f'{S}</svg>'),
    "width mm": (
        f'<svg {NS} width="100mm" height="50mm"><path d="M10 10 L160 30 L20 140 Z" fill="red"/></svg>'),
    "width in px": (
        f'<svg {NS} width="100px" height="50px">{S}</svg>'),
    "rect mm": (
        f'{V}<rect x="2mm" y="1mm" width="10mm" height="5mm" fill="red"/></svg>'),
    "rect percent": (
        f'{V}<rect x="10%" y="10%" width="50%" height="50%" fill="red"/></svg>'),
    "stroke mm": (
        f'{V}<path d="M10 10 L60 30" stroke="red" stroke-width="1mm" stroke-linecap="round"/></svg>'),
    "group opacity single": (
        f'{V}<g opacity="0.5">{S}</g></svg>'),
    "nested group opacity": (
        f'{V}<g opacity="0.5"><g opacity="0.5">{S}</g></g></svg>'),
    "opacity percent": (
        f'{V}<path d="M10 10 L60 30 L20 40 Z" fill="red" opacity="50%"/></svg>'),
    "fill-opacity": (
        f'{V}<path d="M10 10 L60 30 L20 40 Z" fill="red" fill-opacity="0.3"/></svg>'),
    "translate rotate scale": (
        f'{V}<g transform="translate(20 5) rotate(20) scale(.5)">{S}</g></svg>'),
    "scale non uniform stroke": (
        f'{V}<g transform="scale(2 .5)">'
        '<path d="M5 20 L30 80" stroke="red" stroke-width="6" stroke-linecap="round"/></g></svg>'),
    "skewX": (
        f'{V}<g transform="skewX(30)">{S}</g></svg>'),
    "matrix": (
        f'{V}<g transform="matrix(.5 .2 -.1 .8 20 5)">{S}</g></svg>'),
    "defs shape": (
        f'{V}<defs><path id="p" d="M0 0 L100 0 L100 50 Z" fill="red"/></defs>'
        '<path d="M10 10 L60 30 L20 40 Z" fill="blue"/></svg>'),
    "nested svg": (
        f'{V}<svg x="20" y="10" width="50" height="20" viewBox="0 0 100 50">{S}</svg></svg>'),
    "css class": (
        f'{V}<style>.a{{fill:lime}}</style><path class="a" d="M10 10 L60 30 L20 40 Z"/></svg>'),
    "currentColor": (
        f'{V}<g color="lime"><path fill="currentColor" d="M10 10 L60 30 L20 40 Z"/></g></svg>'),
    "hsl": (
        f'{V}<path fill="hsl(120,100%,25%)" d="M10 10 L60 30 L20 40 Z"/></svg>'),
    "rgba": (
        f'{V}<path fill="rgba(255,0,0,.4)" d="M10 10 L60 30 L20 40 Z"/></svg>'),
    "visibility": (
        f'{V}<g visibility="hidden">{S}<path visibility="visible" d="M60 10 h20 v20 z"/></g></svg>'),
    "display none": (
        f'{V}<g display="none">{S}</g><path d="M60 10 h20 v20 z"/></svg>'),
    "rounded rect": (
        f'{V}<rect x="10" y="10" width="60" height="30" rx="10" fill="red"/></svg>'),
    "ellipse": (
        f'{V}<ellipse cx="40" cy="25" rx="30" ry="15" fill="red"/></svg>'),
    "polygon": (
        f'{V}<polygon points="10,10 60,30 20,40" fill="red"/></svg>'),
    "overflow": (
        f'{V}<path d="M-50 10 L160 30 L20 140 Z" fill="red"/></svg>'),
    "only height": (
        f'<svg {NS} height="50" viewBox="0 0 100 50">{S}</svg>'),
    "stroke inherits": (
        f'{V}<g stroke="red" stroke-width="5" stroke-linecap="round" fill="none">'
        '<path d="M10 10 L60 30"/></g></svg>'),
    "3d/bad transform": (
        f'{V}<g transform="perspective(3)">{S}</g></svg>'),
    "marker": (
        f'{V}<marker id="m" markerWidth="9" markerHeight="9" refX="4" refY="4">'
        '<circle cx="4" cy="4" r="4"/></marker>'
        '<path d="M10 10 L60 30" stroke="red" marker-end="url(#m)"/></svg>'),
    "stroke-opacity": (
        f'{V}<path d="M10 10 L60 30" stroke="red" stroke-width="8" stroke-opacity=".4" stroke-linecap="round"/>'
        '</svg>'),
}
REFUSED = {
    "aspect none": (coded("unsupported", what="preserveAspectRatio"),
        f'<svg {NS} width="100" height="100" viewBox="0 0 100 50" preserveAspectRatio="none">{S}</svg>'),
    "aspect slice": (coded("unsupported", what="preserveAspectRatio"),
        f'<svg {NS} width="100" height="100" viewBox="0 0 100 50" preserveAspectRatio="xMidYMid slice">'
        f'{S}</svg>'),
    "stroke percent": (coded("unsupported", what="stroke-width"),
        f'{V}<path d="M10 10 L60 30" stroke="red" stroke-width="5%" stroke-linecap="round"/></svg>'),
    "group opacity": (coded("unsupported", what="opacity"),
        f'{V}<g opacity="0.5">{S}<rect x="20" y="20" width="30" height="20" fill="blue"/></g></svg>'),
    "opacity fill+stroke": (coded("unsupported", what="opacity"),
        f'{V}<path d="M10 10 L60 30 L20 40 Z" fill="red" stroke="blue" stroke-width="6" stroke-linecap="round" stroke-linejoin="round" opacity="0.5"/>'
        '</svg>'),
    "transform style": (coded("unsupported", what="a transform in a style"),
        f'{V}<g style="transform:translate(20px,5px)">{S}</g></svg>'),
    "transform-origin": (coded("unsupported", what="transform-origin"),
        f'{V}<g transform="rotate(30)" transform-origin="50 25">{S}</g></svg>'),
    "clip-path": (coded("unsupported", what="clip-path"),
        f'{V}<clipPath id="c"><rect x="0" y="0" width="30" height="50"/></clipPath>'
        f'<g clip-path="url(#c)">{S}</g></svg>'),
    "mask": (coded("unsupported", what="mask"),
        f'{V}<mask id="c"><rect x="0" y="0" width="30" height="50" fill="white"/></mask>'
        f'<g mask="url(#c)">{S}</g></svg>'),
    "filter": (coded("unsupported", what="filter"),
        f'{V}<filter id="c"><feGaussianBlur stdDeviation="3"/></filter><g filter="url(#c)">{S}</g></svg>'),
    "evenodd hole": (coded("holes"),
        f'{V}<path d="M10 5 H60 V45 H10 Z M20 15 H50 V35 H20 Z" fill="red" fill-rule="evenodd"/></svg>'),
    "evenodd star": (coded("holes"),
        f'{V}<path d="M50 2 L65 48 L25 18 H75 L35 48 Z" fill="red" fill-rule="evenodd"/></svg>'),
    "nonzero overlap of opposite directions": (coded("holes"),
        f'{V}<path d="M10 5 H40 V30 H10 Z M30 20 V45 H70 V20 Z" fill="red"/></svg>'),
    "overlap seen through": (coded("holes"),
        f'{V}<path d="M10 5 H40 V30 H10 Z M30 20 H70 V45 H30 Z" fill="red" fill-opacity="0.5"/></svg>'),
    "nonzero hole": (coded("holes"),
        f'{V}<path d="M10 5 H60 V45 H10 Z M20 15 V35 H50 V15 Z" fill="red"/></svg>'),
    "dash": (coded("unsupported", what="stroke-dasharray"),
        f'{V}<path d="M10 10 L90 40" stroke="red" stroke-width="4" stroke-dasharray="8 8"/></svg>'),
    "css descendant": (coded("unsupported", what="the style 'g path{fill:lime'"),
        f'{V}<style>g path{{fill:lime}}</style><g><path d="M10 10 L60 30 L20 40 Z"/></g></svg>'),
    "paint-order": (coded("unsupported", what="paint-order"),
        f'{V}<path paint-order="stroke" d="M20 10 h40 v30 h-40 Z" fill="red" stroke="blue" stroke-width="8" stroke-linejoin="round" stroke-linecap="round"/>'
        '</svg>'),
    "non-scaling-stroke": (coded("unsupported", what="vector-effect"),
        f'{V}<g transform="scale(3)">'
        '<path vector-effect="non-scaling-stroke" d="M5 5 L25 12" stroke="red" stroke-width="3" stroke-linecap="round"/>'
        '</g></svg>'),
    "switch": (coded("unsupported", what="<switch>"),
        f'{V}<switch>{S}<path d="M60 10 h20 v20 z" fill="blue"/></switch></svg>'),
    "mix-blend": (coded("unsupported", what="mix-blend-mode"),
        f'{V}<rect width="60" height="50" fill="lime"/><g style="mix-blend-mode:multiply">{S}</g></svg>'),
    "em unit": (coded("not_readable"),
        f'{V}<rect x="1em" y="5" width="2em" height="1em" fill="red"/></svg>'),
    "style important": (coded("unsupported", what="the style 'path{fill:lime !important'"),
        f'{V}<style>path{{fill:lime !important}}</style>{S}</svg>'),
}
SAID = {
    "butt cap": ("flat ends",
        f'{V}<path d="M20 25 L80 25" stroke="red" stroke-width="20"/></svg>'),
    "miter": ("flat ends",
        f'{V}<path d="M20 40 L50 10 L80 40" fill="none" stroke="red" stroke-width="12"/></svg>'),
    "use": ("clone",
        f'{V}<path id="p" d="M10 10 L30 30 L20 40 Z" fill="red"/><use href="#p" x="50"/></svg>'),
    "gradient": ("gradient",
        f'{V}<linearGradient id="g"><stop stop-color="red"/><stop offset="1" stop-color="blue"/>'
        '</linearGradient><path fill="url(#g)" d="M10 10 L60 30 L20 40 Z"/><path d="M60 10 h20 v20 z"/>'
        '</svg>'),
}
# fmt: on


def by_resvg(text: str) -> np.ndarray:
    """The file at 96 dots an inch, fitted into SIZE about its middle, on white."""
    resvg_py = pytest.importorskip("resvg_py")

    def drawn(width: int) -> Image.Image:
        png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=width, dpi=96))
        return Image.open(io.BytesIO(png)).convert("RGBA")

    wide = drawn(400)
    picture = drawn(round(wide.width * min(SIZE[1] / wide.width, SIZE[0] / wide.height)))
    paper = Image.new("RGBA", SIZE[::-1], "white")
    paper.alpha_composite(picture, ((SIZE[1] - picture.width) // 2, (SIZE[0] - picture.height) // 2))
    return np.asarray(paper.convert("RGB")) / 255


def written(folder: Path, text: str) -> Path:
    (folder / "a.svg").write_text(text)
    return folder / "a.svg"


@pytest.mark.parametrize("name", SAME)
def test_what_is_honoured_looks_as_resvg_draws_it(name: str, tmp_path: Path) -> None:
    drawing, _ = read_svg(written(tmp_path, SAME[name]), SIZE)
    found = rasterise(drawing, SIZE)[0].permute(1, 2, 0).numpy()
    assert abs(found - by_resvg(SAME[name])).mean() <= 0.01


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_honoured_is_refused(name: str, tmp_path: Path) -> None:
    check, text = REFUSED[name]
    with pytest.raises(UsageError, check=check):
        read_svg(written(tmp_path, text), SIZE)


@pytest.mark.parametrize("name", SAID)
def test_what_is_left_out_or_drawn_otherwise_is_said(name: str, tmp_path: Path) -> None:
    fragment, text = SAID[name]
    assert fragment in " ".join(read_svg(written(tmp_path, text), SIZE)[1])
