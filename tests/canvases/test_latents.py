"""The latents of an autoencoder as a canvas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustclip.canvases import Latents
from robustclip.errors import UsageError, coded
from robustclip.losses import TotalVariation
from robustclip.runs.rng import generator
from robustclip.synthesis.loop import optimise
from robustclip.synthesis.terms import Stream, Term, Terms


class Repeating:
    """Cells of 4 pixels in the first three channels' colour, around grey."""

    factor, channels = 4, 5

    def encode(self, images: Tensor) -> Tensor:
        cells = torch.nn.functional.avg_pool2d(images - 0.5, 4)
        return torch.cat([cells, torch.zeros_like(cells[:, :2])], 1)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=4) + 0.5


def streams(count: int) -> list[torch.Generator]:
    return [generator(row, "start") for row in range(count)]


def test_it_starts_as_noise_of_each_pictures_own() -> None:
    canvas = Latents(Repeating(), (8, 16), streams(3))
    assert canvas.latent.shape == (3, 5, 2, 4)
    assert torch.equal(canvas.latent[1:2], Latents(Repeating(), (8, 16), streams(3)[1:2]).latent)
    many = Latents(Repeating(), (64, 64), streams(20)).latent
    assert many.mean().item() == pytest.approx(0, abs=0.02)
    assert many.std().item() == pytest.approx(1, abs=0.02)


def test_an_image_becomes_its_latents() -> None:
    canvas = Latents(Repeating(), (8, 16), streams(2))
    flat = torch.rand(2, 3, 2, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    canvas.encode(flat)
    torch.testing.assert_close(canvas.render()["image"], flat)
    assert canvas.render()["latent"] is canvas.latent
    with pytest.raises(UsageError, check=coded("does_not_fit", expected=(2, 3, 8, 16))):
        canvas.encode(flat[:1])


@pytest.mark.parametrize("through", [True, False])
def test_what_is_cut_keeps_its_gradient_or_not(through: bool) -> None:
    canvas = Latents(Repeating(), (4, 4), streams(1), through=through)
    with torch.no_grad():
        canvas.latent.fill_(2.0)  # white, and beyond
    image = canvas.render()["image"]
    assert image.max() == 1
    image.sum().backward()  # downhill is darker, back into the range
    assert canvas.latent.grad is not None
    assert bool((canvas.latent.grad[:, :3] > 0).all()) is through


def test_it_goes_downhill() -> None:
    canvas = Latents(Repeating(), (8, 16), streams(2))
    stream = Stream(Terms((Term(TotalVariation()),)), torch.optim.Adam(canvas.parameters(), lr=0.02))
    _, trace = optimise(canvas, [stream], steps=8, generators=lambda *_: streams(2))
    assert (trace["loss"][-1] < trace["loss"][0]).all()


def test_sizes_are_whole_in_cells() -> None:
    with pytest.raises(UsageError, check=coded("size_not_divisible", size=(10, 16), factor=4, fit="8x16")):
        Latents(Repeating(), (10, 16), streams(1))
