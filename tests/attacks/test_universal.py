"""A linear loss has a known best perturbation: eps times the steepest direction of its mean weights, if no pixel is
clamped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustclip.attacks.spec import check_inside
from robustclip.attacks.threat import ThreatModel
from robustclip.attacks.universal import added, fitted, permuted, universal_perturbation
from robustclip.errors import RunError, UsageError


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(weights: Tensor):
    return lambda images: (images * weights).sum((1, 2, 3))


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.3), ("linf", 4 / 255)])
def test_of_linear_losses_it_is_the_steepest_direction_of_their_mean(norm: str, eps: float) -> None:
    one, other = noise(3, 5, 6, seed=1), noise(3, 5, 6, seed=2)
    threat = ThreatModel(norm, eps, (5, 6))  # type: ignore[arg-type]
    grey = torch.full((2, 3, 5, 6), 0.5)
    batches = [(grey, [linear(one), linear(other)])] * 4
    seen: list[float] = []

    delta = universal_perturbation(batches, threat, step_size=eps / 2, watch=seen.append)

    mean = (one + other) / 2
    wanted = eps * (mean / mean.norm() if norm == "l2" else mean.sign())
    torch.testing.assert_close(delta, wanted)
    gain = eps * float(mean.norm() if norm == "l2" else mean.abs().sum())  # reached by half after one step
    assert [seen[1] - seen[0], seen[2] - seen[0], seen[3] - seen[0]] == pytest.approx([gain / 2, gain, gain], rel=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_clamping_would_undo_is_left_out(sign: int) -> None:
    """Black pixels on the left, white ones on the right: one side can follow the weights, and takes the whole norm."""
    images = torch.tensor([0.0, 1.0]).expand(1, 3, 2, 2)
    losses = [linear(torch.full((3, 2, 2), float(sign)))]
    delta = universal_perturbation([(images, losses)] * 3, ThreatModel("l2", 0.1, 2), step_size=0.05)
    side = torch.tensor([1.0, 0.0] if sign > 0 else [0.0, -1.0])
    torch.testing.assert_close(delta, (0.1 / 6**0.5) * side.expand(3, 2, 2))


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.floats(1e-3, 0.2),
    seed=st.integers(0, 99),
    sides=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    step=st.floats(1e-3, 1),
)
def test_it_stays_inside_at_any_size_and_images_in_0_1(norm, eps, seed, sides, step) -> None:
    threat, images = ThreatModel(norm, eps, (4, 5)), noise(4, 3, 4, 5, seed=seed).sigmoid()
    weights = noise(3, 4, 5, seed=seed + 1)
    losses = [lambda x: (x * weights).sum((1, 2, 3)).square(), linear(weights.flip(1))]
    delta = universal_perturbation([(images, losses)] * 3, threat, step_size=step)
    assert threat.contains(delta[None]).all()
    check_inside(images, added(images, delta), threat)

    elsewhere = ThreatModel(norm, eps, sides)
    moved, large = fitted(delta, elsewhere), fitted(1e4 * delta + 1e-3, elsewhere)
    assert elsewhere.contains(moved[None]).all()
    assert elsewhere.contains(large[None]).all()
    other = noise(2, 3, *sides, seed=seed).sigmoid()
    check_inside(other, added(other, large), elsewhere)


def test_resizing_is_bilinear_and_an_image_of_one_value_keeps_its_rms() -> None:
    flat = torch.full((3, 4, 4), 0.01)
    threat = ThreatModel("l2", 0.01 * 48**0.5, 4).resized(8)
    torch.testing.assert_close(fitted(flat, threat), torch.full((3, 8, 8), 0.01))
    ramp = torch.tensor([0.0, 0.04]).expand(3, 2, 2)
    wide = fitted(ramp, ThreatModel("linf", 0.03, (2, 4)))
    torch.testing.assert_close(wide[0, 0], torch.tensor([0.0, 0.01, 0.03, 0.03]))  # 0.04 is projected


def test_the_control_has_the_same_values_elsewhere() -> None:
    delta = noise(3, 6, 7)
    control = permuted(delta, seed=3)
    assert torch.equal(control.flatten().sort().values, delta.flatten().sort().values)
    assert (control != delta).float().mean() > 0.9
    assert torch.equal(control, permuted(delta, seed=3))
    assert not torch.equal(control, permuted(delta, seed=4))


def test_faults() -> None:
    threat = ThreatModel("linf", 0.1, 2)
    with pytest.raises(UsageError):
        universal_perturbation([], threat, step_size=0.1)
    with pytest.raises(UsageError):
        universal_perturbation([(torch.full((1, 3, 2, 2), 2.0), [linear(torch.ones(3, 2, 2))])], threat, step_size=0.1)
    broken = linear(torch.full((3, 2, 2), torch.nan))
    with pytest.raises(RunError) as met:
        universal_perturbation([(torch.zeros(1, 3, 2, 2), [broken])], threat, step_size=0.1)
    assert met.value.code == "not_finite"
