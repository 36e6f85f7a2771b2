"""What an attack costs, and that it leaves towers, tensors and gradient modes as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.attacks import attacking, pgd
from robustclip.attacks.threat import ThreatModel

THREAT = ThreatModel("l2", 0.5, 8)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images_of(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=rng())


def classification(tower: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: F.cross_entropy(tower(images), torch.arange(len(images)) % 5, reduction="none")


class Counter(nn.Module):
    """Counts the forward and backward passes through it."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += 1
        logits: Tensor = self.inside(images)
        if logits.requires_grad:
            logits.register_hook(self.count_backward)
        return logits

    def count_backward(self, _gradient: Tensor) -> None:
        self.backwards += 1


@pytest.mark.parametrize(
    ("settings", "forwards", "backwards"),
    [
        ({"keep": "last"}, 7, 7),
        ({"keep": "last", "random_start": False}, 7, 7),
        ({"keep": "best", "random_start": False}, 8, 7),
        ({"keep": "best"}, 9, 7),
        ({"keep": "best", "restarts": 3}, 3 * 8 + 1, 21),
    ],
)
def test_passes(settings: dict[str, Any], forwards: int, backwards: int) -> None:
    counter = Counter(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    pgd(images_of(), classification(counter), THREAT, steps=7, generator=rng(), **settings)
    assert (counter.forwards, counter.backwards) == (forwards, backwards)


def mixed_modes() -> nn.Sequential:
    """A tower with a frozen layer and a layer in eval mode, as partial fine-tuning leaves it."""
    tower = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 5))
    tower.train()
    tower[1].eval()
    tower[0].weight.requires_grad_(False)
    return tower


def state(tower: nn.Module) -> tuple[list[bool], list[bool], dict[str, Tensor]]:
    modes = [module.training for module in tower.modules()]
    return modes, [parameter.requires_grad for parameter in tower.parameters()], copy.deepcopy(tower.state_dict())


def test_the_tower_is_attacked_frozen_in_eval_mode_and_comes_back_as_it_was() -> None:
    tower = mixed_modes()
    tower[1].train()
    modes, trainable, weights = state(tower)
    assert True in modes
    inside: list[bool] = []

    def loss_fn(images: Tensor) -> Tensor:
        inside.extend(module.training for module in tower.modules())
        inside.extend(parameter.requires_grad for parameter in tower.parameters())
        return classification(tower)(images)

    pgd(images_of(), loss_fn, THREAT, steps=2, module=tower, generator=rng())
    assert inside
    assert not any(inside)
    assert state(tower)[:2] == (modes, trainable)
    assert all(torch.equal(value, weights[name]) for name, value in tower.state_dict().items())
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_each_module_and_parameter_gets_its_own_state_back() -> None:
    tower = mixed_modes()
    before = state(tower)[:2]
    assert {True, False} == set(before[0])
    assert {True, False} == set(before[1])
    with attacking(tower):
        assert state(tower)[:2] == ([False] * len(before[0]), [False] * len(before[1]))
    assert state(tower)[:2] == before


def test_the_tower_comes_back_after_an_error() -> None:
    tower = mixed_modes()
    before = state(tower)[:2]

    def loss_fn(images: Tensor) -> Tensor:
        raise ZeroDivisionError("in the loss")

    with pytest.raises(ZeroDivisionError, match="in the loss"):
        pgd(images_of(), loss_fn, THREAT, steps=2, module=tower)
    assert state(tower)[:2] == before


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # Python 3.13.0
def test_a_compiled_tower_comes_back_too() -> None:
    tower = mixed_modes()
    before = state(tower)[:2]
    compiled = torch.compile(tower, backend="eager")
    images = images_of()
    loss_fn = classification(compiled)
    adversarial = pgd(images, loss_fn, THREAT, steps=2, module=compiled, generator=rng())  # type: ignore[arg-type]
    assert state(tower)[:2] == before
    plain = pgd(images, classification(tower), THREAT, steps=2, module=tower, generator=rng())
    torch.testing.assert_close(adversarial, plain)


def test_the_callers_tensors_and_gradient_mode_are_left_alone() -> None:
    tower, images = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), images_of()
    before = images.clone()
    with torch.no_grad():
        adversarial = pgd(images, classification(tower), THREAT, steps=2, generator=rng())
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert not adversarial.requires_grad
    assert images.grad is None
    again = pgd(images.requires_grad_(), classification(tower), THREAT, steps=2, generator=rng())
    assert torch.equal(adversarial, again)
    assert not again.requires_grad
