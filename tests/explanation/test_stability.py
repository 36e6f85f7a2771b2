"""How alike two maps are, by hand."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from robustclip.explanation.maps import brightest, centre, centre_shift, rank_correlation, top_iou


def drawn(seed: int) -> torch.Tensor:
    return torch.rand(3, 8, 10, generator=torch.Generator().manual_seed(seed))


def test_rank_correlation_is_spearmans() -> None:
    maps, others = drawn(0), drawn(1)
    others[0] = (5 * others[0]).floor()  # with ties
    expected = [spearmanr(one.flatten(), other.flatten()).statistic for one, other in zip(maps, others, strict=True)]
    torch.testing.assert_close(rank_correlation(maps, others), torch.tensor(expected).float())


def test_only_the_order_matters() -> None:
    maps = drawn(0)
    torch.testing.assert_close(rank_correlation(maps, maps**3), torch.ones(3))
    torch.testing.assert_close(rank_correlation(maps, 1 - maps), -torch.ones(3))


def test_overlap_of_the_brightest() -> None:
    first, second = torch.zeros(1, 1, 10), torch.zeros(1, 1, 10)
    first[0, 0, [0, 1]] = 1
    second[0, 0, [1, 2]] = 1
    assert top_iou(first, second).item() == pytest.approx(1 / 3)
    assert top_iou(first, first).item() == 1
    assert top_iou(first, second, share=0.1).item() == 0


def test_exactly_so_many_are_brightest() -> None:
    flat = torch.ones(2, 5, 5)
    assert brightest(flat, 0.2).sum((1, 2)).tolist() == [5, 5]


def test_how_far_a_centre_moved() -> None:
    first, second = torch.zeros(1, 4, 5), torch.zeros(1, 4, 5)
    first[0, 0, 0] = 2
    second[0, 3, 4] = 1
    assert centre_shift(first, second).item() == pytest.approx(5 / 41**0.5)
    second[0, 3, 0] = 1
    assert centre(second)[0].tolist() == [3, 2]


def test_maps_that_show_nothing_have_no_number() -> None:
    empty, other = torch.zeros(1, 4, 4), drawn(2)[:1, :4, :4]
    for measure in (rank_correlation, top_iou, centre_shift):
        assert measure(empty, other).isnan().all()
        assert measure(other, empty).isnan().all()
