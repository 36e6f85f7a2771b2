from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from robustclip.errors import UsageError, coded
from robustclip.views import Affine, Draws, Perspective, RandomCrop, Views, nudges

from .inputs import pictures, seen, streams


def test_a_quarter_turn_goes_counter_clockwise() -> None:
    image = pictures(1, 6, 6)
    torch.testing.assert_close(seen(Affine((90, 90)), image), image.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    upside_down = seen(Affine((180, 180)), pictures(1, 6, 9))
    torch.testing.assert_close(upside_down, pictures(1, 6, 9).flip(2, 3), rtol=0, atol=1e-5)


def test_enlarging_keeps_the_middle_and_shearing_the_middle_row() -> None:
    image = pictures(1, 9, 11)
    assert seen(Affine(scale=(2, 2)), image)[0, :, 4, 5].tolist() == pytest.approx(image[0, :, 4, 5].tolist())
    ramp = torch.arange(11.0).expand(1, 3, 9, 11)
    assert torch.allclose(seen(Affine(scale=(2, 2)), ramp)[0, 0, 0], 2.5 + torch.arange(11) / 2)
    sheared = seen(Affine(shear=(45, 45), padding="border"), ramp)[0, 0]
    torch.testing.assert_close(sheared[4], ramp[0, 0, 4])
    torch.testing.assert_close((sheared[3] - sheared[4]).abs()[2:-2], torch.ones(7))


def test_translations_go_as_far_as_they_say_down_and_across() -> None:
    down = seen(Affine(translate=(0.5, 0)), torch.ones(1, 3, 10, 20), 300)[:, 0]
    assert 4.9 < (1 - down[:, :, 10]).sum(1).max() < 5, "half of the rows"
    assert (down.amax(1) > 0).all(), "no column lost"
    across = seen(Affine(translate=(0, 0.25)), torch.ones(1, 3, 10, 20), 300)[:, 0]
    assert 4.9 < (1 - across[:, 5]).sum(1).max() < 5, "a quarter of the columns"
    assert (across[:, 0, 0] == 0).any(), "to the right"
    assert (across[:, 0, -1] == 0).any(), "and to the left"


@pytest.mark.parametrize(("padding", "value"), [("zeros", 0.0), ("border", 0.5), ("reflection", 0.5), (1.0, 1.0)])
def test_what_lies_outside_is_filled(padding, value: float) -> None:
    image = torch.full((1, 3, 8, 8), 0.5)
    assert seen(Affine(scale=(0.5, 0.5), padding=padding), image)[0, :, 0, 0].tolist() == [value] * 3
    tilted = seen(Perspective(0.9, padding=padding), image, 50)[:, :, 0, 0]
    assert abs(tilted - value).amin() == 0


def test_corners_move_inwards_by_up_to_half_the_distortion() -> None:
    # Where a white picture on black is seen, its edges tell how far the corners went.
    views = seen(Perspective(0.5), torch.ones(1, 3, 40, 40), 200)[:, 0]
    top = (views[:, :, 20] > 0.5).float().argmax(1)  # rows above the picture, in the middle: the mean of two corners'
    assert top.min() <= 2
    assert 7 <= top.max() <= 10
    assert (views[:, 20, 20] > 0.999).all()


def test_chance_decides_by_view() -> None:
    image = pictures(1)
    for view in (Affine((20, 40), p=0.5), Perspective(0.5, p=0.5)):
        same = ((seen(view, image, 200) - image).abs() < 1e-4).flatten(1).all(1)
        assert 70 < same.sum() < 130


def test_affine_views_are_kornias() -> None:
    import kornia

    images, size = pictures(4, 24, 20), (24, 20)
    draws = Draws(streams(4), 1)
    draws.chance(1)
    degrees, scale, shear = draws.uniform(-30, 30), draws.uniform(0.8, 1.2), draws.uniform(-20, 20)
    shift = draws.uniform(-1, 1, 2) * torch.tensor([0.2 * 20, 0.1 * 24])
    centre = torch.tensor([[9.5, 11.5]]).expand(4, -1)
    # kornia counts angles clockwise here.
    matrix = kornia.geometry.get_affine_matrix2d(
        shift, centre, scale[:, None].expand(-1, 2), -degrees, shear.deg2rad(), torch.zeros(4)
    )
    for padding in ("zeros", "border"):
        ours = seen(Affine((-30, 30), (0.1, 0.2), (0.8, 1.2), (-20, 20), padding), images)
        theirs = kornia.geometry.warp_affine(images, matrix[:, :2], size, padding_mode=padding, align_corners=True)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_reflection_is_numpys_symmetric_padding() -> None:
    images = pictures(2, 8, 8)
    around = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="symmetric"))
    halved = seen(Affine(scale=(0.5, 0.5), padding="reflection"), images)
    torch.testing.assert_close(halved, torch.nn.functional.avg_pool2d(around, 2), rtol=0, atol=1e-5)


