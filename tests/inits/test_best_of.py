from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from robustclip.errors import RunError, UsageError, coded
from robustclip.inits import Pool, best_of, embedder, noise, raw_embed
from robustclip.referees.toy import toy_referee
from robustclip.runs import rng

CPU = torch.device("cpu")


def streams(count: int, first: int = 0) -> list[torch.Generator]:
    return [rng.generator(0, "init", index) for index in range(first, first + count)]


def brightness(candidates: Tensor) -> Tensor:
    return candidates.mean((2, 3, 4))


def shades(height: int, width: int, generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """One shade of grey a picture, a multiple of 1/4, so that ties occur."""
    shade = torch.cat([torch.randint(0, 5, (1,), generator=one) for one in generators]) / 4
    return shade[:, None, None, None].expand(-1, 3, height, width)


@pytest.mark.parametrize("chunk", [1, 5, 7, 1000])
def test_the_best_of_all_candidates_wins_however_they_are_chunked(chunk: int) -> None:
    n, pictures = 9, 3
    drawn = torch.stack([noise(4, 4, [one] * n, CPU) for one in streams(pictures)])
    expected = drawn[torch.arange(pictures), brightness(drawn).argmax(1)]
    found = best_of(noise, n, brightness, chunk=chunk)(4, 4, streams(pictures), CPU)
    assert torch.equal(found, expected)
    assert not torch.equal(found, drawn[:, 0]), "the first is not always the best"


def test_each_picture_is_scored_for_itself() -> None:
    def wanted(candidates: Tensor) -> Tensor:  # picture 0 wants to be dark, picture 1 bright
        return brightness(candidates) * torch.tensor([[-1.0], [1.0]])

    dark, bright = best_of(shades, 30, wanted)(2, 2, streams(2), CPU)
    assert (dark == 0).all()
    assert (bright == 1).all()


def test_among_equals_the_first_wins() -> None:
    def equal(candidates: Tensor) -> Tensor:
        return torch.zeros(candidates.shape[:2])

    first = noise(2, 2, streams(2), CPU)
    for chunk in (1, 100):
        assert torch.equal(best_of(noise, 6, equal, chunk=chunk)(2, 2, streams(2), CPU), first)


def test_the_choice_does_not_depend_on_the_batch() -> None:
    init = best_of(noise, 6, brightness, chunk=8)
    together = init(4, 4, streams(3), CPU)
    assert torch.equal(together[1:2], init(4, 4, streams(1, 1), CPU))
    assert init(4, 4, [], CPU).shape == (0, 3, 4, 4)


def test_no_gradients_are_kept() -> None:
    weight = torch.ones((), requires_grad=True)
    found = best_of(noise, 3, lambda candidates: weight * brightness(candidates))(2, 2, streams(1), CPU)
    assert not found.requires_grad


def test_faulty_scores_are_refused() -> None:
    with pytest.raises(UsageError, check=coded("out_of_range", n=0)):
        best_of(noise, 0, brightness)
    with pytest.raises(UsageError, check=coded("wrong_shape", shape=(2, 3, 3), expected=(2, 3))):
        best_of(noise, 3, lambda candidates: candidates.mean((3, 4)))(2, 2, streams(2), CPU)
    with pytest.raises(RunError, check=coded("not_finite")):
        best_of(noise, 3, lambda candidates: brightness(candidates) * float("nan"))(2, 2, streams(1), CPU)


def test_a_pool_is_embedded_once_for_any_number_of_prompts() -> None:
    seen: list[Tensor] = []

    def embed(images: Tensor) -> Tensor:
        seen.append(images)
        return images.mean((2, 3))

    candidates = torch.eye(3)[:, :, None, None].expand(-1, -1, 2, 2)  # red, green, blue
    pool = Pool.of(candidates, embed, 6, 8, chunk=2)
    assert [len(images) for images in seen] == [2, 1]
    assert seen[0].shape == (2, 3, 6, 8), "embedded at the size of the canvas"
    directions = torch.tensor([[0.1, 0.9, 0.2], [0.0, 0.0, 1.0], [0.5, 0.4, 0.1], [0.0, 2.0, 0.0]])
    indices, scores = pool.best(lambda embeddings: directions @ embeddings.T)
    assert indices.tolist() == [1, 2, 0, 1]
    assert scores.tolist() == pytest.approx([0.9, 1.0, 0.5, 2.0])
    assert pool.images(indices).allclose(torch.eye(3)[indices][:, :, None, None].expand(-1, -1, 6, 8))
    pool.best(lambda embeddings: directions[:2] @ embeddings.T)
    assert len(seen) == 2, "not embedded again"


def test_ranking_without_normalisation_is_another_and_not_the_default() -> None:
    referee = toy_referee()
    candidates = noise(16, 16, streams(64), CPU)
    images = referee.preprocess.resize(candidates)
    expected = torch.nn.functional.normalize(referee.image_tower(images), dim=-1)
    torch.testing.assert_close(raw_embed(referee, candidates), expected)
    direction = referee.embed_texts(["a turtle"])

    def ranking(**arguments: bool) -> list[int]:
        pool = Pool.of(candidates, embedder([referee], **arguments), 16, 16)
        return (pool.embeddings @ direction[0]).argsort().tolist()

    default = (referee.embed_images(candidates) @ direction[0]).argsort().tolist()
    assert ranking() == default
    assert ranking(raw=True) != default


def test_embeddings_of_several_referees_lie_side_by_side() -> None:
    first, second = toy_referee(), toy_referee(size=8, width=12, seed=1)
    candidates = noise(16, 16, streams(3), CPU)
    found = embedder([first, second])(candidates)
    torch.testing.assert_close(found, torch.cat([first.embed_images(candidates), second.embed_images(candidates)], 1))


def test_pools_of_nothing_are_refused() -> None:
    with pytest.raises(UsageError, check=coded("out_of_range", candidates=0)):
        Pool.of(torch.empty(0, 3, 2, 2), lambda images: images.mean((2, 3)), 4, 4)
    with pytest.raises(UsageError, check=coded("no_referees")):
        embedder([])
    pool = Pool.of(torch.rand(2, 3, 2, 2), lambda images: images.mean((2, 3)), 4, 4)
    with pytest.raises(UsageError, check=coded("wrong_shape", shape=(2, 3), expected=(2, 2))):
        pool.best(lambda embeddings: embeddings)
