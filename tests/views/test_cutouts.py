"""What VQGAN-CLIP cuts out of pictures, and the colours it jitters."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustclip.data.images import clamp_through
from robustclip.errors import UsageError, coded
from robustclip.views import (
    Affine,
    ColourJitter,
    Draws,
    Erasing,
    GaussianNoise,
    Perspective,
    Pooled,
    RandomSquares,
    Views,
)
from robustclip.views.colour import turn_hue
from robustclip.views.policies import augmented

from .inputs import pictures, seen, streams


def test_pooled_is_half_the_mean_and_half_the_maximum() -> None:
    image = torch.zeros(1, 3, 2, 4)
    image[0, :, 0, 0] = 1.0
    image[0, :, 1, 2:] = 0.5
    # 2x2 boxes: one of four is 1, then two of four are a half.
    assert seen(Pooled((1, 2)), image)[0, 0].tolist() == [[(0.25 + 1) / 2, (0.25 + 0.5) / 2]]
    assert torch.equal(seen(Pooled((16, 20)), pictures()), pictures())


def test_squares_have_the_sides_of_the_formula() -> None:
    """A ramp across: the spread of a view's columns tells its side, where it was not resampled."""
    ramp = torch.arange(32.0).expand(1, 3, 32, 32) / 32
    draws = Draws(streams(1), 400)
    u = draws.uniform(0, 1)
    top, left = draws.uniform(0, 1), draws.uniform(0, 1)
    views = seen(RandomSquares(8, power=2.0), ramp, 400)[:, 0]
    sides = (u**2 * (32 - 8) + 8).floor()
    assert sides.min() == 8
    assert sides.max() >= 31
    steps = (views[:, 4, 5] - views[:, 4, 3]) / 2 * 32  # pixels of the picture between columns of the view
    assert torch.allclose(steps, sides / 8, atol=0.05)
    middles = views.mean((1, 2)) * 32 + 0.5
    expected = (left * (33 - sides)).floor() + sides / 2
    assert torch.allclose(middles, expected, atol=0.35), "each where it was drawn"
    assert top.min() >= 0


def test_averaged_squares_are_pooled() -> None:
    """DOODL's crops, by torch's own pooling of the same squares."""
    images = pictures(1, 16, 16)
    whole = seen(RandomSquares(8, smallest=16, averaged=True), images, 1)
    torch.testing.assert_close(whole, torch.nn.functional.adaptive_avg_pool2d(images, 8))


def test_squares_without_room_are_the_picture() -> None:
    images = pictures(2, 16, 16)
    assert torch.allclose(seen(RandomSquares(16), images, 3), images.repeat_interleave(3, 0), atol=1e-6)
    assert seen(RandomSquares(64), images, 3).shape == (6, 3, 64, 64), "a smaller picture is enlarged"
    assert seen(RandomSquares((8, 12), smallest=4), pictures()).shape == (2, 3, 8, 12)


def test_squares_reach_every_edge() -> None:
    image = torch.zeros(1, 3, 12, 12)
    image[..., 0, 0] = image[..., -1, -1] = 1
    found = seen(RandomSquares(11, smallest=11), image, 60)
    assert (found[:, 0, 0, 0] > 0.9).any(), "the upper left corner"
    assert (found[:, 0, -1, -1] > 0.9).any(), "the lower right one"


def test_a_range_clamp_lets_through_what_leads_back() -> None:
    values = torch.tensor([-0.5, -0.5, 0.5, 0.5, 1.5, 1.5], requires_grad=True)
    clamped = clamp_through(values)
    assert clamped.tolist() == [0, 0, 0.5, 0.5, 1, 1]
    (clamped * torch.tensor([-1.0, 1, -1, 1, -1, 1])).sum().backward()
    # A step against the gradient raises where it is negative: -0.5 may rise, 1.5 may fall.
    assert values.grad is not None
    assert values.grad.tolist() == [-1, 0, -1, 1, 0, 1]


