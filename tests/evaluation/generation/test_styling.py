"""How restyled pictures are measured, with a referee whose embedding is the mean colour."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustclip.evaluation.generation.styling import content_similarity, directional_similarity
from robustclip.referees.base import TwoTower

WORDS = {"plain": (1.0, 0.0, 0.0), "leafy": (0.0, 2.0, 0.0), "watery": (0.0, 0.0, 3.0)}
Judge = Callable[..., TwoTower]
Plain = Callable[..., Tensor]


def test_a_direction_by_hand(colour_referee: Judge, plain: Plain) -> None:
    judge = colour_referee(words=WORDS)
    red, green, blue = (1.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 1.0)
    contents, pictures = plain(red, red, green), plain(green, green, red)

    found = directional_similarity(judge, pictures, contents, ["leafy", "watery", "leafy"], "plain")

    # Both moves are (-1, 1, 0); towards water it is (-1, 0, 1), with which its cosine is 1/2; and the way back.
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, -1.0]))
    there = directional_similarity(judge, plain(blue), plain(red), ["watery"], "plain")
    torch.testing.assert_close(there, torch.ones(1))


def test_a_picture_that_is_its_content_has_no_direction(colour_referee: Judge, plain: Plain) -> None:
    judge, same = colour_referee(words=WORDS), plain((0.2, 0.3, 0.4))
    assert directional_similarity(judge, same, same, ["leafy"], "plain").tolist() == [0.0]
    assert content_similarity(judge, same, same).item() == pytest.approx(1)


def test_content_is_a_cosine_picture_by_picture(colour_referee: Judge, plain: Plain) -> None:
    found = content_similarity(
        colour_referee(), plain((0.6, 0.8, 0.0), (0.0, 0.1, 0.0)), plain((0.5, 0.0, 0.0), (0.0, 0.0, 0.7))
    )
    torch.testing.assert_close(found, torch.tensor([0.6, 0.0]))
