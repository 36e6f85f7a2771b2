from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.attacks import pgd
from robustclip.attacks.threat import Norm, ThreatModel
from robustclip.errors import RunError, UsageError, coded

NORMS: list[Norm] = ["l2", "linf"]
THREATS = {"l2": ThreatModel("l2", 0.5, 8), "linf": ThreatModel("linf", 8 / 255, 8)}

# Every kind of attack there is: a new one is one line here, and the family test below holds it to its promises.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clean start": {"random_start": False},
    "momentum": {"momentum": 0.9},
    "restarts": {"restarts": 3},
    "coupled": {"coupled": True},
    "coupled restarts": {"coupled": True, "restarts": 2, "momentum": 0.5},
    "one step": {"steps": 1},
    "long steps": {"step_size": 10.0},
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(count: int = 4, seed: int = 0, middle: bool = False) -> Tensor:
    """Random images; in the middle of [0, 1], no attack of these tests meets the clamp."""
    images = torch.rand(count, 3, 8, 8, generator=rng(seed))
    return 0.35 + 0.3 * images if middle else images


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


def classification(tower: nn.Module, seed: int = 0) -> Callable[[Tensor], Tensor]:
    def loss_fn(images: Tensor) -> Tensor:
        labels = torch.arange(len(images)) % 5
        return F.cross_entropy(tower(images), labels, reduction="none")

    return loss_fn


