"""Where VQGAN-CLIP's `text:weight:stop` ends a pull, and what holds its latents."""

from __future__ import annotations

import pytest
import torch

from robustclip.errors import UsageError, coded
from robustclip.losses import Cosine, LatentPrior, Spherical, Target
from robustclip.losses.similarity import Similarity
from robustclip.referees.toy import toy_referee
from robustclip.synthesis.guides import Guides
from robustclip.synthesis.prompts import Prompt


def loss(kind: type[Similarity], weights: list[float], stops: list[float] | None) -> Similarity:
    directions = toy_referee().embed_texts(["a"] * len(weights))[None]
    given = None if stops is None else torch.tensor([stops])
    return kind([Target(toy_referee(), directions, torch.tensor([weights]), 1.0, given)])


def release(distances: torch.Tensor, weight: float, stop: float) -> torch.Tensor:
    """VQGAN-CLIP's formula for one text, a number a view: |w| times s(d), d the distance times the weight's sign, where
    s has the value of d and the gradient of max(d, stop)."""
    signed = distances * (1 if weight > 0 else -1)
    slope = torch.maximum(signed, torch.tensor(stop))
    return abs(weight) * (signed.detach() + slope - slope.detach())


@pytest.mark.parametrize("kind", [Cosine, Spherical])
@pytest.mark.parametrize(("weight", "stop"), [(1.0, 0.8), (2.5, 0.8), (-0.3, -0.8), (-1.0, -0.2), (1.0, -5.0)])
def test_value_and_gradient_are_the_releases(kind: type[Similarity], weight: float, stop: float) -> None:
    cosines = torch.linspace(-0.9, 0.9, 7)[None, :, None]
    ours, theirs = cosines.clone().requires_grad_(), cosines.clone().requires_grad_()
    stopping = loss(kind, [weight], [stop])
    found = stopping.losses([ours])
    expected = release(stopping.distance(theirs), weight, stop)[..., 0]
    assert torch.allclose(found, expected)
    assert torch.equal(found, loss(kind, [weight], None).losses([cosines])), "the value stays"
    found.sum().backward()
    expected.sum().backward()
    assert torch.allclose(ours.grad, theirs.grad)


def test_what_pulls_stops_when_near_and_what_pushes_when_far() -> None:
    cosines = torch.tensor([[[0.1, 0.1], [0.3, 0.9]]], requires_grad=True)  # distances 0.9, 0.9 and 0.7, 0.1
    loss(Cosine, [1.0, -1.0], [0.8, -0.5]).losses([cosines]).sum().backward()
    assert cosines.grad is not None
    # The first text pulls until 0.8 is reached, in the second view it has; the other pushes until 0.5 is.
    assert cosines.grad[0].tolist() == [[-1, 0], [0, 1]]


def test_stops_are_of_the_targets_shape() -> None:
    with pytest.raises(UsageError, check=coded("wrong_shape", stops=(1, 2), weights=(1, 1))):
        loss(Cosine, [1.0], [0.5, 0.5])


def test_prompts_bring_their_stops() -> None:
    guides = Guides([toy_referee()], [1.0], torch.float32)
    (target,) = guides.targets([Prompt.parse("a cat:1:0.8 | a dog"), Prompt.parse("a cow")])
    assert target.stops is not None
    assert target.stops.tolist() == [[pytest.approx(0.8), -torch.inf], [-torch.inf, -torch.inf]]
    (without,) = guides.targets([Prompt.parse("a cat:2")])
    assert without.stops is None
    spherical = guides.spherical([Prompt.parse("a cat:2:0.8 | a dog:-1")])
    assert isinstance(spherical, Spherical)
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen, texts = toy_referee().embed_images(images)[0], toy_referee().embed_texts(["a cat", "a dog"])
    expected = 2 * (seen @ texts[0]) - seen @ texts[1]
    assert spherical.similarity(images[:, None]).item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_latent_prior_is_a_mean_square() -> None:
    latents = torch.tensor([[1.0, 2.0], [0.0, -2.0]]).view(2, 1, 2, 1, 1)
    assert LatentPrior()(latents).tolist() == [[2.5], [2.0]]
    start = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(2, 2, 1, 1)
    towards = LatentPrior(start)
    start.zero_()  # what it was given may change, as parameters do
    assert towards(latents).tolist() == [[2.0], [2.0]]
    assert str(towards) == "latent prior"
