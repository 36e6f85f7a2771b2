"""Parity with torchattacks, on a small classifier; and its attacks behind our signature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.attacks import pgd
from robustclip.errors import UsageError
from robustclip.threat import Norm, ThreatModel

torchattacks = pytest.importorskip("torchattacks", reason="the evaluation extra is not installed")
from robustclip.attacks.library import library_attack  # noqa: E402

NORMS: list[Norm] = ["l2", "linf"]
THREATS = {"l2": ThreatModel("l2", 1.0, 16), "linf": ThreatModel("linf", 8 / 255, 16)}


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(8 * 49, 10),
        ).train()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels(classifier: nn.Module, images: Tensor) -> Tensor:
    """What the classifier says of the clean images: an attack that does anything lowers an accuracy of 1."""
    classifier.eval()
    predictions = classifier(images).argmax(1)
    classifier.train()
    return predictions


@pytest.mark.parametrize("norm", NORMS)
def test_our_pgd_is_torchattacks_pgd(norm: Norm, classifier: nn.Module, images: Tensor, labels: Tensor) -> None:
    threat = THREATS[norm]
    kind = torchattacks.PGDL2 if norm == "l2" else torchattacks.PGD
    theirs = kind(classifier, eps=threat.eps, alpha=threat.eps / 4, steps=10, random_start=False)(images, labels)
    ours = pgd(
        images,
        lambda x: F.cross_entropy(classifier(x), labels, reduction="none"),
        threat,
        steps=10,
        step_size=threat.eps / 4,
        random_start=False,
        keep="last",
        module=classifier,
    )
    assert (ours - images).abs().max() > threat.rms / 2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_parity_holds_through_our_door(classifier: nn.Module, images: Tensor, labels: Tensor) -> None:
    threat = THREATS["l2"]
    theirs = torchattacks.PGDL2(classifier, eps=1.0, alpha=0.25, steps=10, random_start=False)(images, labels)
    through = library_attack(images, classifier, threat, labels=labels, steps=10, random_start=False, module=classifier)
    assert torch.equal(through, theirs)  # alpha 0.25 is the rule, 2.5 * eps / steps


def test_a_classifier_that_was_not_handed_over_keeps_its_modes(images: Tensor) -> None:
    classifier = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 10)).train()
    classifier[0].eval()
    labels = torch.zeros(len(images), dtype=torch.long)
    library_attack(images, classifier, THREATS["l2"], labels=labels, steps=1)
    assert [child.training for child in classifier.modules()] == [True, False, True, True]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ["pgd", "apgd", "square"])
def test_library_attacks_stay_in_the_ball_and_fool(
    norm: Norm, attack: Any, classifier: nn.Module, images: Tensor, labels: Tensor
) -> None:
    threat = THREATS[norm]

    def attacked(seed: int) -> Tensor:
        return library_attack(
            images,
            classifier,
            threat,
            labels=labels,
            attack=attack,
            steps=10,
            module=classifier,
            generator=torch.Generator().manual_seed(seed),
        )

    before = torch.get_rng_state()
    adversarial = attacked(0)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was moved"
    assert classifier.training
    assert threat.contains(adversarial - images).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    classifier.eval()
    assert (classifier(adversarial).argmax(1) != labels).any()
    classifier.train()
    assert torch.equal(adversarial, attacked(0))
    assert not torch.equal(adversarial, attacked(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "cw"}, "unknown library attack 'cw': use pgd, apgd or square"),
        ({"restarts": 2}, "torchattacks' PGD knows no restarts"),
        ({"attack": "apgd", "step_size": 0.1}, "apgd has its own start and step size"),
        ({"attack": "square", "random_start": False}, "square has its own start and step size"),
    ],
)
def test_settings_an_attack_would_ignore(
    settings: dict[str, Any], message: str, classifier: nn.Module, images: Tensor, labels: Tensor
) -> None:
    with pytest.raises(UsageError, match=message):
        library_attack(images, classifier, THREATS["l2"], labels=labels, steps=2, **settings)


def test_without_the_extra_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, classifier: nn.Module, images: Tensor, labels: Tensor
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchattacks", None)
    with pytest.raises(UsageError, match=r"torchattacks is not installed: pip install 'robustclip\[evaluation\]'"):
        library_attack(images, classifier, THREATS["l2"], labels=labels, steps=2)