# What the attack finds


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_loss_is_climbed_to_its_closed_form(norm: Norm, random_start: bool) -> None:
    threat, images = THREATS[norm], images_of(middle=True)
    weights = torch.randn(images.shape, generator=rng(1))
    adversarial = pgd(
        images,
        lambda x: (weights * x).sum((1, 2, 3)),
        threat,
        steps=25,
        step_size=threat.eps,
        random_start=random_start,
        generator=rng(),
    )
    direction = weights.sign() if norm == "linf" else weights / weights.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(adversarial - images, threat.eps * direction, atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_stays_in_the_ball_and_in_range_and_lowers_no_loss(
    tower: nn.Module, norm: Norm, variant: str
) -> None:
    threat, loss_fn = THREATS[norm], classification(tower)
    for seed in range(5):
        images = images_of(8, seed)
        images[:4] = images[:4].round()  # half of them black and white: every pixel meets the clamp
        settings = {"steps": 4, **VARIANTS[variant]}
        visited: list[Tensor] = []

        def watched(x: Tensor) -> Tensor:
            visited.append(x.detach().clone())  # noqa: B023
            return loss_fn(x)

        adversarial = pgd(images, watched, threat, generator=rng(seed), **settings)
        for x in [*visited, adversarial]:
            assert threat.contains(x - images).all()
            assert x.min() >= 0
            assert x.max() <= 1
        clean, attacked = loss_fn(images), loss_fn(adversarial)
        if settings.get("coupled"):
            clean, attacked = clean.sum(), attacked.sum()
        assert (attacked >= clean - 1e-6).all()
        if variant != "long steps":
            assert attacked.sum() > clean.sum() + 0.01, "an attack that finds nothing"


@pytest.mark.parametrize("norm", NORMS)
def test_the_last_step_also_keeps_both_constraints(tower: nn.Module, norm: Norm) -> None:
    threat, images = THREATS[norm], images_of().round()
    adversarial = pgd(images, classification(tower), threat, steps=3, step_size=1.0, keep="last", generator=rng())
    assert threat.contains(adversarial - images).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_default_step_size_is_the_rule(tower: nn.Module) -> None:
    threat, images = THREATS["l2"], images_of()
    settings: dict[str, Any] = {"steps": 4, "random_start": False, "keep": "last"}
    default = pgd(images, classification(tower), threat, **settings)
    given = pgd(images, classification(tower), threat, step_size=2.5 * threat.eps / 4, **settings)
    assert torch.equal(default, given)
    assert not torch.equal(default, pgd(images, classification(tower), threat, step_size=0.1, **settings))


def test_momentum_of_two_steps_by_hand() -> None:
    # The gradient is (1, 0) at the start and (0, 5) after the first step: the loss turns a corner at x0 = 0.55.
    # Gradients count by their direction alone, as in RobustVLM.
    def loss_fn(images: Tensor) -> Tensor:
        first, second = images[:, 0, 0, 0], images[:, 0, 0, 1]
        return torch.where(first < 0.55, first, 5 * second)

    images = torch.full((1, 3, 8, 8), 0.5)
    adversarial = pgd(
        images,
        loss_fn,
        ThreatModel("l2", 1.0, 8),
        steps=2,
        step_size=0.1,
        momentum=0.9,
        random_start=False,
        keep="last",
    )
    delta = (adversarial - images)[0]
    length = math.hypot(0.9, 1)  # v1 = (1, 0); v2 = (0.9 * 1, 0.9 * 0 + 1), to length 1
    assert delta[0, 0, :2].tolist() == pytest.approx([0.1 + 0.1 * 0.9 / length, 0.1 / length], abs=1e-6)
    assert delta.abs().sum() == pytest.approx(delta[0, 0, :2].sum())


def test_momentum_of_two_signed_steps_by_hand() -> None:
    # With momentum 0.9, the second sign keeps the pixel whose gradient vanished going, and adds the new one.
    def loss_fn(images: Tensor) -> Tensor:
        first, second = images[:, 0, 0, 0], images[:, 0, 0, 1]
        return torch.where(first < 0.51, first, -second)

    images = torch.full((1, 3, 8, 8), 0.5)
    settings: dict[str, Any] = {"steps": 2, "step_size": 0.02, "random_start": False, "keep": "last"}
    threat = ThreatModel("linf", 0.1, 8)
    with_momentum = (pgd(images, loss_fn, threat, momentum=0.9, **settings) - images)[0, 0, 0, :3].tolist()
    without = (pgd(images, loss_fn, threat, **settings) - images)[0, 0, 0, :3].tolist()
    assert with_momentum == pytest.approx([0.04, -0.02, 0], abs=1e-6)
    assert without == pytest.approx([0.02, -0.02, 0], abs=1e-6)


def test_each_restart_can_only_help(tower: nn.Module) -> None:
    loss_fn, images = classification(tower), images_of(16)
    settings: dict[str, Any] = {"steps": 2, "step_size": 0.05}
    found = [
        loss_fn(pgd(images, loss_fn, THREATS["l2"], restarts=restarts, generator=rng(), **settings))
        for restarts in (1, 2, 6)
    ]
    assert (found[1] >= found[0]).all()
    assert (found[2] >= found[1]).all()
    assert (found[2] > found[0]).any()


def test_the_best_is_of_all_steps_the_last_included() -> None:
    # Steps of 0.1 along a ridge at 0.65: 0.6 (loss -.05), 0.7 (-.05), then back and forth; from 0.5 (-.15).
    def loss_fn(images: Tensor) -> Tensor:
        seen.append(images[:, 0, 0, 0].detach().clone())
        return -(images[:, 0, 0, 0] - 0.63).abs()

    seen: list[Tensor] = []
    images = torch.full((1, 3, 8, 8), 0.5)
    threat = ThreatModel("linf", 0.4, 8)
    settings: dict[str, Any] = {"step_size": 0.1, "random_start": False}
    for steps, best, last in [(1, 0.6, 0.6), (2, 0.6, 0.7), (3, 0.6, 0.6), (4, 0.6, 0.7)]:
        kept = {
            keep: pgd(images, loss_fn, threat, steps=steps, keep=keep, **settings)[0, 0, 0, 0].item()
            for keep in ("best", "last")
        }
        assert kept == pytest.approx({"best": best, "last": last})


@pytest.mark.parametrize("random_start", [False, True])
def test_a_given_start_lowers_no_loss(random_start: bool) -> None:
    images = torch.full((1, 3, 8, 8), 0.5)

    def loss_fn(moved: Tensor) -> Tensor:  # greatest at the image itself
        return -(moved - images).abs().sum((1, 2, 3))

    settings: dict[str, Any] = {"steps": 1, "step_size": 1e-4, "random_start": random_start}
    found = pgd(images, loss_fn, ThreatModel("linf", 0.1, 8), start=torch.full_like(images, 0.05), **settings)
    assert torch.equal(found, images)


def test_one_start_for_all_images_is_projected_as_a_whole() -> None:
    images, threat = torch.full((2, 3, 8, 8), 0.5), THREATS["l2"]
    start = torch.full((3, 8, 8), 0.4)
    found = pgd(images, lambda moved: (moved - images).square().sum((1, 2, 3)), threat, steps=1, start=start)
    assert threat.norms(found - images).tolist() == pytest.approx([0.5, 0.5])


def test_coupled_steps_climb_the_sum_and_keep_one_batch() -> None:
    # Image 0's best step is another than image 1's, and the loss of the batch peaks between them.
    batches: list[Tensor] = []

    def loss_fn(images: Tensor) -> Tensor:
        batches.append(images.detach().clone())
        position = images[:, 0, 0, 0]
        return -(position - torch.tensor([0.6, 0.8])).abs() * torch.tensor([1.0, 3.0])

    images = torch.full((2, 3, 8, 8), 0.5)
    settings: dict[str, Any] = {"steps": 5, "step_size": 0.1, "random_start": False}
    threat = ThreatModel("linf", 0.4, 8)

    def shared(images: Tensor) -> Tensor:  # both images move together: the loss of one depends on the other
        return loss_fn(images.mean(0, keepdim=True).expand_as(images))

    batches.clear()
    coupled = pgd(images, shared, threat, coupled=True, **settings)
    sums = [loss_fn(batch).sum() for batch in list(batches)]
    assert any(torch.equal(coupled, batch) for batch in batches), "a batch that was never one step"
    assert loss_fn(coupled).sum() == max(sums)
    assert coupled[:, 0, 0, 0].tolist() == pytest.approx([0.8, 0.8])

    batches.clear()
    mixed = pgd(images, shared, threat, coupled=False, **settings)
    assert mixed[:, 0, 0, 0].tolist() == pytest.approx([0.6, 0.8]), "the mix that coupled losses must not give"


# Guards


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_zero_gradient_takes_no_step(norm: Norm, keep: Any) -> None:
    images = images_of()
    adversarial = pgd(images, lambda x: (0 * x).sum((1, 2, 3)), THREATS[norm], steps=3, random_start=False, keep=keep)
    assert torch.equal(adversarial, images)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_loss_stops_its_own_image_only(tower: nn.Module, norm: Norm, momentum: float, broken: float) -> None:
    loss_fn, images = classification(tower), images_of()

    def one_broken(images: Tensor) -> Tensor:
        return loss_fn(images) * torch.tensor([1.0, broken, 1.0, 1.0])

    settings: dict[str, Any] = {"steps": 3, "momentum": momentum, "random_start": False, "strict": False}
    adversarial = pgd(images, one_broken, THREATS[norm], **settings)
    assert torch.equal(adversarial[1], images[1])
    expected = pgd(images, loss_fn, THREATS[norm], **settings)
    assert torch.equal(adversarial[[0, 2, 3]], expected[[0, 2, 3]])
    assert pgd(images, one_broken, THREATS[norm], keep="last", **settings).isfinite().all()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_breaks_on_the_way_is_never_the_best(broken: float) -> None:
    def loss_fn(images: Tensor) -> Tensor:
        position = images[:, 0, 0, 0]
        return torch.where(position > 0.65, position + broken, position)

    images = torch.full((1, 3, 8, 8), 0.5)
    settings: dict[str, Any] = {"steps": 4, "step_size": 0.1, "random_start": False}
    adversarial = pgd(images, loss_fn, ThreatModel("linf", 0.4, 8), **settings, strict=False)
    assert adversarial[0, 0, 0, 0].item() == pytest.approx(0.6)
    with pytest.raises(RunError, check=coded("not_finite", image=0, step=2)):
        pgd(images, loss_fn, ThreatModel("linf", 0.4, 8), **settings)


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_an_image_that_was_not_attacked_is_named(
    tower: nn.Module, keep: Any, random_start: bool, broken: float
) -> None:
    loss_fn, factors = classification(tower), torch.tensor([1.0, 1.0, broken, broken])
    with pytest.raises(RunError, check=coded("not_finite", image=2, step=0, others=1)):
        pgd(images_of(), lambda x: loss_fn(x) * factors, THREATS["l2"], steps=2, keep=keep, random_start=random_start)


def test_a_gradient_that_is_no_number_is_named_though_the_loss_is_one() -> None:
    """sqrt has no finite slope at 0, which the first image is."""
    images = torch.cat([torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)])
    with pytest.raises(RunError, check=coded("not_finite", image=0, step=0)):
        pgd(images, lambda x: x.sum((1, 2, 3)).sqrt(), THREATS["l2"], steps=1, random_start=False)