@given(st.tuples(*[st.floats(0, 1)] * 3), st.floats(-1, 1))
def test_hues_turn_as_pythons_do(colour: tuple[float, ...], turns: float) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
    image = torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1)
    found = turn_hue(image, torch.full((1, 1, 1), turns, dtype=torch.float64))
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_the_jitter_is_kornias() -> None:
    from kornia import enhance

    images = pictures(5)
    draws = Draws(streams(5), 1)
    brightness, contrast, saturation = (draws.uniform(0.6, 1.4, 1, 1, 1).flatten() for _ in range(3))
    turns = draws.uniform(-0.3, 0.3, 1, 1).flatten()
    expected = enhance.adjust_brightness_accumulative(images, brightness)
    expected = enhance.adjust_contrast_with_mean_subtraction(expected, contrast)
    expected = enhance.adjust_saturation_with_gray_subtraction(expected, saturation)
    expected = enhance.adjust_hue(expected, turns * 2 * math.pi)
    found = seen(ColourJitter(0.4, 0.4, 0.4, 0.3), images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (expected - images).abs().mean() > 0.05, "something was jittered"


def test_the_jitter_goes_as_far_as_it_says_and_leaves_some_views_alone() -> None:
    image = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    values = seen(ColourJitter(0.1, 0, 0, 0), image, 300)[:, 0, 0, 0] / 0.5
    assert 0.9 <= values.min() < 0.91
    assert 1.09 < values.max() <= 1.1
    same = (seen(ColourJitter(p=0.7), image, 300) == image).flatten(1).all(1)
    assert 60 < same.sum() < 120, "three in ten"
    hues = [colorsys.rgb_to_hsv(*view[:, 0, 0].tolist())[0] for view in seen(ColourJitter(0, 0, 0, 0.1), image, 300)]
    turned = [(hue + 0.5) % 1 - 0.5 for hue in hues]
    assert -0.1 <= min(turned) < -0.09
    assert 0.09 < max(turned) <= 0.1


def test_the_jitter_has_a_finite_gradient_also_at_grey() -> None:
    images = pictures().clone()
    images[:, :, :4] = 0.5
    images[:, :, 4:8] = 0.5 + torch.rand(2, 3, 4, 20, generator=torch.Generator().manual_seed(1)) * 1e-6
    images.requires_grad_()
    seen(ColourJitter(), images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().max() < 100


def test_the_default_row_is_the_releases() -> None:
    affine, perspective, jitter, erasing, noise = augmented((0.1, 0.0))
    assert affine == Affine((-15, 15), (0.1, 0.0), (1, 1), (-5, 5), "zeros", p=0.7), "down alone: its kornia's reading"
    assert perspective == Perspective(0.7, p=0.7, padding="zeros")
    assert jitter == ColourJitter(0.1, 0.1, 0.1, 0.1, p=0.7)
    assert erasing == Erasing((0.1, 0.4), (0.3, 1 / 0.3), p=0.7, shared=True)
    assert noise == GaussianNoise((0.0, 0.1))
    assert augmented()[0] == Affine((-15, 15), (0.1, 0.1), (1, 1), (-5, 5), "zeros", p=0.7)


@pytest.mark.parametrize("first", [Pooled(16), RandomSquares(16, smallest=8)])
def test_a_picture_does_not_see_its_neighbours(first) -> None:
    look = Views(4, (first, *augmented()))
    images = pictures(3, 32, 32)
    together = look(images, streams(3))
    assert together.shape == (3, 4, 3, 16, 16)
    assert torch.allclose(together[1:2], look(images[1:2], streams(1, 1)), atol=1e-5)
    assert not torch.allclose(together[1, 0], together[1, 1], atol=0.01), "views differ"


@pytest.mark.parametrize(
    ("call", "check"),
    [
        (lambda: ColourJitter(hue=0.6), coded("out_of_range", call="ColourJitter(hue=0.6)")),
        (lambda: ColourJitter(contrast=-1), coded("out_of_range", call="ColourJitter(contrast=-1)")),
        (lambda: ColourJitter(p=2), coded("out_of_range", call="ColourJitter(p=2)")),
        (lambda: RandomSquares(16, power=0), coded("out_of_range", call="RandomSquares(16, power=0)")),
        (lambda: RandomSquares(16, smallest=0), coded("out_of_range", call="RandomSquares(16, smallest=0)")),
        (lambda: Pooled(-3), coded("not_a_size", size=-3)),
        (lambda: augmented((2, 0)), coded("out_of_range", call="Affine(translate=(2, 2))")),
    ],
)
def test_illegal_cutouts_are_refused(call, check) -> None:
    with pytest.raises(UsageError, check=check):
        call()
