from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from robustclip import load_referee
from robustclip.errors import UsageError, coded
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.defended import (
    BLANK,
    STATIC,
    Counterattack,
    Defence,
    Purification,
    attackers,
    defended,
    split_defence,
    straight_through,
)
from robustclip.referees.smoothed import fingerprint, smoothed
from robustclip.referees.toy import toy_referee
from robustclip.runs.rng import generator


def counterattacked(base: TwoTower, images: Tensor, noise: Tensor, *, steps: int, eps: float, step: float) -> Tensor:
    """The images of TTC's weighted deltas, one image after the other, from the paper's formulas."""
    moved = []
    for image in images:
        delta = (image + noise).clamp(0, 1) - image
        before, deltas = base.embed_views(image[None]), [delta]
        for _ in range(steps):
            leaf = delta.clone().requires_grad_()
            ((base.embed_views(image[None] + leaf) - before) ** 2).sum().backward()
            assert leaf.grad is not None
            delta = (delta + step * leaf.grad.sign()).clamp(-eps, eps)
            delta = (image + delta).clamp(0, 1) - image
            deltas.append(delta)
        weights = [math.exp(2 * i) for i in range(steps + 1)]
        moved.append(image + sum(w * d for w, d in zip(weights, deltas, strict=True)) / sum(weights))
    return torch.stack(moved)


@pytest.mark.parametrize("counters", [True, False])
def test_ttc_moves_a_stable_image_and_leaves_noise_on_others(images: Tensor, counters: bool) -> None:
    base, eps = toy_referee(), 0.05
    defence = Counterattack(eps=eps, steps=2, step_size=0.02, threshold=1e9 if counters else 0.0)
    noise = eps * (2 * torch.rand(images.shape[1:], generator=generator(7, "defence")) - 1)

    found = defended(base, defence, seed=7).embed_images(images, normalize=False)

    steps = 2 if counters else 0
    expected = base.embed_views(counterattacked(base, images, noise, steps=steps, eps=eps, step=0.02))
    torch.testing.assert_close(found, expected)


def test_ttc_decides_by_how_far_noise_moves_the_embedding(images: Tensor) -> None:
    base, eps = toy_referee(), 0.05
    noise = eps * (2 * torch.rand(images.shape[1:], generator=generator(0, "defence")) - 1)
    before, after = (base.embed_views(part) for part in (images, (images + noise).clamp(0, 1)))
    tau = (after - before).norm(dim=1) / before.norm(dim=1)
    assert len(set(tau.tolist())) == 3
    threshold = float(tau.sort().values[1])  # one image below it

    found = defended(base, Counterattack(eps=eps, threshold=threshold)).embed_images(images, normalize=False)

    as_noise = (found - after).norm(dim=1) < 1e-6
    assert torch.equal(as_noise, tau >= threshold)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("step_size", [0.2, 30.0])
def test_clipure_turns_the_embedding_in_the_plane_of_the_template(images: Tensor, steps: int, step_size: float) -> None:
    base = toy_referee()
    embeddings = base.embed_images(images, normalize=False)
    u = unit(embeddings)
    blank = u[0] + u[1] + u[2] + unit(base.embed_texts([BLANK]))[0]
    t = unit(blank[None])[0]
    side = unit(u - (u @ t)[:, None] * t)

    found = defended(base, Purification(blank, steps=steps, step_size=step_size)).embed_images(images, normalize=False)

    angle = (u @ t).acos()
    for _ in range(steps):
        angle = angle - math.atan(step_size) * angle.sign()
    expected = angle.cos()[:, None] * t + angle.sin()[:, None] * side
    torch.testing.assert_close(unit(found), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), embeddings.norm(dim=1))


def test_clipure_computes_in_float32_also_where_the_tower_does_not(images: Tensor) -> None:
    embeddings = toy_referee().embed_images(images, normalize=False)
    defence = Purification(toy_referee().embed_texts([BLANK])[0])
    expected = defence(lambda _: embeddings, images, generator(0, "defence"))
    with torch.autocast("cpu", torch.bfloat16):
        found = defence(lambda _: embeddings, images, generator(0, "defence"))
    assert torch.equal(found, expected)


def test_the_gradient_through_clipure_is_that_of_the_base_where_it_returns(images: Tensor) -> None:
    base = toy_referee()
    [text] = base.embed_texts(["a cat"])
    blank = base.embed_images(images).sum(0)  # within 88 degrees of each
    referee = attackers(defended(base, Purification(blank)))[""]

    def gradient(of: TwoTower) -> Tensor:
        pixels = images.clone().requires_grad_()
        return torch.autograd.grad((of.embed_images(pixels) @ text).sum(), pixels)[0]

    torch.testing.assert_close(gradient(referee), gradient(base), rtol=1e-2, atol=1e-4)
    assert gradient(base).abs().max() > 1e-2