@pytest.mark.parametrize("norm", NORMS)
def test_under_autocast_pixels_stay_float32(tower: nn.Module, norm: Norm) -> None:
    threat, images = THREATS[norm], images_of(8)
    seen: set[torch.dtype] = set()

    def loss_fn(images: Tensor) -> Tensor:
        seen.add(images.dtype)
        with torch.autocast("cpu", torch.bfloat16):
            logits = tower(images)
            assert logits.dtype == torch.bfloat16
            return logits[:, 1] - logits[:, 0]

    adversarial = pgd(images, loss_fn, threat, steps=5, restarts=2, generator=rng())
    assert adversarial.dtype == torch.float32
    assert seen == {torch.float32}
    assert threat.contains(adversarial - images).all()
    with torch.autocast("cpu", torch.bfloat16):
        around = pgd(images, loss_fn, threat, steps=5, restarts=2, generator=rng())
    assert torch.equal(around, adversarial)


def test_half_precision_losses_are_summed_in_float32() -> None:
    # What one image of 64 gains is less than the spacing of bfloat16 around their sum.
    def loss_fn(images: Tensor) -> Tensor:
        return torch.cat([images[:1, 0, 0, 0], 0 * images[1:, 0, 0, 0] + 1]).bfloat16()

    images = torch.full((64, 3, 8, 8), 0.5)
    adversarial = pgd(
        images, loss_fn, ThreatModel("linf", 0.1, 8), steps=1, step_size=0.1, random_start=False, coupled=True
    )
    assert adversarial[0, 0, 0, 0].item() == pytest.approx(0.6)


