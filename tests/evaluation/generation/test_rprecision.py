from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import RunError, UsageError, coded
from robustclip.evaluation.generation.embeddings import Texts, embed, embed_texts, r_precision


def texts_of(names: list[str], vectors: Tensor) -> Texts:
    return Texts(tuple(names), F.normalize(vectors, dim=1))


def test_by_hand(colour_referee, plain) -> None:
    judge = colour_referee()
    prompts = ["red", "green", "blue", "red"]
    images = embed(judge, plain((0.9, 0.1, 0.0), (0.2, 0.3, 0.1), (0.3, 0.2, 0.1), (0.5, 0.5, 0.0)), batch_size=3)

    found = r_precision(images, prompts, embed_texts(judge, prompts), ids=list("abcd"))

    assert found.ranks.tolist() == [0, 0, 2, 1]  # the last is a tie, which is a miss
    assert found.hits.tolist() == [True, True, False, False]
    assert found.picked[:3] == ["red", "green", "red"]
    assert (found.candidates, found.chance) == (3, 1 / 3)


def test_texts_are_told_apart_once_and_sorted(colour_referee) -> None:
    texts = embed_texts(colour_referee(), ["red", "blue", "red"])

    assert texts.texts == ("blue", "red")
    assert texts.of(["red", "blue"]).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_the_draw_depends_on_the_seed_and_the_id_alone() -> None:
    stream = torch.Generator().manual_seed(0)
    names = sorted(f"text {n}" for n in range(50))
    texts = texts_of(names, torch.randn(50, 4, generator=stream))
    images = F.normalize(torch.randn(20, 4, generator=stream), dim=1)
    prompts, ids = names[10:30], [f"id {n}" for n in range(20)]

    whole = r_precision(images, prompts, texts, ids=ids, candidates=5, seed=3)
    part = r_precision(images[7:9], prompts[7:9], texts, ids=ids[7:9], candidates=5, seed=3)
    other = r_precision(images, prompts, texts, ids=ids, candidates=5, seed=4)

    assert part.ranks.tolist() == whole.ranks[7:9].tolist()
    assert part.picked == whole.picked[7:9]
    assert other.picked != whole.picked


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**31))
def test_candidates_are_different_texts_and_the_own_one_is_among_them(count: int, seed: int) -> None:
    """Orthogonal texts, and a picture that is near all of them: the rank counts the others shown that are nearer."""
    names = sorted(f"text {n}" for n in range(12))
    texts = Texts(tuple(names), torch.eye(12))
    nearness = torch.arange(12.0)[None]
    last = r_precision(nearness, [names[0]], texts, ids=["a"], candidates=count, seed=seed)
    first = r_precision(nearness, [names[11]], texts, ids=["a"], candidates=count, seed=seed)

    assert last.ranks.tolist() == [count - 1]  # all others are nearer: so many different ones were shown
    assert first.ranks.tolist() == [0]
    assert last.picked[0] != names[0]
    assert first.picked == [names[11]]


def test_guessing_has_the_rate_of_chance() -> None:
    stream = torch.Generator().manual_seed(1)
    names = [f"{n:04}" for n in range(400)]
    texts = texts_of(names, torch.randn(400, 64, generator=stream))
    images = F.normalize(torch.randn(2000, 64, generator=stream), dim=1)
    prompts = [names[n % 400] for n in range(2000)]

    found = r_precision(images, prompts, texts, ids=[str(n) for n in range(2000)], candidates=10)

    assert found.chance == 0.1
    assert found.hits.mean() == pytest.approx(0.1, abs=0.027)  # four standard errors


def test_more_pictures_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts(("a", "b", "c"), torch.eye(3))
    images, prompts = torch.eye(3)[[0, 1, 1, 2, 0]], ["a", "b", "c", "c", "b"]
    monkeypatch.setattr("robustclip.evaluation.generation.embeddings.CHUNK", 2)

    assert r_precision(images, prompts, texts, ids=list("abcde")).hits.tolist() == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("prompts", "ids", "candidates", "check"),
    [
        (["a", "b"], ["1", "2"], 4, coded("too_few_prompts", candidates=4, prompts=3)),
        (["a", "b"], ["1", "2"], 1, coded("too_few", candidates=1)),
        (["a", "b"], ["1"], None, coded("unequal_lengths", pictures=2, prompts=2, ids=1)),
        (["a", "x"], ["1", "2"], None, coded("unknown_text", given="x")),
    ],
)
def test_bad_questions(prompts: list[str], ids: list[str], candidates: int | None, check: Any) -> None:
    texts = Texts(("a", "b", "c"), torch.eye(3))

    with pytest.raises(UsageError, check=check):
        r_precision(torch.eye(3)[:2], prompts, texts, ids=ids, candidates=candidates)


def test_an_empty_prompt_and_one_text_are_refused(colour_referee) -> None:
    with pytest.raises(UsageError, check=coded("no_prompt")):
        embed_texts(colour_referee(), ["red", " "])
    with pytest.raises(UsageError, match=r"write \['red'\]"):
        embed_texts(colour_referee(), "red")


def test_what_a_judge_makes_no_number_of_is_an_error(colour_referee, plain) -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            means = images.mean((2, 3))
            return means / (means[:, :1] < 0.5)

    judge = colour_referee(tower=Broken())

    with pytest.raises(RunError, check=coded("not_finite", lost=1)):
        embed(judge, plain((0.1, 0.0, 0.0), (0.9, 0.0, 0.0)))
