"""Codes: the nearest by hand, gradients that pass through, the range of the codebook, pictures that stay alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustclip.canvases import Codes
from robustclip.errors import UsageError, coded
from robustclip.losses import Cosine, Target
from robustclip.referees.toy import toy_referee
from robustclip.runs.rng import generator
from robustclip.synthesis.loop import optimise
from robustclip.synthesis.terms import Stream, Term, Terms

SIZE = (8, 12)  # not square


class Blocks:
    """The simplest generator: a code is a colour, and stands for 2x2 pixels of it."""

    factor = 2
    channels = 3

    def __init__(self, codebook: Tensor) -> None:
        self.codebook = codebook
        self.low, self.high = codebook.amin(0), codebook.amax(0)

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 2)

    def quantise(self, latents: Tensor) -> Tensor:
        index = torch.cdist(latents.detach().movedim(1, 3), self.codebook).argmin(-1)
        return latents + (self.codebook[index].movedim(3, 1) - latents).detach()

    def decode(self, codes: Tensor) -> Tensor:
        return codes.repeat_interleave(2, 2).repeat_interleave(2, 3)


def colours(count: int = 27) -> Blocks:
    return Blocks(torch.rand(count, 3, generator=torch.Generator().manual_seed(0)))


def canvas(*seeds: int, decoder: Blocks | None = None) -> Codes:
    return Codes(decoder or colours(), SIZE, [generator(seed, "start") for seed in seeds])


def test_it_starts_from_entries_of_the_codebook_drawn_for_each_picture() -> None:
    decoder = colours()
    made = canvas(0, 1, decoder=decoder)
    latent = made.render()["latent"]
    assert latent.shape == (2, 3, 4, 6)
    places = latent.detach().movedim(1, 3).flatten(0, 2)
    assert (places[:, None] == decoder.codebook).all(2).any(1).all()
    assert len(places.unique(dim=0)) > 10
    assert not torch.equal(latent[0], latent[1])
    assert torch.equal(canvas(1, decoder=decoder).render()["latent"][0], latent[1]), "whoever is beside it"


def test_the_picture_is_the_nearest_code_decoded() -> None:
    decoder = Blocks(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    made = canvas(0, decoder=decoder)
    with torch.no_grad():
        made.latent.copy_(torch.tensor([0.8, 0.3, 0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 6))
    assert torch.allclose(made.render()["image"], torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, *SIZE))


def test_gradients_pass_straight_through_the_codes() -> None:
    made = canvas(0)
    made.render()["image"].sum().backward()  # of four pixels each
    assert made.latent.grad is not None
    assert torch.allclose(made.latent.grad, torch.full((1, 3, 4, 6), 4.0))


@pytest.mark.parametrize(
    ("value", "sign", "passes"), [(1.5, 1, True), (1.5, -1, False), (-0.5, 1, False), (0.5, 1, True)]
)
def test_what_is_cut_off_keeps_the_gradient_that_leads_back(value: float, sign: float, passes: bool) -> None:
    """A step goes against the gradient."""
    made = canvas(0, decoder=Blocks(torch.full((1, 3), value)))
    image = made.render()["image"]
    assert torch.equal(image, torch.full_like(image, min(max(value, 0), 1)))
    (sign * image).sum().backward()
    assert made.latent.grad is not None
    assert torch.allclose(made.latent.grad, torch.full((1, 3, 4, 6), 4.0 * sign * passes))


def test_projection_cuts_each_channel_to_the_range_of_the_codebook() -> None:
    decoder = Blocks(torch.tensor([[0.0, -1.0, 5.0], [1.0, 2.0, 5.5]]))
    made = canvas(0, decoder=decoder)
    with torch.no_grad():
        made.latent[0, :, 0, 0] = torch.tensor([-3.0, 3.0, 5.2])
    made.project()
    assert made.latent[0, :, 0, 0].tolist() == pytest.approx([0.0, 2.0, 5.2])


def targets(*texts: str) -> list[Target]:
    referee = toy_referee()
    return [Target(referee, referee.embed_texts(list(texts))[:, None], torch.ones(len(texts), 1))]


def painted(seeds: list[int], texts: list[str], steps: int = 40) -> tuple[Tensor, Tensor]:
    made = canvas(*seeds, decoder=colours(512))
    stream = Stream(Terms((Term(Cosine(targets(*texts))),)), torch.optim.Adam(made.parameters(), lr=0.05))
    last, trace = optimise(
        made, [stream], steps=steps, generators=lambda what, step: [generator(seed, what, step) for seed in seeds]
    )
    return last, trace["loss"]


def test_it_goes_downhill() -> None:
    last, loss = painted([0, 1], ["a cat", "a dog"])
    assert (loss[-5:].mean(0) < loss[0] - 0.05).all()
    assert last.min() >= 0
    assert last.max() <= 1


def test_a_picture_is_painted_the_same_alone() -> None:
    together, _ = painted([0, 1], ["a cat", "a dog"], steps=5)
    alone, _ = painted([1], ["a dog"], steps=5)
    assert torch.allclose(together[1], alone[0], atol=1e-5)


def test_it_starts_from_images() -> None:
    decoder = Blocks(torch.cartesian_prod(*[torch.linspace(0, 1, 11)] * 3))
    made = canvas(0, 1, decoder=decoder)
    images = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    made.encode(decoder.decode(images))
    assert torch.allclose(made.render()["latent"], images)
    assert torch.allclose(made.render()["image"], decoder.decode(images), atol=0.051), "half a step of each colour"
    with pytest.raises(UsageError, check=coded("does_not_fit", expected=(2, 3, 8, 12), shape=(2, 3, 8, 8))):
        made.encode(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("size", [(7, 12), (8, 11), (0, 8)])
def test_a_size_that_is_not_whole_in_codes_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, check=coded("size_not_divisible", size=size, factor=2)):
        Codes(colours(), size, [generator(0, "start")])


def test_the_generator_is_not_what_is_optimised() -> None:
    assert [name for name, _ in canvas(0).named_parameters()] == ["latent"]