def test_half_precision_images_are_attacked_in_float32(tower: nn.Module) -> None:
    threat, images = THREATS["linf"], images_of().half()
    adversarial = pgd(images, classification(tower), threat, steps=3, generator=rng())
    assert adversarial.dtype == torch.float32
    assert threat.contains(adversarial - images).all()


def test_pixels_that_rounding_put_outside_come_back_inside() -> None:
    images = torch.full((1, 3, 8, 8), 1.0005)
    adversarial = pgd(images, lambda x: (0 * x).sum((1, 2, 3)), THREATS["l2"], steps=1, random_start=False)
    assert torch.equal(adversarial, torch.ones_like(images))


@pytest.mark.parametrize("keep", ["best", "last"])
def test_memory_format_is_kept(tower: nn.Module, keep: Any) -> None:
    images = images_of().to(memory_format=torch.channels_last)
    seen: set[bool] = set()

    def loss_fn(images: Tensor) -> Tensor:
        seen.add(images.is_contiguous(memory_format=torch.channels_last))
        return classification(tower)(images)

    adversarial = pgd(images, loss_fn, THREATS["l2"], steps=3, keep=keep, generator=rng())
    assert adversarial.is_contiguous(memory_format=torch.channels_last)
    assert seen == {True}
    contiguous = pgd(images.contiguous(), classification(tower), THREATS["l2"], steps=3, keep=keep, generator=rng())
    torch.testing.assert_close(adversarial.contiguous(), contiguous)


