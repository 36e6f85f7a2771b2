"""Drawings to SVG and back, and what is made of files that others wrote, or broke."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from robustclip.drawing import random_strokes, rasterise, svg_reader
from robustclip.drawing.shapes import Drawing, to_svg
from robustclip.drawing.svg_reader import read_svg
from robustclip.errors import UsageError, coded
from robustclip.runs.rng import generator

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 50">'


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "drawing.svg"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_a_drawing_comes_back_as_it_was(written) -> None:
    size = (64, 96)
    drawing = random_strokes(50, size, [generator(0, "strokes")], width=3.0)
    filled = torch.arange(50)[None] % 5 == 0
    drawing = Drawing(drawing.points, drawing.curves, drawing.widths, drawing.colours, filled)
    found, left_out = read_svg(written(to_svg(drawing, size, title="a <b> & c")), size)
    assert left_out == []
    # A fill is closed by a line of its own.
    assert torch.equal(found.curves, drawing.curves + filled.long())
    assert torch.equal(found.filled, drawing.filled)
    assert (rasterise(found, size) - rasterise(drawing, size)).abs().max() < 0.02


def test_svg_is_what_other_programs_read() -> None:
    text = to_svg(random_strokes(3, (20, 30), [generator(0, "strokes")]), (20, 30), title="a <b> & \x00c")
    root = ElementTree.fromstring(text)
    assert (root.get("viewBox"), root[0].text) == ("0 0 30 20", "a <b> & c")
    assert [child.tag.rpartition("}")[2] for child in root] == ["title", "rect", "path", "path", "path"]
    with pytest.raises(UsageError, match="one picture, not 2"):
        to_svg(random_strokes(3, (20, 30), [generator(seed, "strokes") for seed in range(2)]), (20, 30))


def test_files_of_others_look_as_resvg_draws_them(written) -> None:
    resvg_py = pytest.importorskip("resvg_py")
    text = (
        HEAD + '<rect width="100" height="50" fill="white"/><g transform="translate(10,0) rotate(4)">'
        '<path d="M10 10 C 11 22 33 4 45 26 Q 27 8 59 10 A 5 5 0 0 1 70 20 z m 1 1 l 3 13" stroke="red" fill="none" '
        'stroke-width="2" opacity=".5" stroke-opacity=".5" stroke-linecap="round" stroke-linejoin="round"/>'
        '<rect x="20" y="20" width="25" height="15" fill="#00f" opacity="0.5"/></g>'
        '<circle cx="13" cy="33" r="12" style="fill:green;stroke:black;fill-opacity:.3;stroke-opacity:.3"/>'
        '<polyline points="60,40 70,30 80,45" fill="none" stroke="orange" stroke-width="3" stroke-linecap="round" '
        'stroke-linejoin="round"/><line x1="5" y1="5" x2="30" y2="5" stroke="purple"/></svg>'
    )
    size = (100, 200)
    drawing, _ = read_svg(written(text), size)
    found = rasterise(drawing, size)[0].permute(1, 2, 0).numpy()
    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=200))
    assert abs(found - np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255).mean() <= 0.01


def test_a_drawing_is_fitted_about_the_middle(written) -> None:
    path = written(HEAD + '<path d="M0 0 L 100 50" stroke="black"/></svg>')
    drawing, _ = read_svg(path, (64, 64))
    assert torch.allclose(drawing.points[0, 0, [0, 3]], torch.tensor([[0.0, 16.0], [64.0, 48.0]]), atol=1e-4)
    assert drawing.widths[0, 0] == pytest.approx(0.64)


def test_what_runs_or_fetches_is_ignored_and_said(written) -> None:
    path = written(
        '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://example.com/none.dtd">'
        + HEAD.replace(">", ' onload="alert(1)">')
        + "<script>alert(1)</script><style>@import 'http://example.com/x.css';</style>"
        '<image href="http://example.com/a.png" width="9" height="9"/><use href="http://example.com/b.svg#c"/>'
        '<foreignObject><p>hello</p></foreignObject><path d="M 1 1 L 9 9" stroke="#123456"/>'
        '<path d="M 1 1 L 9 1 L 9 9" fill="url(http://example.com/c.svg#d)"/></svg>'
    )
    drawing, left_out = read_svg(path, (50, 100))
    assert drawing.points.shape[1] == 1
    assert set(left_out) == {
        "1 event handler", "1 script", "1 external reference", "1 picture", "1 clone", "1 foreign object",
        "1 gradient or pattern", "1 stroke with flat ends or sharp corners, drawn round",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "check"),
    [
        (b"", coded("not_xml")),
        (b"<svg", coded("not_xml")),
        (b"\x89PNG\r\n\x1a\n\x00\x00", coded("declares_entities")),
        ("<html></html>", coded("not_svg", root="html")),
        (HEAD + "</svg>", coded("no_paths", left_out={})),
        (HEAD + "<text>hi</text></svg>", coded("no_paths", left_out={"text": 1})),
        (HEAD + '<path d="M 1 1" stroke="red"/></svg>', coded("no_paths")),
        (HEAD + '<path d="M nonsense" stroke="red"/></svg>', lambda error: error.code in ("no_paths", "not_readable")),
        (HEAD + '<path d="M 0 0 L 1e999 1" stroke="red"/></svg>', coded("not_readable")),
        ('<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0 L1 1" stroke="red"/></svg>', coded("no_size")),
        ('<!DOCTYPE svg [<!ENTITY a "b">]>' + HEAD + "&a;</svg>", coded("declares_entities")),
    ],
)
def test_a_broken_file_says_what_is_wrong(text: str | bytes, check, written) -> None:
    with pytest.raises(UsageError, check=check):
        read_svg(written(text), (64, 64))


def test_a_drawing_of_too_many_curves_is_refused(written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg_reader, "MOST_NUMBERS", 7)
    with pytest.raises(UsageError, check=coded("too_large", shapes=2, curves=1)):
        read_svg(written(HEAD + '<path d="M0 0L1 1M2 2L3 3" stroke="red"/></svg>'), (64, 64))


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path, written) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read_svg(tmp_path / "none.svg", (64, 64))
    with pytest.raises(UsageError, match="can't be read"):
        read_svg(tmp_path, (64, 64))
    with pytest.raises(UsageError, match="larger than 10 MB"):
        read_svg(written(b" " * 10_000_001), (64, 64))
