from __future__ import annotations

import math

import pytest
import torch

from robustclip.errors import UsageError, coded
from robustclip.views import Draws

from .inputs import streams


def test_numbers_stay_in_their_range_and_reach_it() -> None:
    draws = Draws(streams(2), 2000)
    numbers = draws.uniform(-0.5, 1.5, 2)
    assert numbers.shape == (4000, 2)
    assert -0.5 <= numbers.min() < -0.49
    assert 1.49 < numbers.max() <= 1.5
    assert abs(numbers.mean() - 0.5) < 0.05
    assert sorted(set(draws.integers(-2, 3).tolist())) == [-2, -1, 0, 1, 2, 3]
    assert abs(draws.normal(3).std() - 1) < 0.05
    ratios = draws.log_uniform(0.25, 4)
    assert 0.25 <= ratios.min() < 0.26
    assert 3.9 < ratios.max() <= 4.001
    assert abs((ratios < 1).float().mean() - 0.5) < 0.05
    assert abs(draws.chance(0.3).float().mean() - 0.3) < 0.05
    assert not draws.chance(0).any()
    assert draws.chance(1).all()


def test_each_picture_draws_from_its_own_stream() -> None:
    together = Draws(streams(3), 5).uniform(0, 1, 2)
    alone = torch.cat([Draws(streams(1, first), 5).uniform(0, 1, 2) for first in range(3)])
    assert torch.equal(together, alone)
    assert len(together.unique()) == 30, "every view has numbers of its own"


def test_shared_numbers_are_one_a_picture() -> None:
    numbers = Draws(streams(3), 4).normal(2, shared=True).unflatten(0, (3, 4))
    assert torch.equal(numbers, numbers[:, :1].expand(-1, 4, -1))
    assert len(numbers.unique()) == 6


def test_a_range_without_width_draws_all_the_same() -> None:
    fixed, wide = (Draws(streams(1), 3) for _ in range(2))
    assert fixed.uniform(0.7, 0.7).tolist() == pytest.approx([0.7] * 3)
    wide.uniform(0, 1)
    assert torch.equal(fixed.uniform(0, 1), wide.uniform(0, 1)), "what comes after does not depend on the range"


def test_nothing_to_draw_for_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("too_few", pictures=0, views=3)):
        Draws([], 3)
    with pytest.raises(UsageError, check=coded("too_few", pictures=1, views=0)):
        Draws(streams(1), 0)


def test_log_uniform_at_one_is_exactly_one() -> None:
    assert Draws(streams(1), 3).log_uniform(1, 1).tolist() == [1.0] * 3
    assert math.isclose(Draws(streams(1), 1).log_uniform(0.3, 0.3).item(), 0.3, rel_tol=1e-6)
