"""Losses by hand, and beside each other."""

from __future__ import annotations

import math

import pytest
import torch

from robustclip.errors import UsageError, coded
from robustclip.losses import Cosine, Spherical, Target, TotalVariation
from robustclip.referees.toy import toy_referee

VIEWS = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def target(*texts: str, weights: list[list[float]] | None = None, share: float = 1.0, seed: int = 0) -> Target:
    referee = toy_referee(seed=seed)
    directions = referee.embed_texts(list(texts)).expand(2, -1, -1)
    given = torch.ones(2, len(texts)) if weights is None else torch.tensor(weights)
    return Target(referee, directions, given, share)


def cosines(target: Target) -> torch.Tensor:
    return torch.einsum(
        "pvd,ptd->pvt", target.referee.embed_images(VIEWS.flatten(0, 1)).unflatten(0, (2, 3)), target.directions
    )


def test_cosine_is_one_minus_the_referees_cosine() -> None:
    cat = target("a cat")
    assert torch.allclose(Cosine([cat])(VIEWS), 1 - cosines(cat)[..., 0], atol=1e-6)


def test_spherical_is_half_the_squared_angle() -> None:
    # |x - y| / 2 = sin(angle / 2), so 2 arcsin^2 of it is angle^2 / 2.
    cat = target("a cat")
    angles = torch.acos(cosines(cat)[..., 0])
    assert torch.allclose(Spherical([cat])(VIEWS), angles.square() / 2, atol=1e-5)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_spherical_has_a_finite_slope_where_its_parts_have_none(cosine: float) -> None:
    value = torch.tensor([[[cosine]]], requires_grad=True)
    loss = Spherical([target("a cat")]).distance(value)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0 if cosine == 1 else math.pi**2 / 2, abs=0.02)
    assert value.grad is not None
    assert value.grad.isfinite().all()


def test_weights_add_up_and_negative_ones_push_away() -> None:
    both = target("a cat", "badly drawn", weights=[[1.0, -0.3], [2.0, 0.0]])
    found = cosines(both)
    expected = torch.stack([(1 - found[0, :, 0]) - 0.3 * (1 - found[0, :, 1]), 2 * (1 - found[1, :, 0])])
    assert torch.allclose(Cosine([both])(VIEWS), expected, atol=1e-6)


def test_referees_count_by_their_share() -> None:
    first, second = target("a cat", share=3.0), target("a cat", share=1.0, seed=1)
    alone = [Cosine([one])(VIEWS) for one in (first, second)]
    assert torch.allclose(Cosine([first, second])(VIEWS), 0.75 * alone[0] + 0.25 * alone[1], atol=1e-6)


def test_views_outside_the_range_of_pixels_keep_their_gradient() -> None:
    views = (VIEWS * 4 - 2).requires_grad_()
    Cosine([target("a cat")])(views).sum().backward()
    assert views.grad is not None
    assert (views.grad[VIEWS * 4 - 2 < 0] != 0).any()


def test_total_variation_by_hand() -> None:
    image = torch.zeros(1, 1, 3, 2, 2)
    image[0, 0, 0] = torch.tensor([[0.0, 1.0], [0.0, 0.5]])
    # Across: 1 and 0.5 of six differences; down: 0 and 0.5 of six.
    assert TotalVariation()(image).item() == pytest.approx(1.5 / 6 + 0.5 / 6)
    assert TotalVariation()(torch.full((1, 2, 3, 4, 4), 0.3)).tolist() == [[0, 0]]


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("no_positive_weight", referees=0)):
        Cosine([])
    with pytest.raises(UsageError, check=coded("no_positive_weight", referees=2)):
        Cosine([target("a cat", share=1.0), target("a cat", share=-1.0)])
    with pytest.raises(UsageError, check=coded("wrong_shape", weights=(2, 2))):
        target("a cat", weights=[[1.0, 2.0], [1.0, 2.0]])
