"""Against closed forms, scipy's root of a matrix, and torchmetrics."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torch import Tensor, nn

from robustclip.errors import UsageError, coded
from robustclip.evaluation.generation.measure import cmmd, frechet_distance, inception_score
from robustclip.evaluation.intervals import jackknife


def drawn(seed: int, count: int, width: int, *, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return shift + scale * torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()


def whitened(seed: int, count: int, width: int) -> Tensor:
    """A sample whose mean is exactly 0 and whose covariance is exactly the identity."""
    raw = drawn(seed, count, width)
    raw = raw - raw.mean(0)
    return torch.linalg.qr(raw).Q * (count - 1) ** 0.5


def test_two_gaussians_of_known_mean_and_covariance() -> None:
    first = whitened(0, 50, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    second = whitened(1, 80, 4) * 2 + torch.tensor([1.0, 0.0, -2.0, 0.0])

    # Covariances that commute: the squared distance of the means, and of the standard deviations.
    assert frechet_distance(first, second) == pytest.approx(5.0 + (1 + 0 + 1 + 4))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("count", "other"), [(60, 90), (60, 5), (4, 5)], ids=["many", "few real", "few"])
def test_the_frechet_distance_is_scipys_and_torchmetrics(count: int, other: int) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    mixing = drawn(7, 8, 8)
    first, second = drawn(0, count, 8) @ mixing, drawn(1, other, 8, scale=0.5, shift=0.3)
    covariances = [np.cov(one.numpy(), rowvar=False) for one in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(8)).real
    apart = float((first.mean(0) - second.mean(0)).square().sum())
    by_scipy = apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    given_features = nn.Identity()
    given_features.num_features = 8  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=given_features, normalize=True).set_dtype(torch.float64)
    metric.update(first, real=False)
    metric.update(second, real=True)

    found = frechet_distance(first, second)

    assert found == pytest.approx(by_scipy, rel=1e-4)
    assert found == pytest.approx(float(metric.compute()), rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(0, 1000))
def test_distances_are_symmetric_and_never_negative(n: int, m: int, width: int, seed: int) -> None:
    first, second = drawn(seed, n, width), drawn(seed + 1, m, width, shift=0.1)
    for distance in (frechet_distance, cmmd):
        assert distance(first, second) == pytest.approx(distance(second, first), abs=1e-6)
        assert distance(first, second) >= -1e-6
        assert distance(first, first) == pytest.approx(0, abs=1e-6)


def test_cmmd_of_single_directions() -> None:
    first, second = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 2)

    # k(x, x) = 1, and |x - y|^2 = 2 under sigma 10
    assert cmmd(first, second) == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)))


def test_the_inception_score_of_sure_and_of_unsure_answers() -> None:
    sure = 1000 * torch.eye(4)

    assert inception_score(sure) == pytest.approx(4)  # every class once, without a doubt
    assert inception_score(sure[[0, 0, 1, 1]]) == pytest.approx(2)
    assert inception_score(torch.zeros(4, 4)) == pytest.approx(1)
    assert inception_score(sure[[2, 2]]) == pytest.approx(1)


def test_the_inception_score_is_torchmetrics() -> None:
    from torchmetrics.image.inception import InceptionScore

    logits = drawn(2, 40, 6, scale=3)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # of the buffer it keeps, and of the deviation of one split
        metric = InceptionScore(feature=nn.Identity(), splits=1)
        metric.update(logits)
        expected = float(metric.compute()[0])

    assert inception_score(logits) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("measure", "check"),
    [
        (partial(frechet_distance, torch.ones(3, 2), torch.ones(3, 4)), coded("wrong_shape")),
        (partial(cmmd, torch.ones(1, 2), torch.ones(3, 2)), coded("too_few", given=(1, 3))),
        (partial(inception_score, torch.ones(1, 2)), coded("too_few", given=1)),
        (partial(jackknife, frechet_distance, torch.ones(2, 2), seed=0), coded("too_few", given=2)),
    ],
)
def test_too_little_to_measure(measure: partial, check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        measure()


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = drawn(3, 20, 1)

    found = jackknife(lambda one: float(one.mean()), values, seed=0)

    half = 1.959964 * float(values.std()) / 20**0.5
    assert found.value == pytest.approx(float(values.mean()))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    assert found.n == 20


def test_the_jackknife_adds_what_two_sets_are_unsure_of() -> None:
    first, second = drawn(3, 20, 1), drawn(4, 20, 1, scale=2)

    found = jackknife(lambda one, other: float(one.mean() - other.mean()), first, second, seed=0)

    half = 1.959964 * float(first.var() / 20 + second.var() / 20) ** 0.5
    assert found.high - found.low == pytest.approx(2 * half)


def test_the_jackknifes_interval_holds_the_truth() -> None:
    """Of 20 Fréchet distances, each measured on 400 pictures, about 19 intervals hold the true one."""
    truth = 3 * 0.5**2 + 3 * (1.5 - 1) ** 2
    found = [
        jackknife(frechet_distance, drawn(2 * n, 400, 3, scale=1.5, shift=0.5), drawn(2 * n + 1, 400, 3), seed=n, low=0)
        for n in range(20)
    ]

    assert sum(one.low <= truth <= one.high for one in found) >= 15
    assert np.mean([one.high - one.low for one in found]) < truth
