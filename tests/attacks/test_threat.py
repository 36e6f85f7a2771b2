from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustclip.attacks.threat import Norm, ThreatModel
from robustclip.errors import UsageError, coded

NORMS: list[Norm] = ["l2", "linf"]


def threat_of(norm: Norm, eps: float = 0.5, size: int = 8) -> ThreatModel:
    return ThreatModel(norm, eps, size)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_threat_model_prints_what_eps_means_at_its_size() -> None:
    assert str(ThreatModel("l2", 1.5, 64)) == "L2 eps 1.5 at 64x64 (RMS 0.0135 = 3.45/255)"
    assert str(ThreatModel("linf", 4 / 255, (32, 64))) == "L-inf eps 0.01569 at 32x64 (RMS 0.0157 = 4.00/255)"
    assert ThreatModel("l2", 1.5, 64).rms == pytest.approx(1.5 / math.sqrt(3 * 64 * 64))


@pytest.mark.parametrize("norm", NORMS)
def test_rms_is_that_of_the_largest_perturbation(norm: Norm) -> None:
    threat = threat_of(norm)
    largest = threat.project(100 * normal(4, 3, 8, 8).sign())
    assert largest.square().mean((1, 2, 3)).sqrt().tolist() == pytest.approx([threat.rms] * 4)


def test_resized_keeps_the_change_of_a_pixel() -> None:
    threat = ThreatModel("l2", 1.5, 64)
    assert threat.resized(224) == ThreatModel("l2", 5.25, 224)
    assert threat.resized(224).rms == pytest.approx(threat.rms)
    assert ThreatModel("linf", 0.1, 64).resized(224) == ThreatModel("linf", 0.1, 224)


def test_json_round_trip() -> None:
    threat = ThreatModel("l2", 1.5, (32, 64))
    assert threat.to_json() == {"norm": "l2", "eps": 1.5, "size": [32, 64]}
    assert ThreatModel.from_json(threat.to_json()) == threat
    with pytest.raises(UsageError, check=coded("wrong_entries", entries=["eps", "norm"])):
        ThreatModel.from_json({"norm": "l2", "eps": 1.5})


@pytest.mark.parametrize(
    ("norm", "eps", "size", "check"),
    [
        ("l1", 1.5, 64, coded("unknown_norm", norm="l1")),
        ("l2", 1e-20, 64, coded("too_small", eps=1e-20)),
        ("linf", 1e-320, 64, coded("too_small")),
        ("l2", 0.0, 64, coded("not_positive", argument="eps", given=0.0)),
        ("l2", -1.5, 64, coded("not_positive", argument="eps", given=-1.5)),
        ("linf", math.nan, 64, coded("not_positive", argument="eps")),
        ("linf", math.inf, 64, coded("not_positive", argument="eps")),
        ("l2", 1.5, 0, coded("not_a_size", size=0)),
        ("l2", 1.5, (3, 64, 64), coded("not_a_size", size=(3, 64, 64))),
        ("l2", 382.5, 224, coded("eps_in_255", eps=382.5)),
        ("l2", 382.5, 64, coded("eps_in_255", eps=382.5)),
        ("linf", 4, 224, coded("eps_in_255", eps=4)),
        ("linf", 1, 224, coded("eps_in_255", eps=1)),
    ],
)
def test_faults_of_a_threat_model(norm: Norm, eps: float, size: int, check) -> None:
    with pytest.raises(UsageError, check=check):
        ThreatModel(norm, eps, size)


def test_the_largest_balls_of_the_literature_pass() -> None:
    ThreatModel("l2", 60.0, 224)  # image-to-image translation of MadryLab's robust classifiers
    ThreatModel("linf", 64 / 255, 224)


def test_images_of_another_size_need_another_eps() -> None:
    with pytest.raises(UsageError, check=coded("other_size", size=(224, 224), expected=(64, 64))):
        ThreatModel("l2", 1.5, 64).check(torch.rand(1, 3, 224, 224))
    ThreatModel("linf", 0.1, 64).check(torch.rand(1, 3, 224, 224))  # L-inf means the same at every size


