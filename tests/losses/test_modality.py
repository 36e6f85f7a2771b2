"""The correction of the modality gap: planted rotations, blends by hand, what is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from robustclip.errors import UsageError
from robustclip.losses import Cosine, Pairs, Target, aligned, procrustes
from robustclip.losses.similarity import blend
from robustclip.referees.toy import toy_referee
from robustclip.runs.rng import generator

WIDTH = 16


def units(count: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, WIDTH, generator=generator(seed, "units")), dim=1)


def rotation(seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator(seed, "rotation"), dtype=torch.float64)).Q


def test_a_planted_rotation_is_recovered_exactly() -> None:
    texts, planted = units(40), rotation()
    found = procrustes(Pairs((texts.double() @ planted).float(), texts))
    assert torch.allclose(found, planted, atol=1e-6)
    noisy = Pairs(F.normalize((texts.double() @ planted).float() + 0.05 * units(40, 1), dim=1), texts)
    assert torch.allclose(procrustes(noisy), planted, atol=0.05)


def test_every_answer_is_orthogonal_and_no_rotation_fits_better() -> None:
    pairs = Pairs(units(40, 1), units(40, 2))
    found = procrustes(pairs)
    assert torch.allclose(found @ found.T, torch.eye(WIDTH, dtype=torch.float64), atol=1e-10)

    def misfit(matrix: torch.Tensor) -> float:
        return float((pairs.texts.double() @ matrix - pairs.images.double()).norm())

    assert all(misfit(found) < misfit(rotation(seed)) for seed in range(20))
    nearby = torch.linalg.matrix_exp(0.01 * (rotation(3) - rotation(3).T))
    assert misfit(found) < misfit(found @ nearby)


def test_the_identity_term_leaves_alone_what_no_pair_speaks_of() -> None:
    # One pair in the plane of the first two axes: a quarter turn there, and nothing elsewhere.
    axes = torch.eye(WIDTH)
    pairs = Pairs(axes[1:2], axes[:1])
    found = procrustes(pairs, identity=1e-9)
    expected = torch.eye(WIDTH, dtype=torch.float64)
    expected[:2, :2] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(procrustes(pairs, identity=1e9), torch.eye(WIDTH, dtype=torch.float64), atol=1e-6)


def test_a_blend_is_a_softmax_mean_of_unit_length() -> None:
    axes = torch.eye(WIDTH)
    found = blend(torch.tensor([0.2, 0.2 + 0.1 * torch.log(torch.tensor(3.0)).item()]), axes[:2], 0.1)
    assert found[:2].tolist() == pytest.approx([1 / 10**0.5, 3 / 10**0.5], abs=1e-6)  # 1/4 and 3/4, normalised


def test_each_text_gets_the_rotation_of_its_own_neighbours() -> None:
    """Two groups of captions, each with a rotation of its own."""
    first, second, texts = rotation(1), rotation(2), units(2)
    near = [F.normalize(text + 0.02 * units(30, seed), dim=1) for seed, text in enumerate(texts)]
    images = torch.cat([(own.double() @ turn).float() for own, turn in zip(near, (first, second), strict=True)])
    pairs = Pairs(images, torch.cat(near))
    target = Target(toy_referee(), texts[:, None], torch.ones(2, 1))
    found = aligned(target, torch.ones(2, 1, dtype=torch.bool), pairs, neighbours=30, identity=0.0)
    for row, turn in enumerate((first, second)):
        assert torch.allclose(found.directions[row, 0], (texts[row].double() @ turn).float(), atol=1e-4)
    assert found.weights.tolist() == [[1.0, 0.5], [1.0, 0.5]]
    assert torch.allclose(found.directions.norm(dim=-1), torch.ones(2, 2), atol=1e-5)


def test_pictures_padding_and_what_pushes_away() -> None:
    pairs, directions = Pairs(units(20, 1), units(20, 2)), units(3)[None].clone()
    directions[0, 2] = 0
    target = Target(toy_referee(), directions, torch.tensor([[1.0, -0.3, 0.0]]), stops=torch.zeros(1, 3))
    found = aligned(target, torch.tensor([[False, True, True]]), pairs)
    assert torch.equal(found.directions[0, [0, 2]], directions[0, [0, 2]]), "a picture, and padding"
    assert not torch.allclose(found.directions[0, 1], directions[0, 1], atol=0.1)
    assert found.weights.tolist() == [pytest.approx([1.0, -0.3, 0.0, 0.0, 0.0, 0.0])], "no blend pushes away"
    assert found.stops is not None
    assert found.stops.shape == (1, 6)


def test_pairs_are_what_a_referee_embeds() -> None:
    referee = toy_referee()
    images, captions = torch.rand(70, 3, 16, 16, generator=generator(0, "images")), [f"thing {n}" for n in range(70)]
    pairs = Pairs.of(referee, images, captions)
    assert torch.allclose(pairs.images, referee.embed_images(images), atol=1e-5)
    assert torch.equal(pairs.texts, referee.embed_texts(captions))
    cosines, near = pairs.nearest(pairs.texts[7], 200)
    assert len(cosines) == 70
    assert torch.equal(near.texts[0], pairs.texts[7])


def test_pooled_cosines_are_those_of_the_mean_embedding() -> None:
    referee = toy_referee()
    views = torch.rand(2, 3, 3, 16, 16, generator=generator(0, "views"))
    target = Target(referee, referee.embed_texts(["a cat"]).expand(2, 1, -1), torch.ones(2, 1))
    mean = F.normalize(referee.embed_images(views.flatten(0, 1)).unflatten(0, (2, 3)).mean(1), dim=-1)
    expected = 1 - (mean @ target.directions[0, 0])[:, None].expand(2, 3)
    assert torch.allclose(Cosine([target], pooled=True)(views), expected, atol=1e-6)
    assert not torch.allclose(Cosine([target])(views), expected, atol=1e-2)


@pytest.mark.parametrize("changed", [{"neighbours": 0}, {"identity": -1.0}, {"blending": -0.1}, {"temperature": 0.0}])
def test_numbers_without_meaning_are_refused(changed: dict[str, float]) -> None:
    target = Target(toy_referee(), units(1)[None], torch.ones(1, 1))
    with pytest.raises(UsageError):
        aligned(target, torch.ones(1, 1, dtype=torch.bool), Pairs(units(3), units(3, 1)), **changed)  # type: ignore[arg-type]


def test_pairs_without_a_picture_or_of_two_sizes_are_refused() -> None:
    for images in (units(3), torch.empty(0, WIDTH)):
        with pytest.raises(UsageError):
            Pairs(images, torch.empty(0, WIDTH))
    assert replace(Pairs(units(2), units(2)), texts=units(2, 1)).texts.shape == (2, WIDTH)
