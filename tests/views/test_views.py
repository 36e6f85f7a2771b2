"""What holds for every view, and for rows of them."""

from __future__ import annotations

import pytest
import torch

from robustclip.errors import UsageError, coded
from robustclip.views import (
    Affine,
    Brightness,
    Clamp,
    Colour,
    Contrast,
    Cutout,
    Erasing,
    GaussianNoise,
    Jitter,
    Perspective,
    RandomCrop,
    RandomResizedCrop,
    Rescale,
    Saturation,
    Translation,
    UniformNoise,
    View,
    Views,
    diffaug,
    nudges,
)

from .inputs import pictures, streams

TRANSFORMS: list[View] = [
    Brightness(),
    Saturation(),
    Contrast(),
    Colour(p=0.7),
    Translation(),
    Rescale(),
    Cutout(),
    Erasing(p=0.7),
    RandomCrop(0.5),
    RandomCrop(7, (9, 11)),
    RandomResizedCrop((9, 8)),
    Affine((-30, 30), (0.1, 0.1), (0.8, 1.2), (-5, 5), p=0.7),
    Affine((-30, 30), padding="border"),
    Perspective(),
    Perspective(0.7, p=0.7, padding=1.0),
    Jitter(3, (10, 12)),
    GaussianNoise((0, 0.1)),
    UniformNoise(),
    Clamp(0.1, 0.9),
]

NEUTRAL: list[View] = [
    Brightness((0, 0)),
    Saturation((1, 1)),
    Contrast((1, 1)),
    Colour((0, 0), (1, 1), (1, 1)),
    Colour(p=0),
    Translation(0),
    Rescale((1, 1)),
    Cutout(0),
    Erasing(p=0),
    RandomCrop(1.0),
    RandomCrop(1.0, (16, 20)),
    RandomResizedCrop((16, 20), (1, 1), (1, 1)),
    Affine(),
    Affine((-30, 30), (0.1, 0.1), (0.8, 1.2), (-5, 5), p=0),
    Affine(padding="border"),
    Affine(padding=1.0),
    Perspective(0),
    Perspective(p=0, padding=1.0),
    Jitter(0),
    GaussianNoise(0),
    UniformNoise((0, 0)),
    Clamp(),
]


def name(view: View) -> str:
    return str(view).replace(" ", "")


@pytest.mark.parametrize("view", NEUTRAL, ids=name)
def test_at_neutral_ranges_a_view_is_the_picture(view: View) -> None:
    images = pictures()
    views = Views(3, (view,))(images, streams())
    torch.testing.assert_close(views, images[:, None].expand(-1, 3, -1, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("view", TRANSFORMS, ids=name)
def test_views_of_many_pictures_are_those_of_each_alone(view: View) -> None:
    images, views = pictures(3), Views(4, (view,))
    together = views(images, streams(3))
    alone = torch.cat([views(images[[index]], streams(1, index)) for index in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert torch.equal(together, views(images, streams(3))), "the same generators, the same views"


@pytest.mark.parametrize("view", TRANSFORMS, ids=name)
def test_gradients_reach_every_picture(view: View) -> None:
    images = pictures().requires_grad_()
    views = Views(4, (view,))(images, streams())
    assert views.isfinite().all()
    (gradient,) = torch.autograd.grad(views.square().sum(), images)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("view", [Colour(), Translation(), Cutout(), GaussianNoise(0.1), diffaug()[2]], ids=name)
def test_gradients_are_those_of_finite_differences(view: View) -> None:
    images = pictures(1, 5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda pixels: Views(2, (view,))(pixels, streams(1)), [images])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("view", TRANSFORMS, ids=name)
def test_views_keep_the_type_of_the_picture(view: View, dtype: torch.dtype) -> None:
    views, exact = (Views(2, (view,))(images, streams()) for images in (pictures().to(dtype), pictures()))
    assert views.dtype == dtype
    torch.testing.assert_close(views.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("policy", [diffaug(), nudges()], ids=["diffaug", "nudges"])
def test_a_policy_shows_every_view_differently(policy: tuple[View, ...]) -> None:
    views = Views(6, policy)(pictures(), streams()).flatten(0, 1)
    assert views.shape == (12, 3, 16, 20)
    apart = (views[:, None] - views[None]).abs().mean((2, 3, 4)) + torch.eye(12)
    assert apart.min() > 0.01


def test_diffaug_is_the_papers_in_its_order() -> None:
    assert [type(view).__name__ for view in diffaug()] == ["Colour", "Translation", "Rescale", "Cutout"]
    fixed = Views(2, diffaug((0.1, 0.1), (0, 0), (0.5, 0.5), 0, (0.5, 0.5), 0))(torch.zeros(1, 3, 8, 8), streams(1))
    assert fixed[0, 0, :, 2:6, 2:6].flatten().tolist() == pytest.approx([0.1] * 48)
    assert fixed.sum() == pytest.approx(2 * 48 * 0.1), "colour comes before the frame, which stays 0"


def test_without_transforms_views_are_copies() -> None:
    images = pictures()
    assert torch.equal(Views(1)(images, streams())[:, 0], images)


def test_views_print_themselves() -> None:
    assert str(Views(32, diffaug(), name="diffaug")) == "diffaug x32"
    assert str(Views(1)) == "whole"


def test_illegal_views_are_refused() -> None:
    with pytest.raises(UsageError, check=coded("too_few", views=0)):
        Views(0)
    with pytest.raises(UsageError, check=coded("unequal_counts", generators=1, pictures=2)):
        Views(2)(pictures(2), streams(1))
