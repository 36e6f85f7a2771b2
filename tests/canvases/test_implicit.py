"""Implicit neural representations: initial ranges, values by hand, resolutions, fits, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from robustclip.canvases import Implicit
from robustclip.canvases.networks import coordinates
from robustclip.data.images import resize
from robustclip.errors import UsageError
from robustclip.runs.rng import generator

SIZE = (12, 20)


def implicit(count: int = 2, **settings: object) -> Implicit:
    return Implicit(SIZE, [generator(0, "network", index) for index in range(count)], **settings)  # type: ignore[arg-type]


def test_layers_begin_in_the_ranges_of_siren() -> None:
    width, omega = 256, 30.0
    canvas = implicit(4, width=width, layers=3, omega=omega)
    bounds = [1 / 2, *[math.sqrt(6 / width) / omega] * 3]  # 1/n of two coordinates; then sqrt(6/n)/omega
    inputs = [2, width, width, width]
    assert [list(weight.shape) for weight in canvas.weights] == [
        [4, 3, 256], [4, 257, 256], [4, 257, 256], [4, 257, 3],
    ]  # fmt: skip
    for weight, bound, count in zip(canvas.weights, bounds, inputs, strict=True):
        drawn = weight[:, :-1].detach()
        assert drawn.abs().max() <= bound
        assert drawn.abs().max() > 0.97 * bound
        assert drawn.var().item() == pytest.approx(bound**2 / 3, rel=0.1)  # of a uniform distribution
        assert 0.5 * count**-0.5 < weight[:, -1].abs().max() <= count**-0.5


@torch.no_grad()
def test_siren_keeps_the_arcsine_distribution_through_its_layers() -> None:
    """Sitzmann et al., Theorem 1.8: pre-activations of a hidden layer are N(0,1), its outputs have variance 1/2."""
    canvas = implicit(1, width=512, layers=3, finer=False, omega=30.0)
    z = coordinates((64, 64)).expand(1, -1, -1)
    for index, weight in enumerate(list(canvas.weights)[:3]):
        inner = z @ weight[:, :-1] + 0 * weight[:, -1:]
        if index:
            assert (30 * inner).std().item() == pytest.approx(1.0, abs=0.15)
        z = torch.sin(30 * inner)
        assert z.var().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("finer", [False, True])
def test_a_network_of_one_unit_by_hand(finer: bool) -> None:
    canvas = implicit(1, width=1, layers=1, omega=3.0, finer=finer)
    with torch.no_grad():
        canvas.weights[0].copy_(torch.tensor([[[0.5], [-0.25], [0.1]]]))
        canvas.weights[1].copy_(torch.tensor([[[1.0, 2.0, 0.0], [0.0, -0.5, 0.25]]]))
    image = canvas.render()["image"]
    # SIZE is 12 rows by 20 columns: row 3, column 7 is at x = (2*7 + 1 - 20)/12, y = (2*3 + 1 - 12)/12.
    inner = 0.5 * (-5 / 12) - 0.25 * (-5 / 12) + 0.1
    unit = math.sin(3 * inner * (abs(inner) + 1 if finer else 1))
    expected = [(math.tanh(value) + 1) / 2 for value in (unit, 2 * unit - 0.5, 0.25)]
    assert image.shape == (1, 3, *SIZE)
    assert image[0, :, 3, 7].tolist() == pytest.approx(expected, abs=1e-6)


def test_finers_factor_has_no_gradient_of_its_own() -> None:
    canvas = implicit(1, width=1, layers=1, omega=2.0)
    with torch.no_grad():
        canvas.weights[0].copy_(torch.tensor([[[0.0], [0.0], [0.3]]]))
        canvas.weights[1].copy_(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]))
    canvas.render((1, 1))["image"][0, 0].sum().backward()
    inner = 2.0 * 0.3 * 1.3
    slope = (1 - math.tanh(math.sin(inner)) ** 2) / 2 * math.cos(inner) * 2.0 * 1.3  # and not (2 * 0.3 + 1) * 2
    assert canvas.weights[0].grad is not None
    assert canvas.weights[0].grad[0, -1].item() == pytest.approx(slope, rel=1e-5)


def test_resolutions_agree_where_their_pixels_coincide() -> None:
    canvas = implicit()
    image = canvas.render()["image"]
    assert torch.equal(canvas.render(SIZE)["image"], image)
    thrice = canvas.render((36, 60))["image"]  # the middle of three pixels is the centre of one
    assert torch.allclose(thrice[..., 1::3, 1::3], image, atol=1e-5)
    fine, coarse = coordinates((24, 40)).unflatten(0, (24, 40)), coordinates(SIZE).unflatten(0, SIZE)
    corners = fine.unflatten(1, (20, 2)).unflatten(0, (12, 2)).mean((1, 3))  # the centre of 2x2 pixels is that of one
    assert torch.allclose(corners, coarse, atol=1e-6)


def test_coordinates_span_the_shorter_side_and_keep_the_shape() -> None:
    assert coordinates((1, 1)).tolist() == [[0.0, 0.0]]
    assert coordinates((2, 4)).tolist() == [[x, y] for y in (-0.5, 0.5) for x in (-1.5, -0.5, 0.5, 1.5)]


def test_a_picture_depends_on_its_own_generator_alone() -> None:
    both, alone = implicit(2).render()["image"], implicit(1).render()["image"]
    assert torch.allclose(both[:1], alone, atol=1e-6)
    assert (both[0] - both[1]).abs().max() > 0.01


def test_a_fit_approaches_images_of_any_size() -> None:
    images = resize(torch.rand(2, 3, 3, 5, generator=generator(0, "images")), (6, 10)).clamp(0.05, 0.95)
    canvas = implicit(width=32)
    with torch.no_grad():  # encode is called as other canvases' are
        before = (canvas.render((6, 10))["image"] - images).square().mean()
        canvas.encode(images, steps=150)
        after = (canvas.render((6, 10))["image"] - images).square().mean()
    assert after < before / 100
    assert all(weight.requires_grad and weight.grad is None for weight in canvas.weights)


def test_a_fit_is_each_pictures_own() -> None:
    images = torch.rand(2, 3, 6, 10, generator=generator(0, "images"))
    both, alone = implicit(2), implicit(1)
    both.encode(images, steps=5)
    alone.encode(images[:1], steps=5)
    assert torch.allclose(both.render()["image"][:1], alone.render()["image"], atol=1e-4)


def test_layers_are_groups_from_first_to_last() -> None:
    canvas = implicit(layers=2)
    assert list(canvas.groups()) == ["layer 0", "layer 1", "layer 2"]
    assert [found[0] is weight for found, weight in zip(canvas.groups().values(), canvas.weights, strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: implicit(width=0),
        lambda: implicit(layers=0),
        lambda: implicit(omega=0.0),
        lambda: implicit(omega=math.nan),
        lambda: Implicit((0, 4), [generator(0, "network")]),
        lambda: implicit().encode(torch.rand(3, 3, *SIZE)),
        lambda: implicit().encode(torch.rand(2, 3, *SIZE) + 1),
    ],
    ids=range(7),
)
def test_what_cannot_be_a_network_is_told(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()
