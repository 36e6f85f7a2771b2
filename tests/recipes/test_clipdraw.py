"""CLIPDraw: what it writes beside pictures, where it can start from, and its faithful and its fixed mode."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import robustclip
from robustclip.data.images import save_image
from robustclip.drawing import rasterise
from robustclip.drawing.svg_reader import read_svg
from robustclip.errors import UsageError, coded
from robustclip.referees.base import TwoTower
from robustclip.referees.toy import toy_referee
from robustclip.synthesis import studio
from robustclip.synthesis.painted import Result
from robustclip.synthesis.terms import Stream, piecewise

START = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><script>alert(1)</script>'
    '<path d="M 2 2 L 14 14" stroke="#ff0000" stroke-width="2"/>'
    '<path d="M 2 14 L 14 2 L 14 14 Z" fill="#0000ff"/></svg>'
)


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Result]:
    def call(**arguments: object) -> Result:
        short = {"steps": 3, "views": 2, "strokes": 12, "device": "cpu", "dtype": "float32", "out": tmp_path / "run"}
        return robustclip.synthesize(["a cat"], toy_referee(), recipe="clipdraw", **{**short, **arguments})

    return call


def test_the_svg_renders_to_the_picture(draw: Callable[..., Result]) -> None:
    made = draw(seeds="0..1", size="16x24")
    for item, image in zip(made.items, made.images, strict=True):
        drawing, left_out = read_svg(made.folder / "svg" / f"{item.id}.svg", (16, 24))
        assert left_out == []
        # But for coordinates of three decimals and colours of 8 bits.
        assert (rasterise(drawing, (16, 24))[0] - image).abs().max() < 0.02


def test_a_drawing_goes_on_from_an_svg(
    draw: Callable[..., Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "start.svg").write_text(START)
    made = draw(init=str(tmp_path / "start.svg"), steps=0)
    found, _ = read_svg(made.folder / "svg" / f"{made.items[0].id}.svg", (16, 16))
    wanted, _ = read_svg(tmp_path / "start.svg", (16, 16))
    assert torch.allclose(found.points, wanted.points, atol=1e-3)
    assert torch.equal(found.filled, wanted.filled)
    assert "start.svg: left out 1 script" in capsys.readouterr().err


def test_a_drawing_takes_its_colours_from_an_image(draw: Callable[..., Result], tmp_path: Path) -> None:
    red = torch.tensor([1.0, 0.0, 0.0])
    save_image(red.view(3, 1, 1).expand(3, 20, 20), tmp_path / "red.png")
    made = draw(init=str(tmp_path / "red.png"), steps=0)
    colours = set(re.findall(r'stroke="(#\w+)"', (made.folder / "svg" / f"{made.items[0].id}.svg").read_text()))
    assert colours == {"#ff0000"}


@pytest.mark.parametrize(("name", "code"), [("none.svg", "missing_file"), ("bad.svg", "not_xml")])
def test_a_start_that_is_none_is_told_at_once(
    name: str, code: str, draw: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "bad.svg").write_text("<svg")
    with pytest.raises(UsageError, check=coded(code)):
        draw(init=str(tmp_path / name))
    assert not (tmp_path / "run").exists()


def test_the_faithful_mode_leaves_out_the_normalisation(
    draw: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[TwoTower] = []
    paint = studio.optimise

    def watched(canvas: object, streams: list[Stream], **rest: object) -> tuple[Tensor, object]:
        seen.append(next(iter(streams[0].terms)).loss.targets[0].referee)
        return paint(canvas, streams, **rest)

    monkeypatch.setattr(studio, "optimise", watched)
    fixed = draw(normalise=True, out=tmp_path / "fixed")
    faithful = draw(normalise=False, out=tmp_path / "faithful")
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(seen[1].preprocess(pixels), pixels)
    assert not torch.equal(seen[0].preprocess(pixels), pixels)
    assert not torch.equal(fixed.images, faithful.images)
    # Told is the similarity as the referee itself sees it, in both.
    referee = toy_referee()
    found = (referee.embed_images(faithful.images) * referee.embed_texts(["a cat"])).sum(1)
    assert torch.allclose(faithful.similarity, found, atol=1e-5)


def test_negatives_push_away(draw: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[Tensor] = []
    paint = studio.optimise

    def watched(canvas: object, streams: list[Stream], **rest: object) -> tuple[Tensor, object]:
        weights.append(next(iter(streams[0].terms)).loss.targets[0].weights)
        return paint(canvas, streams, **rest)

    monkeypatch.setattr(studio, "optimise", watched)
    draw(negatives=True)
    assert torch.allclose(weights[0], torch.tensor([[1.0, -0.3, -0.3]]))


def test_points_slow_down_and_the_others_do_not() -> None:
    schedule = piecewise(1000, {0.5: 0.4, 0.75: 0.1})
    assert [schedule(step) for step in (0, 499, 500, 749, 750, 999)] == [1.0, 1.0, 0.4, 0.4, 0.1, 0.1]
    points, widths = (torch.nn.Parameter(torch.zeros(1, 2)) for _ in range(2))
    groups = [{"name": "points", "params": [points], "lr": 1.0}, {"name": "widths", "params": [widths], "lr": 0.1}]
    stream = Stream(None, torch.optim.SGD(groups), schedule={"points": schedule})  # type: ignore[arg-type]
    stream.step([torch.ones(1, 2), torch.ones(1, 2)], 800)
    assert torch.allclose(points, torch.full((1, 2), -0.1))
    assert torch.allclose(widths, torch.full((1, 2), -0.1))


def test_swapping_the_referee_changes_nothing_else(tmp_path: Path) -> None:
    arguments = {"steps": 1, "views": 2, "strokes": 12, "device": "cpu", "dtype": "float32"}
    records = []
    for name in ("emoji-vanilla", "emoji-robust"):
        made = robustclip.synthesize(["a cat"], name, recipe="clipdraw", out=tmp_path / name, **arguments)
        records.append(json.loads((made.folder / "run.json").read_text()))
    first, second = (record["arguments"] for record in records)
    assert {key for key in first if first[key] != second[key]} == {"referee"}
    assert records[0]["notes"]["loss"] == records[1]["notes"]["loss"]