@pytest.mark.parametrize(
    ("images", "check"),
    [
        (torch.rand(3, 8, 8), coded("wrong_shape", shape=(3, 8, 8))),
        (torch.rand(1, 4, 8, 8), coded("wrong_shape", shape=(1, 4, 8, 8))),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), coded("wrong_shape", dtype=torch.uint8)),
        (torch.full((1, 3, 8, 8), 255.0), coded("pixels_out_of_range")),
        (torch.full((1, 3, 8, 8), -0.01), coded("pixels_out_of_range")),
        (torch.full((1, 3, 8, 8), math.nan), coded("pixels_out_of_range")),
    ],
)
def test_images_an_attack_would_misread(images: torch.Tensor, check) -> None:
    with pytest.raises(UsageError, check=check):
        threat_of("l2").check(images)


def test_overshoot_of_resizing_and_empty_batches_pass() -> None:
    threat_of("l2").check(torch.full((1, 3, 8, 8), 1.0005))
    threat_of("l2").check(torch.zeros(0, 3, 8, 8))


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_idempotent_and_leaves_the_inside_alone(norm: Norm) -> None:
    threat = threat_of(norm)
    delta = normal(8, 3, 8, 8) * torch.logspace(-4, 1, 8).reshape(8, 1, 1, 1)
    inside = threat.norms(delta) <= threat.eps
    assert 0 < inside.sum() < 8
    projected = threat.project(delta)
    assert torch.equal(projected[inside], delta[inside])
    assert threat.norms(projected)[~inside].tolist() == pytest.approx([threat.eps] * int((~inside).sum()))
    torch.testing.assert_close(threat.project(projected), projected)
    assert threat.contains(projected).all()
    assert torch.equal(threat.contains(delta), inside)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_finds_the_nearest_point(norm: Norm) -> None:
    threat = threat_of(norm)
    delta = normal(1, 3, 8, 8)
    nearest = (delta - threat.project(delta)).norm()
    for seed in range(1, 50):
        inside = threat.project(delta + 0.3 * normal(1, 3, 8, 8, seed=seed))
        assert (delta - inside).norm() >= nearest


def test_steepest_by_hand() -> None:
    gradient = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, -2.0]])
    torch.testing.assert_close(threat_of("l2").steepest(gradient), torch.tensor([[0.6, -0.8, 0], [0, 0, -1]]))
    torch.testing.assert_close(threat_of("linf").steepest(gradient), torch.tensor([[1.0, -1, 0], [0, 0, -1]]))


@pytest.mark.parametrize("norm", NORMS)
def test_zero_and_broken_gradients_point_nowhere(norm: Norm) -> None:
    gradient = normal(4, 3, 8, 8)
    gradient[0] = 0
    gradient[1, 0, 0, 0] = math.nan
    gradient[2, 0, 0, 0] = -math.inf
    steepest = threat_of(norm).steepest(gradient)
    assert (steepest[:3] == 0).all()
    assert torch.equal(steepest[3:], threat_of(norm).steepest(gradient[3:]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("norm", NORMS)
def test_tiny_and_huge_gradients_keep_their_direction(norm: Norm, scale: float) -> None:
    gradient = normal(2, 3, 8, 8)
    torch.testing.assert_close(threat_of(norm).steepest(scale * gradient), threat_of(norm).steepest(gradient))


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_fill_the_ball(norm: Norm) -> None:
    threat = threat_of(norm)
    start = threat.random_start(torch.zeros(512, 3, 8, 8), torch.Generator().manual_seed(0))
    lengths = threat.norms(start) / threat.eps
    assert lengths.max() <= 1 + 1e-6
    spread = lengths if norm == "l2" else (start[:, 0].flatten() / threat.eps + 1) / 2
    quantiles = spread.quantile(torch.tensor([0.25, 0.5, 0.75]))  # uniform in radius, or in each pixel
    assert quantiles.tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.06)
    assert start.mean().abs() < 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_follow_the_generator_and_the_layout(norm: Norm) -> None:
    threat = threat_of(norm)
    images = torch.rand(2, 3, 8, 8)
    plain = threat.random_start(images, torch.Generator().manual_seed(1))
    last = threat.random_start(images.to(memory_format=torch.channels_last), torch.Generator().manual_seed(1))
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(plain, threat.random_start(images, torch.Generator().manual_seed(2)))


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.floats(1e-3, 0.9),
    reach=st.floats(0, 10),
    seed=st.integers(0, 2**31),
    saturated=st.booleans(),
)
def test_projecting_then_clamping_keeps_both_constraints(
    norm: Norm, eps: float, reach: float, seed: int, saturated: bool
) -> None:
    threat = threat_of(norm, eps)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    if saturated:
        images = images.round()
    adversarial = (images + threat.project(reach * normal(3, 3, 8, 8, seed=seed))).clamp(0, 1)
    assert threat.contains(adversarial - images).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
