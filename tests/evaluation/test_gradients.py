from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustclip.data.images import show_gradients
from robustclip.errors import UsageError, coded
from robustclip.explanation.gradients import (
    gradient_picture,
    gradient_shares,
    input_gradients,
    low_frequency_share,
)
from robustclip.referees.similarity import embed_texts


def wave(cycles: int, amplitude: float = 1.0, size: int = 64) -> Tensor:
    """(1,3,size,size): a sine of so many whole cycles across the image."""
    column = amplitude * torch.sin(2 * math.pi * cycles * torch.arange(size, dtype=torch.float64) / size)
    return column.expand(1, 3, size, size)


@pytest.mark.parametrize(("cycles", "share"), [(1, 1.0), (7, 1.0), (8, 0.0), (9, 0.0), (32 - 1, 0.0)])
def test_a_pure_wave_is_low_or_high(cycles: int, share: float) -> None:
    # 8 cycles in 64 pixels are 1/8 cycle per pixel, the first that is not below it.
    assert float(low_frequency_share(wave(cycles))) == pytest.approx(share, abs=1e-12)


def test_energies_add_up_by_their_squares() -> None:
    mixed = wave(3, amplitude=2.0) + wave(20, amplitude=1.0)

    assert float(low_frequency_share(mixed)) == pytest.approx(4 / 5)


def test_the_radius_counts_both_directions() -> None:
    diagonal = wave(6) * wave(6).transpose(-1, -2)  # 6/64 along each axis: radius 0.133 > 1/8

    assert float(low_frequency_share(diagonal)) == pytest.approx(0.0, abs=1e-12)


def test_a_constant_counts_as_low() -> None:
    assert float(low_frequency_share(torch.ones(1, 3, 16, 16))) == pytest.approx(1.0)
    assert float(low_frequency_share(1 + math.sqrt(2) * wave(20))) == pytest.approx(0.5)


def test_channels_share_one_energy() -> None:
    lively = torch.cat([wave(3, amplitude=3.0)[:, :1], wave(20)[:, :1], torch.zeros(1, 1, 64, 64)], 1)

    assert float(low_frequency_share(lively)) == pytest.approx(9 / 10)


def test_white_noise_has_the_share_of_its_disc() -> None:
    # 193 of the 64 * 64 whole-numbered frequencies are nearer to zero than 8.
    noise = torch.randn(50, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    assert float(low_frequency_share(noise).mean()) == pytest.approx(193 / 64**2, rel=0.02)


def test_images_are_judged_one_by_one_and_zero_has_no_share() -> None:
    shares = low_frequency_share(torch.cat([wave(3), torch.zeros(1, 3, 64, 64), wave(30)]))

    assert shares.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(shares[[0, 2]], torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_the_gradient_of_a_cosine_by_hand(colour_referee, plain) -> None:
    # d cos(m, t) / d pixel = (t - cos * m / |m|) / |m| / 64, here m = (.3, .4, 0), |m| = .5, t = (1, 0, 0), cos = .6
    referee = colour_referee()

    found = input_gradients(referee, plain((0.3, 0.4, 0.0)), embed_texts(referee, ["red"]))

    expected = torch.tensor([1 - 0.6 * 0.6, -0.6 * 0.8, 0.0]) / 0.5 / 64
    torch.testing.assert_close(found, expected[None, :, None, None].expand(1, 3, 8, 8))


def test_each_image_has_its_own_prompt(colour_referee) -> None:
    tower = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    referee = colour_referee(tower=tower)
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = ["red", "blue", "red", "green", "blue"]

    shares = gradient_shares(referee, images, prompts, batch_size=2)

    alone = [
        low_frequency_share(input_gradients(referee, images[i : i + 1], embed_texts(referee, [prompts[i]])))
        for i in range(5)
    ]
    torch.testing.assert_close(shares, torch.cat(alone))


def test_weights_keep_their_gradients_and_mode(colour_referee, plain) -> None:
    tower = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).train()
    referee = colour_referee(tower=tower).train()

    input_gradients(referee, plain((0.3, 0.4, 0.0)), embed_texts(referee, ["red"]))

    assert all(weight.grad is None and weight.requires_grad for weight in tower.parameters())
    assert referee.image_tower.training


def test_gradients_are_shown_around_grey_each_on_its_own_scale() -> None:
    gradients = torch.zeros(3, 3, 4, 4)
    gradients[0, 0, 0, 0], gradients[0, 0, 0, 1] = 1e-8, -1e-8
    gradients[1] = 1e8 * gradients[0] / 1e-8

    shown = show_gradients(gradients)

    assert (shown[2] == 0.5).all()  # no gradient at all: grey
    torch.testing.assert_close(shown[0], shown[1])
    # RMS = 1e-8 * sqrt(2/48): the two outliers are 4.9 deviations out, and saturate.
    assert shown[0, 0, 0, 0] == 1
    assert shown[0, 0, 0, 1] == 0
    assert shown[0, 1, 2, 2] == 0.5


def test_the_picture_has_the_images_first_and_a_row_for_each_referee(colour_referee, plain, monkeypatch) -> None:
    laid_out = {}

    def record(rows, columns, tiles):
        laid_out.update(rows=rows, columns=columns, tiles=tiles)
        return tiles[0]

    monkeypatch.setattr("robustclip.explanation.gradients.titled_grid", record)
    images = plain((0.3, 0.4, 0.0), (0.0, 0.5, 0.1))

    gradient_picture([("one", colour_referee()), ("two", colour_referee())], images, ["red", "green"])

    assert laid_out["rows"] == ["image", "one", "two"]
    assert laid_out["columns"] == ["red", "green"]
    assert laid_out["tiles"].shape == (6, 3, 96, 96)
    torch.testing.assert_close(laid_out["tiles"][:2, :, ::12, ::12], images)
    assert not torch.equal(laid_out["tiles"][2], laid_out["tiles"][3])


def test_the_picture_is_a_picture(colour_referee, plain) -> None:
    found = gradient_picture([("one", colour_referee())], plain((0.3, 0.4, 0.0)), ["red"])

    assert found.ndim == 3
    assert found.shape[1] > 2 * 96
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_prompts_must_fit_the_images(colour_referee, plain) -> None:
    with pytest.raises(UsageError, check=coded("unequal_lengths", images=1, prompts=2)):
        gradient_picture([("one", colour_referee())], plain((0.3, 0.4, 0.0)), ["red", "green"])
