"""What was tried on `synthesize clipdraw` and `synthesize clipstyler`: as in `cases`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .things import made

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(10))


def svg(text: str | bytes) -> Callable[[Path], Path]:
    """A maker of an SVG file."""

    def make(folder: Path) -> Path:
        (folder / "start.svg").write_bytes(text.encode() if isinstance(text, str) else text)
        return folder / "start.svg"

    return make


made("svg_empty", svg(""))
made("svg_cut", svg(HEAD + "<path d='M"))
made("svg_html", svg("<html><body/></html>"))
made("svg_laughs", svg(f"<!DOCTYPE svg [{LAUGHS}]>{HEAD}<text>&l9;</text></svg>"))
made("svg_outside", svg(f'<!DOCTYPE svg [<!ENTITY f SYSTEM "file:///etc/passwd">]>{HEAD}<text>&f;</text></svg>'))
made("svg_script", svg(HEAD + "<script>alert(1)</script></svg>"))
CLONES = "".join(f'<g id="g{n}">' + f'<use href="#g{n - 1}"/>' * 10 + "</g>" for n in range(9))
made("svg_clones", svg(HEAD + CLONES + "</svg>"))
made("svg_no_path", svg(HEAD + '<path d="M x y" stroke="red"/></svg>'))
made("svg_endless", svg(HEAD + '<path d="M 0 0 L 1e999 1" stroke="red"/></svg>'))
made("svg_no_size", svg('<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0L1 1" stroke="red"/></svg>'))
made("svg_deep", svg(HEAD + "<g>" * 3000 + "</g>" * 3000 + "</svg>"))
made("svg_utf16", svg((HEAD + "</svg>").encode("utf-16")))

DRAW = "synthesize clipdraw cat --referee {toy} --steps 0 --device cpu --out {out}"
STYLE = "synthesize clipstyler gold --referee {toy} --steps 0 --device cpu --out {out}"


def starts() -> Iterator[tuple[str, str, int, str]]:
    """SVG files that are none, or are more than a drawing."""
    for name, words in (
        ("svg_empty", "not well-formed"),
        ("svg_cut", "not well-formed"),
        ("svg_html", "its root is <html>"),
        ("svg_laughs", "declares entities"),
        ("svg_outside", "declares entities"),
        ("svg_script", "1 script left out"),
        ("svg_clones", "90 clone left out"),
        ("svg_no_path", "start.svg has"),
        ("svg_endless", "can't be read"),
        ("svg_no_size", "does not say how large it is"),
        ("svg_deep", "nests groups more than 100 deep"),
        ("svg_utf16", "zero bytes"),
    ):
        yield "a drawing to start from", f"{DRAW} --init {{{name}}}", 2, words
    yield "a drawing to start from", f"{DRAW} --init nowhere.svg", 2, "there is no file"
    yield "a drawing to start from", f"{DRAW} --strokes 0", 2, "greater than 0"
    yield "a drawing to start from", f"{DRAW} --strokes 1000000000000", 2, "take at least"
    yield "a drawing to start from", f"{DRAW} --curves 1000000000000", 2, "take at least"
    yield "a drawing to start from", f"{DRAW} --width 100 --widest 5", 2, "to --widest 5"
    yield "a drawing to start from", f"{DRAW} --width 0.5", 2, "is not from 1"
    yield "a drawing to start from", f"{DRAW} --widest 0.5", 2, "is below 1"
    yield "a drawing to start from", f"{DRAW} --softness nan", 2, "--softness"
    yield "a drawing to start from", f"{DRAW} --smallest-view 0.9 --largest-view 0.8", 2, "swap them"
    yield "a drawing to start from", f"{DRAW} --negatives --negative-weight 0", 2, "greater than 0"


def contents() -> Iterator[tuple[str, str, int, str]]:
    """Contents that are none."""
    for flags, words in (
        ("--content nowhere.png", "there is no content"),
        ("--content emoji:nothing", "there is no drawing"),
        ("--content {svg_html}", "is not a readable picture"),
        ("--source ' '", "--source is empty"),
        ("--size 8", "too small"),
        ("--content-features nowhere", "nowhere"),
        ("--threshold -1", "greater than or equal to 0"),
    ):
        yield "a content", f"{STYLE} {flags}", 2, words
    yield "a content", "synthesize clipstyler --referee {toy}", 2, "there is no prompt"


DRAWING = (*starts(), *contents())
