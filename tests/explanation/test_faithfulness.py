"""Deletion and insertion against scores whose areas are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustclip.explanation.maps import deletion, insertion, rank


def test_ranks_run_from_the_brightest() -> None:
    heat = torch.tensor([[[0.1, 0.9], [0.5, 0.5]]])
    assert rank(heat).tolist() == [[[3, 0], [1, 2]]]


def picture() -> Tensor:
    """White on the left, black on the right."""
    image = torch.zeros(1, 3, 16, 16)
    image[..., :8] = 1
    return image


def left(images: Tensor) -> Tensor:
    return images[..., :8].mean((1, 2, 3))


def test_deletion_of_what_counts_costs_most() -> None:
    """The score falls from 1 to the mean colour, 0.5: on the first half of the way if the map is true, else on the
    second."""
    true = picture()[:, 0]
    assert deletion(left, picture(), true).item() == pytest.approx(0.75 * 0.5 + 0.5 * 0.5)
    assert deletion(left, picture(), 1 - true).item() == pytest.approx(1.0 * 0.5 + 0.75 * 0.5)


def test_insertion_of_what_counts_brings_most() -> None:
    true = picture()[:, 0]
    good, bad = (insertion(left, picture(), heat).item() for heat in (true, 1 - true))
    assert 1 > good > bad > 0.5


def test_a_batch_is_taken_image_by_image() -> None:
    images = torch.cat([picture(), picture().flip(-1)])
    heat = images[:, 0]
    both = deletion(left, images, heat)
    torch.testing.assert_close(both[1:], deletion(left, images[1:], heat[1:]))


def test_a_small_image_can_be_blurred() -> None:
    assert insertion(left, torch.rand(1, 3, 16, 24), torch.rand(1, 16, 24)).isfinite().all()
