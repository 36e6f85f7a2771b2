"""Slopes of losses whose gradients are known by hand, and of those whose gradients are not their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustclip.evaluation.masking import slopes


def images() -> Tensor:
    return 0.3 + 0.4 * torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_linear_loss_has_one_slope() -> None:
    """The gradient is 2 for each of 48 values."""
    lengths, found = slopes(lambda x: 2 * x.double().sum((1, 2, 3)), images(), stride=0.01)
    torch.testing.assert_close(lengths, torch.full((3,), 2 * 48**0.5, dtype=torch.float64))
    torch.testing.assert_close(found, lengths, rtol=1e-3, atol=0)


def test_a_square_has_the_slope_of_its_middle() -> None:
    """Central differences of a square are exact: 2 |x|."""
    given = images()
    lengths, found = slopes(lambda x: x.double().square().sum((1, 2, 3)), given, stride=0.05)
    torch.testing.assert_close(lengths, 2 * given.double().flatten(1).norm(dim=1))
    torch.testing.assert_close(found, lengths, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_whose_squares_no_float32_holds(scale: float) -> None:
    lengths, found = slopes(lambda x: scale * x.double().sum((1, 2, 3)), images(), stride=0.01)
    torch.testing.assert_close(lengths, torch.full((3,), scale * 48**0.5, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(found, lengths, rtol=1e-3, atol=0)


def test_no_gradient_is_no_slope() -> None:
    lengths, found = slopes(lambda x: (8 * x).round().mean((1, 2, 3)) + 0 * x.sum((1, 2, 3)), images(), stride=0.01)
    assert lengths.tolist() == found.tolist() == [0, 0, 0]


def test_a_gradient_too_small_by_half_is_seen() -> None:
    """Forward 2x, backward x."""

    def loss(x: Tensor) -> Tensor:
        total = x.double().sum((1, 2, 3))
        return total + total.detach()

    lengths, found = slopes(loss, images(), stride=0.01)
    torch.testing.assert_close(found, 2 * lengths, rtol=1e-3, atol=0)
