"""CLIPStyler's network as a canvas: a network a picture, at any size."""

from __future__ import annotations

import pytest
import torch

from robustclip.canvases.networks import StyleNet, StyleNetwork
from robustclip.errors import UsageError, coded
from robustclip.losses import TotalVariation
from robustclip.runs.rng import generator
from robustclip.synthesis.loop import optimise
from robustclip.synthesis.terms import Stream, Term, Terms

SIZE = (20, 28)  # no multiples of 8


def content(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def canvas(count: int = 2) -> StyleNetwork:
    return StyleNetwork(content(count), [generator(row, "s") for row in range(count)], width=4)


def test_a_picture_is_what_a_network_with_its_weights_makes_of_its_content() -> None:
    made = canvas()
    image = made.render()["image"]
    assert image.shape == (2, 3, *SIZE)
    assert 0 <= image.min() < image.max() <= 1
    net = StyleNet(4)
    for row in range(2):
        net.load_state_dict(dict(zip(made.names, (weights[row].detach() for weights in made.weights), strict=True)))
        padded = torch.nn.functional.pad(content()[row : row + 1], (0, 4, 0, 4), mode="reflect")
        with torch.no_grad():
            alone = net(padded)[0, :, :20, :28]
        assert torch.allclose(image[row], alone, atol=1e-5)


def test_the_network_has_the_releases_shapes() -> None:
    shapes = {name: tuple(one.shape) for name, one in StyleNet().state_dict().items()}
    assert shapes["stem.weight"] == (16, 3, 1, 1)
    assert [shapes[f"halve.{level}.weight"] for level in range(3)] == [(16, 16, 4, 4), (32, 32, 4, 4), (64, 64, 4, 4)]
    assert shapes["middle.first.weight"] == (128, 64, 3, 3)
    assert [shapes[f"up.{level}.first.weight"] for level in range(3)] == [
        (64, 192, 3, 3),
        (32, 96, 3, 3),
        (16, 48, 3, 3),
    ]
    assert shapes["end.first.weight"] == (16, 32, 3, 3)


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    both, one = canvas(), StyleNetwork(content()[1:], [generator(1, "s")], width=4)
    assert torch.allclose(both.render()["image"][1:], one.render()["image"], atol=1e-5)
    for weights, alone in zip(both.weights, one.weights, strict=True):
        assert torch.equal(weights[1:], alone)


def test_it_goes_downhill() -> None:
    made = canvas()
    stream = Stream(Terms((Term(TotalVariation()),)), torch.optim.SGD(made.parameters(), lr=0.003), unit_rms=True)
    last, trace = optimise(
        made, [stream], steps=4, generators=lambda what, step: [generator(0, what, step, row) for row in range(2)]
    )
    assert (trace["loss"].diff(dim=0) < 0).all()
    assert 0 <= last.min() <= last.max() <= 1


def test_content_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("too_small", least=16)):
        StyleNetwork(torch.rand(1, 3, 15, 40), [generator(0, "s")])
    with pytest.raises(UsageError, check=coded("does_not_fit")):
        canvas().encode(torch.rand(1, 3, *SIZE))
