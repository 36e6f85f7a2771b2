"""The rasteriser against closed forms, a real one (resvg), finite differences, and itself without tiles."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustclip.drawing import Drawing, random_strokes, rasterise
from robustclip.drawing import raster as raster_module
from robustclip.drawing.raster import composite, covered_by_stroke
from robustclip.drawing.shapes import lines_of, to_svg
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.rng import generator

BLACK = (0.0, 0.0, 0.0, 1.0)


def line(*ends: tuple[float, float], width: float = 4.0, colour: tuple[float, ...] = BLACK) -> Drawing:
    """One straight stroke."""
    (x0, y0), (x1, y1) = ends
    points = torch.tensor([[x0 + t * (x1 - x0), y0 + t * (y1 - y0)] for t in (0, 1 / 3, 2 / 3, 1)])
    return shape(points, width=width, colour=colour)


def shape(points: Tensor, *, width: float = 0.0, colour: tuple[float, ...] = BLACK, filled: bool = False) -> Drawing:
    return Drawing(
        points[None, None],
        torch.tensor([[(len(points) - 1) // 3]]),
        torch.tensor([[width]], dtype=points.dtype),
        torch.tensor([[colour]], dtype=points.dtype),
        torch.tensor([[filled]]),
    )


def polygon(*corners: tuple[float, float]) -> Drawing:
    """A filled one, closed by the rasteriser."""
    points = [torch.tensor(corners[0])]
    for start, end in pairwise(corners):
        a, b = torch.tensor(start), torch.tensor(end)
        points += [a + (b - a) / 3, a + (b - a) * 2 / 3, b]
    return shape(torch.stack(points), filled=True)


def filled_shapes(seed: int, count: int, size: tuple[int, int]) -> Drawing:
    drawn = random_strokes(count, size, [generator(seed, "shapes")], reach=1.0, curves=(1, 4))
    return Drawing(drawn.points, drawn.curves, drawn.widths, drawn.colours, torch.ones_like(drawn.filled))


def by_resvg(drawing: Drawing, size: tuple[int, int]) -> np.ndarray:
    resvg_py = pytest.importorskip("resvg_py")
    png = bytes(resvg_py.svg_to_bytes(svg_string=to_svg(drawing, size)))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255


def ink(image: Tensor) -> float:
    """Pixels covered by black on white, (1,3,H,W)."""
    return (1 - image[0, 0]).sum().item()


# --- against a real rasteriser -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0, 5.0, 20.0])
def test_strokes_look_as_resvg_draws_them(width: float) -> None:
    size = (224, 224)
    drawing = random_strokes(256, size, [generator(0, "strokes")], width=width)
    found = rasterise(drawing, size)[0].permute(1, 2, 0).numpy()
    assert abs(found - by_resvg(drawing, size)).mean() <= 0.01


def test_filled_shapes_look_as_resvg_draws_them() -> None:
    size = (224, 160)
    drawing = filled_shapes(0, 60, size)
    found = rasterise(drawing, size)[0].permute(1, 2, 0).numpy()
    assert abs(found - by_resvg(drawing, size)).mean() <= 0.01


# --- closed forms ------------------------------------------------------------------------------------------------


def test_a_stroke_along_the_pixels_covers_its_rectangle() -> None:
    image = rasterise(line((8.0, 10.0), (24.0, 10.0), width=3.0), (20, 32))
    column = 1 - image[0, 0, :, 16]
    expected = torch.zeros(20)
    expected[[8, 11]], expected[9:11] = 0.5, 1.0  # from 8.5 to 11.5
    assert torch.allclose(column, expected, atol=1e-5)
    # Its rectangle and two half discs.
    assert ink(image) == pytest.approx(16 * 3 + torch.pi * 1.5**2, rel=0.01)


def test_a_stroke_of_no_length_is_a_disc_and_of_no_width_nothing() -> None:
    dot = rasterise(line((16.0, 16.0), (16.0, 16.0), width=10.0), (32, 32))
    assert ink(dot) == pytest.approx(torch.pi * 25, rel=0.01)
    assert ink(rasterise(line((4.0, 4.0), (20.0, 20.0), width=0.0), (32, 32))) == 0


def test_a_thin_stroke_covers_its_area() -> None:
    image = rasterise(line((0.0, 10.3), (32.0, 10.3), width=0.25), (20, 32))
    assert (1 - image[0, 0, :, 16]).sum().item() == pytest.approx(0.25, abs=1e-5)


def test_a_polygon_covers_its_area_and_closes_itself() -> None:
    triangle = rasterise(polygon((4.0, 4.0), (28.0, 4.0), (4.0, 28.0)), (32, 32))
    assert ink(triangle) == pytest.approx(24 * 24 / 2, rel=0.01)
    assert triangle[0, 0, 6, 6] == pytest.approx(0, abs=1e-6)
    assert triangle[0, 0, 26, 26] == 1


def test_inside_is_where_the_winding_number_is_not_zero() -> None:
    square = ((4.0, 4.0), (28.0, 4.0), (28.0, 28.0), (4.0, 28.0), (4.0, 4.0))
    hole = ((10.0, 10.0), (22.0, 10.0), (22.0, 22.0), (10.0, 22.0), (10.0, 10.0))
    same, reverse = polygon(*square, *hole, (4.0, 4.0)), polygon(*square, *hole[::-1], (4.0, 4.0))
    assert rasterise(same, (32, 32))[0, 0, 16, 16] == pytest.approx(0, abs=1e-6)
    assert rasterise(reverse, (32, 32))[0, 0, 16, 16] == 1


def test_shapes_are_laid_over_each_other_in_order() -> None:
    red = line((0.0, 8.0), (16.0, 8.0), width=8.0, colour=(1.0, 0.0, 0.0, 1.0))
    blue = line((0.0, 8.0), (16.0, 8.0), width=8.0, colour=(0.0, 0.0, 1.0, 0.25))
    both = Drawing(
        *(
            torch.cat(fields, 1)
            for fields in zip(*((d.points, d.curves, d.widths, d.colours, d.filled) for d in (red, blue)), strict=True)
        )
    )
    assert torch.allclose(rasterise(both, (16, 16))[0, :, 8, 8], torch.tensor([0.75, 0.0, 0.25]), atol=1e-6)


def test_many_opaque_shapes_over_each_other_show_the_last() -> None:
    one = line((0.0, 8.0), (16.0, 8.0), width=30.0)
    count = 300
    drawing = Drawing(
        one.points.repeat(1, count, 1, 1),
        one.curves.repeat(1, count),
        one.widths.repeat(1, count),
        torch.cat([torch.rand(1, count, 3, generator=torch.Generator().manual_seed(0)), torch.ones(1, count, 1)], 2),
        one.filled.repeat(1, count),
    )
    image = rasterise(drawing, (16, 16))
    assert torch.allclose(image, drawing.colours[0, -1, :3].view(1, 3, 1, 1).expand_as(image), atol=1e-6)


def test_compositing_equals_one_layer_after_the_other() -> None:
    draw = torch.Generator().manual_seed(0)
    pixel, rank = torch.randint(0, 5, (40,), generator=draw), torch.randperm(40, generator=draw)
    colour, alpha = torch.rand(40, 3, generator=draw), torch.rand(40, generator=draw)
    background = torch.rand(5, 3, generator=draw)
    expected = background.clone()
    for layer in rank.argsort().tolist():
        at, share = pixel[layer], alpha[layer]
        expected[at] = (1 - share) * expected[at] + share * colour[layer]
    assert torch.allclose(composite(background, pixel, rank, colour, alpha), expected, atol=1e-6)


def test_nothing_to_paint_leaves_the_background() -> None:
    behind = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    outside = line((100.0, 100.0), (1e7, 2e9))
    assert torch.equal(rasterise(outside, (16, 16), background=behind), behind)


def test_curves_become_as_many_lines_as_they_need() -> None:
    straight = lines_of(line((0.0, 0.0), (200.0, 100.0)))
    assert len(straight.starts) == 1
    bent = shape(torch.tensor([[0.0, 0.0], [0.0, 200.0], [200.0, 200.0], [200.0, 0.0]]), width=1.0)
    lines = lines_of(bent)
    # Each line's middle lies on the curve, to the tolerance: B(t) has x = 600 t^2 - 400 t^3 and y = 600 t (1 - t).
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    curve = torch.stack([600 * t**2 - 400 * t**3, 600 * t * (1 - t)], 1)
    middles = ((lines.starts + lines.ends) / 2).double()
    assert torch.cdist(middles, curve).amin(1).max() < 0.05
    assert 20 < len(middles) <= 64


# --- gradients ---------------------------------------------------------------------------------------------------


def scene() -> Drawing:
    """Two strokes, one of which leaves the picture, and a filled shape, in float64."""
    strokes = random_strokes(2, (24, 24), [generator(3, "gradients")], reach=0.8, width=3.0)
    fills = filled_shapes(5, 1, (24, 24))
    points = torch.zeros(1, 3, 13, 2, dtype=torch.float64)
    points[:, :2, :10], points[:, 2:] = strokes.points.double(), fills.points.double()
    return Drawing(
        points,
        torch.cat([strokes.curves, fills.curves], 1),
        torch.tensor([[2.3, 5.1, 0.0]], dtype=torch.float64),
        torch.cat([strokes.colours, fills.colours], 1).double(),
        torch.cat([strokes.filled, fills.filled], 1),
    )


def test_gradients_equal_finite_differences() -> None:
    drawing = scene()
    weights = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(points: Tensor, widths: Tensor, colours: Tensor) -> Tensor:
        made = Drawing(points, drawing.curves, widths, colours, drawing.filled)
        # Coverage has kinks where an edge's ramp begins; a wide one has fewer pixels at them.
        return (rasterise(made, (24, 24), softness=2.0) * weights).sum()

    given = [one.clone().requires_grad_() for one in (drawing.points, drawing.widths, drawing.colours)]
    found = torch.autograd.grad(value(*given), given)
    step = 1e-6
    for place, (values, gradient) in enumerate(zip(given, found, strict=True)):
        numeric = torch.zeros_like(gradient)
        for index in range(values.numel()):
            moved = [[one.detach().clone() for one in given] for _ in range(2)]
            moved[0][place].view(-1)[index] += step
            moved[1][place].view(-1)[index] -= step
            numeric.view(-1)[index] = (value(*moved[0]) - value(*moved[1])) / (2 * step)
        assert gradient.abs().max() > 0.01
        assert torch.allclose(gradient, numeric, rtol=1e-3, atol=2e-3), place


def test_padding_gets_no_gradient_and_no_ink() -> None:
    drawing = scene()
    points = drawing.points.clone()
    padded = torch.arange(points.shape[2]) > 3 * drawing.curves[0, :, None]
    points[0][padded] = 7.0
    points.requires_grad_()
    made = Drawing(points, drawing.curves, drawing.widths, drawing.colours, drawing.filled)
    image = rasterise(made, (24, 24))
    assert torch.equal(image, rasterise(drawing, (24, 24)))
    image.square().sum().backward()
    assert padded.any()
    assert points.grad is not None
    assert not points.grad[0][padded].any()


# --- batches, tiles and bad input ----------------------------------------------------------------------------------


def test_a_picture_is_the_same_in_any_batch_and_however_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (50, 70)
    drawing = random_strokes(30, size, [generator(seed, "strokes") for seed in range(3)], reach=0.5, width=4.0)
    whole = rasterise(drawing, size)
    assert torch.equal(whole[1:2], rasterise(drawing.picture(1), size))
    monkeypatch.setattr(raster_module, "AT_ONCE", 1)
    assert torch.equal(whole, rasterise(drawing, size))


def test_tiles_leave_nothing_out() -> None:
    """Against the distance of every pixel to every line, without tiles or fragments."""
    size = (40, 56)
    drawing = random_strokes(20, size, [generator(4, "strokes")], reach=0.9, width=5.0)
    lines = lines_of(drawing)
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], -1).flatten(0, 1)
    expected = torch.ones(len(pixels), 3)
    for row in range(20):
        mine = lines.shape == row
        a, d = lines.starts[mine], (lines.ends - lines.starts)[mine]
        place = (((pixels[:, None] - a) * d).sum(-1) / d.square().sum(-1).clamp(min=1e-12)).clamp(0, 1)
        distance = (pixels[:, None] - a - place[..., None] * d).norm(dim=-1).amin(1)
        alpha = (covered_by_stroke(distance, torch.tensor(2.5), 1.0) * drawing.colours[0, row, 3])[:, None]
        expected = (1 - alpha) * expected + alpha * drawing.colours[0, row, :3]
    found = rasterise(drawing, size)[0].flatten(1).T
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_is_not_a_number_is_said() -> None:
    broken = line((0.0, 0.0), (float("nan"), 4.0))
    with pytest.raises(RunError, check=coded("not_finite")):
        rasterise(broken, (16, 16))
    with pytest.raises(UsageError, match="softness 0"):
        rasterise(line((0.0, 0.0), (4.0, 4.0)), (16, 16), softness=0)


def test_a_drawing_whose_parts_do_not_fit_is_refused() -> None:
    good = line((0.0, 0.0), (4.0, 4.0))
    with pytest.raises(UsageError, check=coded("wrong_shape", points=(1, 1, 3, 2))):
        Drawing(good.points[:, :, :3], good.curves, good.widths, good.colours, good.filled)
    with pytest.raises(UsageError, check=coded("wrong_shape", argument="widths", shape=(1,))):
        Drawing(good.points, good.curves, good.widths[0], good.colours, good.filled)
    with pytest.raises(UsageError, check=coded("out_of_range", argument="curves", most=1)):
        Drawing(good.points, good.curves + 1, good.widths, good.colours, good.filled)
    with pytest.raises(UsageError, check=coded("wrong_shape", colours=(1, 1, 3))):
        Drawing(good.points, good.curves, good.widths, good.colours[..., :3], good.filled)
    with pytest.raises(UsageError, match="0 strokes"):
        random_strokes(0, (16, 16), [generator(0, "x")])


def test_random_strokes_are_clipdraws() -> None:
    drawing = random_strokes(400, (100, 300), [generator(seed, "start") for seed in range(2)], width=2.0)
    assert drawing.points.shape == (2, 400, 10, 2)
    assert set(drawing.curves.unique().tolist()) == {1, 2, 3}
    ways = drawing.points.diff(dim=2)
    assert ways[..., 0].abs().max() == pytest.approx(15, rel=0.01)  # 0.1 * 0.5 of 300
    assert ways[..., 1].abs().max() == pytest.approx(5, rel=0.01)
    first = drawing.points[:, :, 0]
    assert first[..., 0].max() > 250
    assert first[..., 1].max() <= 100
    assert 0 <= drawing.colours.min() <= drawing.colours.max() <= 1
    assert torch.equal(drawing.points[:1], random_strokes(400, (100, 300), [generator(0, "start")]).points)