def test_the_attack_is_a_function_of_its_generator(tower: nn.Module) -> None:
    def attacked(seed: int) -> Tensor:
        return pgd(images_of(), classification(tower), THREATS["l2"], steps=2, keep="last", generator=rng(seed))

    before = torch.get_rng_state()
    assert torch.equal(attacked(0), attacked(0))
    assert not torch.equal(attacked(0), attacked(1))
    assert torch.equal(before, torch.get_rng_state())


def test_an_empty_batch_comes_back_empty(tower: nn.Module) -> None:
    assert pgd(images_of(0), classification(tower), THREATS["l2"], steps=2, generator=rng()).shape == (0, 3, 8, 8)


# Faults of the call


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ({"steps": 0}, coded("too_few", steps=0, restarts=1)),
        ({"restarts": 0}, coded("too_few", steps=2, restarts=0)),
        ({"step_size": 0.0}, coded("not_positive", argument="step_size", given=0.0)),
        ({"step_size": math.nan}, coded("not_positive", argument="step_size")),
        ({"momentum": 1.0}, coded("out_of_range", argument="momentum", given=1.0)),
        ({"keep": "first"}, coded("unknown_choice", argument="keep", given="first")),
        ({"restarts": 3, "keep": "last"}, coded("restarts_lost", restarts=3)),
        ({"restarts": 3, "random_start": False}, coded("restarts_identical", restarts=3)),
    ],
)
def test_settings_that_cannot_be_meant(tower: nn.Module, settings: dict[str, Any], check) -> None:
    with pytest.raises(UsageError, check=check):
        pgd(images_of(), classification(tower), THREATS["l2"], **{"steps": 2, **settings})


@pytest.mark.parametrize(
    ("loss_fn", "check"),
    [
        (lambda x: x.sum(), coded("wrong_shape", shape=(), images=4)),
        (lambda x: x.sum((2, 3)), coded("wrong_shape", shape=(4, 3), images=4)),
        (lambda x: x.detach().sum((1, 2, 3)), coded("no_gradient")),
    ],
)
def test_losses_that_cannot_be_climbed(loss_fn: Callable[[Tensor], Tensor], check) -> None:
    with pytest.raises(UsageError, check=check):
        pgd(images_of(), loss_fn, THREATS["l2"], steps=2)


def test_images_that_do_not_fit_the_threat_model(tower: nn.Module) -> None:
    with pytest.raises(UsageError, check=coded("pixels_out_of_range")):
        pgd(images_of() * 255, classification(tower), THREATS["l2"], steps=2)
    with pytest.raises(UsageError, match="given images of 8x8"):
        pgd(images_of(), classification(tower), ThreatModel("l2", 1.5, 64), steps=2)


@pytest.mark.parametrize("norm", NORMS)
def test_with_a_generator_an_image_each_result_depends_on_that_image_alone(tower: nn.Module, norm: Norm) -> None:
    images, targets = images_of(), torch.arange(4)

    def attacked(rows: slice) -> Tensor:
        def loss_fn(found: Tensor) -> Tensor:
            return F.cross_entropy(tower(found), targets[rows], reduction="none")

        each = [rng(row) for row in range(4)[rows]]
        return pgd(images[rows], loss_fn, THREATS[norm], steps=3, keep="last", generator=each)

    whole = attacked(slice(4))
    torch.testing.assert_close(attacked(slice(2, 4)), whole[2:])
    other = pgd(images, classification(tower), THREATS[norm], steps=3, keep="last", generator=rng(0))
    assert not torch.allclose(other[1:], whole[1:])
