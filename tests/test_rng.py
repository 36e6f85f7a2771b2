from __future__ import annotations

import pytest
import torch

from robustclip.rng import generator


def draw(*key: object) -> list[float]:
    return torch.rand(4, generator=generator(*key)).tolist()  # type: ignore[arg-type]


def test_a_stream_is_a_function_of_its_key() -> None:
    assert draw(0, "attack", 7) == draw(0, "attack", 7)


@pytest.mark.parametrize(
    "other", [(1, "attack", 7), (0, "data", 7), (0, "attack", 8), (0, "attack"), (0, "attack", 7, 0)]
)
def test_another_key_is_another_stream(other: tuple[object, ...]) -> None:
    assert draw(0, "attack", 7) != draw(*other)


def test_streams_are_the_same_on_every_machine_and_version() -> None:
    assert generator(0, "attack", 7).initial_seed() == 7302519432873660298


def test_global_randomness_is_left_alone() -> None:
    before = torch.get_rng_state()
    draw(0, "attack")
    assert torch.equal(before, torch.get_rng_state())
