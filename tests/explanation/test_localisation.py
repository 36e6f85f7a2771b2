"""Pointing game, energy in a box, and the blob in the middle."""

from __future__ import annotations

import pytest
import torch

from robustclip.explanation.maps import centre_blob, energy_in_box, inside, pointing_hit

BOX = torch.tensor([[2, 3, 5, 7]])


def peak(row: int, column: int) -> torch.Tensor:
    heat = torch.full((1, 8, 9), 0.1)
    heat[0, row, column] = 1
    return heat


@pytest.mark.parametrize(
    ("place", "hit"), [((2, 3), True), ((4, 6), True), ((5, 6), False), ((4, 7), False), ((1, 3), False)]
)
def test_a_box_is_half_open(place: tuple[int, int], hit: bool) -> None:
    assert pointing_hit(peak(*place), BOX).item() is hit


def test_of_a_plateau_the_middle_counts() -> None:
    heat = torch.zeros(1, 8, 9)
    heat[0, 3, 4:9] = 1  # its middle is (3, 6)
    assert pointing_hit(heat, BOX).item()
    heat[0, 3, 3:4] = 0
    heat[0, 3, 4:6] = 0  # now (3, 7)
    assert not pointing_hit(heat, BOX).item()


def test_an_empty_map_points_at_nothing() -> None:
    assert not pointing_hit(torch.zeros(1, 8, 9), torch.tensor([[0, 0, 8, 9]])).item()


def test_energy_is_a_share() -> None:
    assert inside(BOX, 8, 9).sum().item() == 3 * 4
    assert energy_in_box(torch.ones(1, 8, 9), BOX).item() == pytest.approx(12 / 72)
    assert energy_in_box(peak(3, 4), BOX).item() == pytest.approx((1 + 11 * 0.1) / (1 + 71 * 0.1))
    assert energy_in_box(torch.zeros(1, 8, 9), BOX).isnan().all()


def test_the_blob_lies_in_the_middle() -> None:
    blob = centre_blob(8, 12)
    assert blob.max().item() == 1
    assert torch.equal(blob, blob.flip(0, 1))
    assert blob[4, 6] > blob[4, 8] > blob[0, 11]
    assert pointing_hit(blob[None], torch.tensor([[3, 5, 5, 7]])).item()
