"""Every canvas renders [0,1], goes downhill under every loss, and is put back into its legal set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustclip.canvases import Canvas, Pixels, Pyramid, Strokes
from robustclip.canvases.pixels import dynamic_threshold, powers_of_two
from robustclip.drawing import random_strokes
from robustclip.errors import UsageError, coded
from robustclip.losses import Cosine, Spherical, Target, TotalVariation
from robustclip.referees.toy import toy_referee
from robustclip.runs.rng import generator
from robustclip.synthesis.loop import optimise
from robustclip.synthesis.terms import Stream, Term, Terms

SIZE = (12, 20)  # not square


def start(count: int = 2) -> Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def pyramid(count: int = 2) -> Pyramid:
    canvas = Pyramid(count, SIZE)
    canvas.encode(start(count))
    return canvas


def strokes(count: int = 2) -> Strokes:
    """Wide ones, on every part of the picture."""
    return Strokes(random_strokes(30, SIZE, [generator(row, "s") for row in range(count)], reach=0.8, width=3.0), SIZE)


CANVASES: dict[str, Callable[[], Canvas]] = {
    "pixels": lambda: Pixels(start()),
    "pixels, threshold": lambda: Pixels(start(), "threshold"),
    "pyramid": pyramid,
    "strokes": lambda: strokes(),
    "grey pyramid with margin": lambda: Pyramid(2, SIZE, [1, 3, 12], margin=4),
}


def targets() -> list[Target]:
    referee = toy_referee()
    return [Target(referee, referee.embed_texts(["a cat", "a dog"])[:, None], torch.ones(2, 1))]


LOSSES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "cosine": lambda: Cosine(targets()),
    "spherical": lambda: Spherical(targets()),
    "total variation": TotalVariation,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("canvas", CANVASES)
def test_every_canvas_goes_downhill_under_every_loss(canvas: str, loss: str) -> None:
    made = CANVASES[canvas]()
    if loss == "total variation" and "grey" in canvas:
        made.encode(start())  # there is nothing to smooth in one colour
    stream = Stream(Terms((Term(LOSSES[loss]()),)), torch.optim.SGD(made.parameters(), lr=0.001), unit_rms=True)
    last, trace = optimise(
        made, [stream], steps=5, generators=lambda what, step: [generator(0, what, step, row) for row in range(2)]
    )
    assert trace["loss"].shape == (5, 2)
    assert (trace["loss"].diff(dim=0) < 0).all()
    assert last.min() >= 0
    assert last.max() <= 1


@pytest.mark.parametrize("canvas", CANVASES)
def test_after_a_step_that_is_far_too_long_a_picture_is_still_one(canvas: str) -> None:
    made = CANVASES[canvas]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(100 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    made.project()
    image = made.render()["image"]
    assert image.min() >= 0
    assert image.max() <= 1


def test_pixels_are_a_copy_and_give_back_what_they_got() -> None:
    images = start()
    canvas = Pixels(images)
    assert torch.equal(canvas.render()["image"], images)
    with torch.no_grad():
        canvas.pixels.zero_()
    assert images.any()


def test_dynamic_thresholding_by_hand() -> None:
    # On [-1,1]: 0, 0.5, 1, 3 in one channel and nothing in the others; the 1-quantile of the absolute values is 3.
    image = torch.full((1, 3, 1, 4), 0.5)
    image[0, 0, 0] = torch.tensor([0.5, 0.75, 1.0, 2.0])
    found = dynamic_threshold(image, 1.0)
    assert torch.allclose(found[0, 0, 0] * 2 - 1, torch.tensor([0.0, 0.5, 1.0, 3.0]) / 3, atol=1e-6)
    inside = start()
    assert torch.allclose(dynamic_threshold(inside, 0.95), inside, atol=1e-6)  # s is at least 1: nothing is stretched


def test_the_threshold_keeps_what_clamping_flattens() -> None:
    images = start(1) * 0.5
    canvas = Pixels(images, "threshold", quantile=1.0)
    clamped = Pixels(images, "clamp")
    for made in (canvas, clamped):
        with torch.no_grad():
            made.pixels.add_(0.7)
        made.project()
    assert canvas.pixels.unique().numel() > clamped.pixels.unique().numel()


def test_an_empty_pyramid_is_mid_grey_and_one_level_of_side_one_is_a_colour() -> None:
    canvas = Pyramid(2, SIZE)
    assert torch.equal(canvas.render()["image"], torch.full((2, 3, *SIZE), 0.5))
    with torch.no_grad():
        canvas.levels[0][:, 0] = 1.0
    image = canvas.render()["image"]
    assert torch.allclose(image[:, 0], ((torch.tanh(torch.tensor(1.0)) + 1) / 2).expand(2, *SIZE))
    assert torch.equal(image[:, 1:], torch.full((2, 2, *SIZE), 0.5))


def test_a_pyramid_starts_from_an_image_and_its_picture_leaves_the_margin_out() -> None:
    images = start()
    assert torch.allclose(pyramid().render()["image"], images, atol=1 / 128)
    canvas = Pyramid(2, SIZE, margin=4)
    canvas.encode(images)
    image = canvas.render()["image"]
    assert image.shape == (2, 3, SIZE[0] + 8, SIZE[1] + 8)
    assert torch.allclose(canvas.picture(image), images, atol=1 / 128)
    assert torch.allclose(image[:, :, 0, 4:-4], images[:, :, 0], atol=1 / 128)  # the edge goes on


def test_levels_keep_the_shape_of_the_picture() -> None:
    assert list(Pyramid(1, SIZE).groups()) == ["1x2", "2x3", "4x7", "8x13", "12x20"]
    assert powers_of_two(64) == [1, 2, 4, 8, 16, 32, 64]
    assert powers_of_two(5) == [1, 2, 4, 5]
    assert powers_of_two(1) == [1]


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (lambda: Pixels(start(), "clip"), coded("unknown_choice", argument="projection", given="clip")),  # type: ignore[arg-type]
        (lambda: Pixels(start(), quantile=0), coded("out_of_range", argument="quantile", given=0)),
        (lambda: Pixels(start() + 1), coded("pixels_out_of_range")),
        (lambda: Pixels(start()).encode(start(3)), coded("does_not_fit")),
        (lambda: Pyramid(1, SIZE, [0, 3]), coded("out_of_range", argument="sides", given=[0, 3], most=12)),
        (lambda: Pyramid(1, SIZE, [13]), coded("out_of_range", argument="sides", given=[13], most=12)),
        (lambda: Pyramid(1, SIZE, []), coded("out_of_range", argument="sides", given=[], most=12)),
        (lambda: pyramid().encode(start(1)), coded("does_not_fit")),
    ],
    ids=range(8),
)
def test_what_cannot_be_a_canvas_is_told(make: Callable[[], object], check) -> None:
    with pytest.raises(UsageError, check=check):
        make()


def test_strokes_are_put_back_into_their_limits_and_points_may_leave() -> None:
    canvas = Strokes(random_strokes(5, SIZE, [generator(0, "s")]), SIZE, widths=(1.0, 4.0))
    with torch.no_grad():
        canvas.points.add_(1000)
        canvas.widths.copy_(torch.tensor([[-1.0, 1.0, 2.0, 4.0, 9.0]]))
        canvas.colours.add_(5)
    canvas.project()
    assert canvas.widths.tolist() == [[1.0, 1.0, 2.0, 4.0, 4.0]]
    assert (canvas.colours == 1).all()
    assert canvas.points.min() > 900
    assert list(canvas.groups()) == ["points", "widths", "colours"]


def test_strokes_take_the_colours_of_an_image_where_they_lie() -> None:
    image = torch.zeros(1, 3, *SIZE)
    image[:, 0, :, 10:] = 1.0  # black, and red on the right
    canvas = Strokes(random_strokes(40, SIZE, [generator(0, "s")], reach=0.01), SIZE)
    canvas.encode(image)
    right = canvas.points[0, :, 0, 0] > 10.5
    left = canvas.points[0, :, 0, 0] < 9.5
    assert right.any()
    assert left.any()
    assert torch.equal(canvas.colours[0, right], torch.tensor([[1.0, 0.0, 0.0, 1.0]]).expand(int(right.sum()), -1))
    assert torch.equal(canvas.colours[0, left], torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(int(left.sum()), -1))
    with pytest.raises(UsageError, check=coded("does_not_fit")):
        canvas.encode(image[..., :5])
    with pytest.raises(UsageError, check=coded("not_a_range", argument="widths")):
        Strokes(random_strokes(5, SIZE, [generator(0, "s")]), SIZE, widths=(4.0, 1.0))
