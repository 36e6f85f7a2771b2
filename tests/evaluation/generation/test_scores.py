from __future__ import annotations

import numpy as np
import pytest
import torch

from robustclip.errors import UsageError, coded
from robustclip.evaluation import intervals
from robustclip.evaluation.generation.embeddings import PREFIX, clip_score, cosine, embed_texts
from robustclip.evaluation.intervals import preference

IMAGES = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
TEXTS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])


def test_clipscore_is_not_the_cosine() -> None:
    torch.testing.assert_close(cosine(IMAGES, TEXTS), torch.tensor([0.6, -1.0, 1.0]))
    torch.testing.assert_close(clip_score(IMAGES, TEXTS), torch.tensor([1.5, 0.0, 2.5]))


def test_the_prefix_is_read_and_not_kept(colour_referee) -> None:
    judge = colour_referee(words={f"{PREFIX}red": (0.0, 2.0, 0.0), "red": (1.0, 0.0, 0.0)})

    assert embed_texts(judge, ["red"], prefix=PREFIX).of(["red"]).tolist() == [[0, 1, 0]]
    assert embed_texts(judge, ["red"]).of(["red"]).tolist() == [[1, 0, 0]]


def test_lists_that_do_not_pair_are_refused() -> None:
    with pytest.raises(UsageError, check=coded("wrong_shape")):
        cosine(IMAGES, TEXTS[:1])


def test_a_preference_counts_ties_half() -> None:
    found = preference([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 4.0, 0.0])

    assert (found.value, found.n) == (2.5 / 4, 4)
    assert 0 <= found.low < 2.5 / 4 < found.high <= 1


def test_a_preference_without_ties_is_a_rate() -> None:
    scores, others = np.random.default_rng(0).normal(size=(2, 50))

    found, expected = preference(scores, others), intervals.rate(scores > others)

    assert (found.value, found.n) == (expected.value, expected.n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("scores", "others", "code"),
    [([1.0], [1.0, 2.0], "not_paired"), ([], [], "not_paired"), ([float("nan")], [1.0], "not_finite")],
)
def test_what_has_no_preference(scores: list[float], others: list[float], code: str) -> None:
    with pytest.raises(UsageError, check=coded(code)):
        preference(scores, others)