def test_no_pixel_collects_the_gradient_of_all_that_lies_outside() -> None:
    (_, pose) = nudges((-0.2, 0.2), (0.3, 1.7), (0.7, 1.3), (-25.0, 25.0), 0.15, (0.6, 1.3))

    def most(view: Affine) -> float:
        images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (gradient,) = torch.autograd.grad(Views(64, (view,))(images, streams(1)).sum(), images)
        return float(gradient.max() / gradient.mean())

    assert isinstance(pose, Affine)
    assert most(pose) < 2 < 10 < most(replace(pose, padding="border"))


def test_perspective_views_are_kornias() -> None:
    import kornia

    images, size = pictures(4, 24, 20), (24, 20)
    draws = Draws(streams(4), 1)
    draws.chance(1)
    corners = torch.tensor([[0.0, 0], [19, 0], [19, 23], [0, 23]]).expand(4, -1, -1)
    signs = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    moved = corners + signs * draws.uniform(0, 0.5, 4, 2) * torch.tensor([19, 23]) / 2
    matrix = kornia.geometry.get_perspective_transform(corners, moved)
    theirs = kornia.geometry.warp_perspective(images, matrix, size, align_corners=True)
    torch.testing.assert_close(seen(Perspective(0.5), images), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "check", "works"),
    [
        (
            lambda: Affine((15, -15)),
            coded("not_a_range", call="Affine(degrees=(15, -15))"),
            "Affine(degrees=(-15, 15))",
        ),
        (lambda: Affine(translate=0.1), coded("not_a_range", call="Affine(translate=0.1)"), "(0.1, 0.1)"),
        (
            lambda: Affine(translate=(0, 8)),
            coded("out_of_range", call="Affine(translate=(8, 8))"),
            "Affine(translate=(0.1, 0.1))",
        ),
        (lambda: Affine(scale=(0, 1)), coded("out_of_range", call="Affine(scale=(0, 1))"), "Affine(scale=(0.01, 1))"),
        (lambda: Affine(shear=(0, 90)), coded("out_of_range", call="Affine(shear=(0, 90))"), "Affine(shear=(0, 89))"),
        (
            lambda: Affine(padding="white"),
            coded("unknown_choice", argument="padding", given="white"),
            "Affine(padding=1.0)",
        ),
        (lambda: Perspective(1.5), coded("out_of_range", call="Perspective(1.5)"), "Perspective(0.5)"),
        (lambda: Perspective(p=-1), coded("out_of_range", call="Perspective(p=-1)"), "Perspective(p=0.7)"),
    ],
)
def test_illegal_warps_are_refused_with_the_call_that_works(call, check, works: str) -> None:
    with pytest.raises(UsageError, match=re.escape(works), check=check):
        call()


def test_a_crop_of_a_part_seen_through_views() -> None:
    assert Views(3, (RandomCrop(8, 16), Affine((-15, 15))))(pictures(), streams()).shape == (2, 3, 3, 16, 16)
