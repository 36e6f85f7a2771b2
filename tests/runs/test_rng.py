from __future__ import annotations

import pytest
import torch

from robustclip.runs import rng
from robustclip.runs.rng import generator


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


def test_each_sample_has_a_generator_of_its_own_whatever_its_neighbours() -> None:
    several = rng.each(0, "attack", 3, ids=["a", "b", "c"])
    alone = rng.each(0, "attack", 3, ids=["b"])
    numbers = [torch.rand(4, generator=stream).tolist() for stream in several]
    assert torch.rand(4, generator=alone[0]).tolist() == numbers[1]
    assert len({tuple(row) for row in numbers}) == 3
    assert torch.rand(4, generator=rng.each(0, "attack", 4, ids=["b"])[0]).tolist() != numbers[1]


def test_global_numbers_are_keyed_inside_a_block_and_untouched_outside() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with rng.seeded(0, "tower", 7):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    with rng.seeded(0, "tower", 7):
        assert torch.equal(torch.rand(3), first)
    with rng.seeded(0, "tower", 8):
        assert not torch.equal(torch.rand(3), first)