class Noisy(Defence):
    """Adds noise as it is drawn."""

    name = "noisy"
    draws = 3

    def forward(self, embed, images: Tensor, noise: torch.Generator) -> Tensor:
        return embed(images + 0.1 * torch.randn(images.shape[1:], generator=noise))


def test_the_attacker_averages_draws_that_are_not_the_defenders(images: Tensor) -> None:
    base = toy_referee()
    referee = defended(base, Noisy(), seed=5)
    assert torch.equal(referee.embed_images(images), referee.embed_images(images))

    aware, static = attackers(referee).values()

    assert list(attackers(referee)) == ["", STATIC]
    assert torch.equal(static.embed_images(images), base.embed_images(images))
    first, second = (aware.embed_images(images, normalize=False) for _ in range(2))
    assert not torch.equal(first, second)
    call = aware.image_tower.calls
    streams = [generator(5, "attacked defence", call, draw) for draw in range(3)]
    draws = [unit(base.embed_views(images + 0.1 * torch.randn(images.shape[1:], generator=one))) for one in streams]
    torch.testing.assert_close(second, torch.stack(draws).mean(0))
    torch.testing.assert_close(attackers(referee)[""].embed_images(images, normalize=False), first)


@pytest.mark.parametrize("fresh", [False, True])
def test_the_attacker_of_a_smoothed_referee_draws_noise_that_is_not_the_defenders(images: Tensor, fresh: bool) -> None:
    base = toy_referee()
    referee = smoothed(base, sigma=0.1, samples=3, seed=5, fresh=fresh)

    aware, static = attackers(referee).values()

    assert list(attackers(referee)) == ["", STATIC]
    assert torch.equal(static.embed_images(images), base.embed_images(images))
    found = [aware.embed_images(images, normalize=False) for _ in range(2)]
    for call, mean in enumerate(found, 1):  # call 0 is the constructor's probe
        streams = [generator(5, "attacked smoothing", call, copy) for copy in range(3)]
        draws = [unit(base.embed_views(images + 0.1 * torch.randn(images.shape[1:], generator=one))) for one in streams]
        torch.testing.assert_close(mean, torch.stack(draws).mean(0))
    defended_by = [referee.embed_images(images, normalize=False) for _ in range(2)]
    assert not any(torch.equal(mine, theirs) for mine in defended_by for theirs in found)
    assert torch.equal(*defended_by) != fresh
    assert torch.equal(attackers(referee)[""].embed_images(images, normalize=False), found[0])


def test_a_referee_without_a_defence_is_its_own_attacker() -> None:
    base = toy_referee()
    assert attackers(base) == {"": base}


def test_straight_through_has_the_value_of_the_function_and_the_gradient_of_the_identity() -> None:
    values = torch.tensor([0.2, 0.7], requires_grad=True)

    found = straight_through(torch.round, values)
    found.sum().backward()

    torch.testing.assert_close(found.detach(), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(values.grad, torch.ones(2))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("emoji-vanilla~ttc", ("emoji-vanilla", "ttc")),
        ("a/folder~clipure:cos", ("a/folder", "clipure:cos")),
        ("emoji-vanilla~smooth:0.25x16", None),
        ("emoji-vanilla", None),
        ("~/models", None),
    ],
)
def test_a_name_says_the_defence(name: str, split: tuple[str, str] | None) -> None:
    assert split_defence(name) == split


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("emoji-vanilla~ttc:3", coded("unknown_defence", given="ttc:3")),
        ("emoji-vanilla~clipure:diff", coded("unknown_defence", given="clipure:diff")),
        ("~ttc", coded("no_base")),
        ("nobody~ttc", coded("unknown_referee", given="nobody")),
        ("emoji-vanilla~ttc~clipure:cos", coded("wrapped", kind="defended")),
        ("emoji-vanilla~smooth:0.1x2~ttc", coded("wrapped", kind="smoothed")),
        ("emoji-vanilla~ttc~smooth:0.1x2", coded("wrapped", kind="defended")),
    ],
)
def test_bad_names_are_told(name: str, check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        load_referee(name)


def test_names_load_defended_referees_with_the_codes_constants() -> None:
    ttc, clipure = (load_referee(f"emoji-vanilla~{name}") for name in ("ttc", "clipure:cos"))

    assert ttc.card.name == "emoji-vanilla~ttc"
    assert ttc.card.claims == []
    assert ttc.card.threat is None
    constants = {"eps": 4 / 255, "steps": 2, "step_size": 1 / 255, "threshold": 0.2, "beta": 2.0}
    assert ttc.card.provenance["defended"].items() >= constants.items()
    assert clipure.card.provenance["defended"].items() >= {"steps": 10, "step_size": 30.0}.items()
    assert fingerprint(ttc) == fingerprint(clipure) == fingerprint(load_referee("emoji-vanilla"))
    assert smoothed(load_referee("emoji-vanilla"), sigma=0.1).card.provenance["smoothed"]["base"] == "emoji-vanilla"
