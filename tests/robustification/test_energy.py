"""CLIP-JEM's energy loss: by hand, against autograd, and where it must change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.optim import AdamW

from robustclip.attacks.threat import ThreatModel
from robustclip.data.samples import Batch
from robustclip.errors import UsageError
from robustclip.recipes import find
from robustclip.referees.base import TwoTower
from robustclip.referees.toy import toy_referee
from robustclip.robustification.adversarial import AdversarialGradients
from robustclip.robustification.energy import NegativeSamples, contrastive_energy, jem, refuse_unsampled
from robustclip.robustification.losses import clip, text_bank
from robustclip.runs.rng import each, generator

SIZE, SCALE, GAMMA = 16, 10.0, 0.7
SAMPLER = NegativeSamples(SCALE, steps=4, lr=0.05)
THREAT = ThreatModel("l2", 0.5, SIZE)
IDS = [f"sample {number}" for number in range(6)]


def batch(**changes: Any) -> Batch:
    images = torch.rand(6, 3, SIZE, SIZE, generator=generator(0, "images"), dtype=torch.float64)
    return replace(Batch(images, [f"thing {number}" for number in range(6)], torch.arange(6), IDS), **changes)


def gradients_of(referee: TwoTower, **changes: Any) -> AdversarialGradients:
    tower = referee.image_tower.requires_grad_(True)
    settings: dict[str, Any] = {
        "objective": clip(SCALE),
        "attack_objective": clip(SCALE),
        "threat": THREAT,
        "sampler": SAMPLER,
    }
    settings["embed"] = lambda images: tower(referee.preprocess(images))
    return AdversarialGradients(tower=tower, **{**settings, **changes})


def of_an_update(**changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Attacked images, loss, and the gradient of all weights, of step 3."""
    referee = toy_referee(SIZE).double()
    given = batch()
    images, loss = gradients_of(referee, **changes)(3, given, referee.embed_texts(given.captions).double())
    found = torch.cat([weight.grad.flatten() for weight in referee.image_tower.parameters() if weight.grad is not None])
    return images, loss, found


def test_the_loss_is_what_a_hand_computes() -> None:
    # Logits of text (1, 0) to images (1, 0), (0, 1) and to samples (1, 0), (1, 0) at scale 1: 1, 0, 1, 1; of text
    # (0, 1): 0, 1, 0, 0.
    pair = torch.eye(2)
    losses = contrastive_energy(pair, pair[[0, 0]], pair, torch.tensor([4, 7]), 1.0)
    torch.testing.assert_close(losses, torch.tensor([math.log(3 * math.e + 1) - 1, math.log(math.e + 3) - 1]))
    # Images of one concept share the target: -(1 + 0) / 2 for both texts.
    losses = contrastive_energy(pair, pair[[0, 0]], pair, torch.tensor([4, 4]), 1.0)
    torch.testing.assert_close(losses, torch.tensor([math.log(3 * math.e + 1), math.log(math.e + 3)]) - 0.5)


def test_the_gradient_lowers_the_energy_of_real_pairs_and_raises_that_of_samples() -> None:
    images, samples, texts = (F.normalize(torch.randn(4, 8, generator=generator(0, name)), dim=1) for name in "ist")
    images.requires_grad_()
    samples.requires_grad_()
    contrastive_energy(images, samples, texts, torch.arange(4), SCALE).sum().backward()
    assert images.grad is not None
    assert samples.grad is not None
    assert ((images.grad * texts).sum(1) < 0).all()
    shares = (SCALE * torch.cat([images, samples]).detach() @ texts.T).softmax(0)[4:]
    torch.testing.assert_close(samples.grad, SCALE * shares @ texts)


def test_samples_lower_the_contrastive_loss_inside_the_cube_and_leave_the_tower_alone() -> None:
    referee = toy_referee(SIZE).double()
    texts = referee.embed_texts(batch().captions).double()

    def losses(images: Tensor) -> Tensor:
        return clip(SCALE)(referee.embed_images(images), texts, torch.arange(6))

    start = SAMPLER.draw(batch().images, each(0, "energy", 3, ids=IDS))
    assert start.dtype == torch.float64
    assert 0 < start.min() < 0.01
    assert 0.99 < start.max() < 1
    ends = [replace(SAMPLER, steps=steps).lower(start, losses) for steps in (0, 4, 16)]
    values = [float(losses(images).mean()) for images in ends]
    assert torch.equal(ends[0], start)
    assert values[0] > values[1] > values[2]
    for images in ends:
        assert images.min() >= 0
        assert images.max() <= 1
        assert not images.requires_grad
    assert (ends[2] == 0).any()  # clamped: noise lies in the open cube
    assert all(weight.grad is None for weight in referee.image_tower.parameters())


