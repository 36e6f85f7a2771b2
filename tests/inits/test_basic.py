from __future__ import annotations

import pytest
import torch

from robustclip.errors import UsageError, coded
from robustclip.inits import Init, from_image, grey, noise
from robustclip.runs import rng

CPU = torch.device("cpu")
PICTURE = torch.linspace(0, 1, 3 * 6 * 4).view(3, 6, 4)


def streams(count: int, first: int = 0) -> list[torch.Generator]:
    return [rng.generator(0, "init", index) for index in range(first, first + count)]


@pytest.mark.parametrize("init", [noise, grey, from_image(PICTURE), from_image(PICTURE, 0.4)])
def test_every_start_is_an_image_and_no_picture_depends_on_the_others(init: Init) -> None:
    images = init(6, 4, streams(3), CPU)
    assert images.shape == (3, 3, 6, 4)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert torch.equal(images[1:2], init(6, 4, streams(1, first=1), CPU))
    assert init(6, 4, [], CPU).shape == (0, 3, 6, 4)


def test_noise_is_uniform_and_each_picture_has_its_own() -> None:
    images = noise(64, 64, streams(2), CPU)
    assert abs(images.mean() - 0.5) < 0.01
    assert abs(images.var() - 1 / 12) < 0.002
    assert not torch.equal(images[0], images[1])


def test_grey_is_the_middle() -> None:
    assert (grey(2, 3, streams(1), CPU) == 0.5).all()


def test_strength_mixes_the_image_with_noise() -> None:
    mixed = from_image(PICTURE, 0.25)(6, 4, streams(1), CPU)
    torch.testing.assert_close(mixed, 0.25 * PICTURE[None] + 0.75 * noise(6, 4, streams(1), CPU))
    assert torch.equal(from_image(PICTURE, 1)(6, 4, streams(1), CPU)[0], PICTURE)
    assert torch.equal(from_image(PICTURE, 0)(6, 4, streams(1), CPU), noise(6, 4, streams(1), CPU))


def test_the_image_is_resized_to_the_canvas() -> None:
    assert from_image(torch.full((3, 5, 9), 0.3))(8, 8, streams(2), CPU).allclose(torch.full((2, 3, 8, 8), 0.3))


def test_pictures_that_start_from_one_image_do_not_share_memory() -> None:
    images = from_image(PICTURE)(6, 4, streams(2), CPU)
    images[0] = 0
    assert images[1].any()


def test_what_is_no_image_and_no_strength_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("wrong_shape", shape=(1, 3, 6, 4))):
        from_image(PICTURE[None])
    with pytest.raises(UsageError, check=coded("pixels_out_of_range")):
        from_image(PICTURE * 255)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, check=coded("out_of_range", argument="strength")):
            from_image(PICTURE, strength)