def test_samples_are_those_of_the_algorithm() -> None:
    """Alg. 1 written out: AdamW on pixels, on open_clip's loss."""
    referee = toy_referee(SIZE).double()
    given = batch()
    texts = referee.embed_texts(given.captions).double()
    found = gradients_of(referee, objective=jem(clip(SCALE), SCALE, GAMMA))._sampled(3, given, texts)
    drawn = [torch.rand(3, SIZE, SIZE, generator=one) for one in each(0, "energy", 3, ids=IDS)]
    samples = torch.nn.Parameter(torch.stack(drawn).double())
    optimizer = AdamW([samples], lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        (6 * ClipLoss()(referee.embed_images(samples), texts, torch.tensor(SCALE))).backward()  # of the sum: ours
        optimizer.step()
        samples.data.clamp_(0, 1)
    assert found is not None
    torch.testing.assert_close(found, samples.data)


def test_samples_are_made_by_the_frozen_tower_in_eval_mode() -> None:
    referee = toy_referee(SIZE).double()
    tower = referee.image_tower.requires_grad_(True).train()
    seen = []

    def watched(images: Tensor) -> Tensor:
        seen.append((tower.training, any(weight.requires_grad for weight in tower.parameters())))
        return tower(referee.preprocess(images))  # type: ignore[no-any-return]

    given = batch()
    gradients_of(referee, objective=jem(clip(SCALE), SCALE, GAMMA), embed=watched)._sampled(
        3, given, referee.embed_texts(given.captions).double()
    )
    assert seen == [(False, False)] * SAMPLER.steps
    assert tower.training
    assert all(weight.requires_grad for weight in tower.parameters())


def test_a_sample_s_noise_depends_on_its_id_and_step_only() -> None:
    noise = SAMPLER.draw(batch().images, each(0, "energy", 3, ids=IDS))
    again = SAMPLER.draw(batch().images[:2], each(0, "energy", 3, ids=[IDS[4], IDS[1]]))
    assert torch.equal(again, noise[[4, 1]])
    assert not torch.equal(SAMPLER.draw(batch().images, each(0, "energy", 4, ids=IDS)), noise)


def test_the_gradient_is_that_of_the_formula() -> None:
    images, loss, gradient = of_an_update(objective=jem(clip(SCALE), SCALE, GAMMA))
    referee = toy_referee(SIZE).double()
    given = batch()
    texts = referee.embed_texts(given.captions).double()
    samples = gradients_of(referee, objective=jem(clip(SCALE), SCALE, GAMMA))._sampled(3, given, texts)
    assert samples is not None
    attacked, real, fake = (referee.embed_images(one) for one in (images, given.images, samples))
    energies = -torch.cat([real, fake]) @ texts.T
    by_text = -SCALE * energies.diagonal() - torch.logsumexp(-SCALE * energies, dim=0)
    expected = ClipLoss()(attacked, texts, torch.tensor(SCALE)) - GAMMA * by_text.mean()
    expected.backward()
    formula = [weight.grad.flatten() for weight in referee.image_tower.parameters() if weight.grad is not None]
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.cat(formula))


BANK = text_bank(SCALE, toy_referee(SIZE).double().embed_texts(IDS), torch.arange(6))


@pytest.mark.parametrize("base", [clip(SCALE), BANK], ids=["clip", "bank"])
def test_without_weight_it_is_the_ordinary_update(base: Any) -> None:
    assert jem(base, SCALE, 0.0) is base
    usual = of_an_update(objective=base, attack_objective=base, sampler=None)
    for one, other in zip(of_an_update(objective=jem(base, SCALE, 0.0), attack_objective=base), usual, strict=True):
        assert torch.equal(one, other)
    images, loss, gradient = of_an_update(objective=jem(base, SCALE, GAMMA), attack_objective=base)
    assert torch.equal(images, usual[0])  # the attack is that of the base loss
    assert loss > usual[1]
    assert not torch.allclose(gradient, usual[2])


def test_the_attack_starts_at_the_image() -> None:
    """One step of PGD from delta = 0, by hand."""
    images = of_an_update(random_start=False, attack_steps=1, step_size=0.3)[0]
    referee = toy_referee(SIZE).double()
    leaf = batch().images.requires_grad_()
    texts = referee.embed_texts(batch().captions).double()
    ClipLoss()(referee.embed_images(leaf), texts, torch.tensor(SCALE)).backward()
    assert leaf.grad is not None
    step = 0.3 * leaf.grad / leaf.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(images, (leaf + step).detach().clamp(0, 1))
    assert not torch.allclose(of_an_update(attack_steps=1, step_size=0.3)[0], images)


STILL = [("fare", "same"), ("trades", "same"), ("text-bank", "divergence")]


@pytest.mark.parametrize(
    "given",
    [
        *({"random_start": False, "objective": base, "attack_objective": climbed} for base, climbed in STILL),
        {"random_start": False, "objective": "agft", "temperature": 1},
        {"random_start": False, "warm_start": True},
        {"sizes": [48, 64], "warm_start": True},
        {"energy": 1.0, "batch_size": 1},
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(given: dict[str, Any]) -> None:
    assert len(find("emoji", "robustify").bind(given)[1]) == 1
    assert not find("emoji-jem", "robustify").bind({})[1]
    assert not find("emoji", "robustify").bind({"sizes": [48], "warm_start": True})[1]
    assert not find("emoji-agft", "robustify").bind({"random_start": False})[1]


def test_samples_must_be_made_and_are_not_of_the_attack() -> None:
    base, energetic = clip(SCALE), jem(clip(SCALE), SCALE, GAMMA)
    refuse_unsampled(energetic, base, SAMPLER)
    refuse_unsampled(base, base, None)
    for update, attack, sampler in ((energetic, base, None), (energetic, energetic, SAMPLER)):
        with pytest.raises(UsageError):
            refuse_unsampled(update, attack, sampler)
