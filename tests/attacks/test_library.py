"""Parity with torchattacks, on a small classifier; and its attacks behind our signature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.attacks import pgd
from robustclip.attacks.threat import Norm, ThreatModel
from robustclip.errors import RunError, UsageError, coded

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


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("attack", "theirs", "own"),
    [
        ("apgd", "APGD", {"loss": "ce"}),
        ("apgd-dlr", "APGD", {"loss": "dlr"}),
        ("apgd-t", "APGDT", {"n_classes": 4}),
        ("fab-t", "FAB", {"n_classes": 4, "multi_targeted": True}),
    ],
)
def test_parity_of_the_ensembles_parts(
    norm: Norm, attack: Any, theirs: str, own: dict[str, Any], classifier: nn.Module, images: Tensor, labels: Tensor
) -> None:
    threat = ThreatModel(norm, THREATS[norm].eps / 8, 16)
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(7)))
    with torch.random.fork_rng():
        kind = getattr(torchattacks, theirs)
        expected = kind(classifier, norm=norm.replace("l", "L"), eps=threat.eps, steps=7, seed=seed, **own)(
            images, labels
        )
    found = library_attack(
        images.contiguous(memory_format=torch.channels_last),
        classifier,
        threat,
        labels=labels,
        attack=attack,
        steps=7,
        targets=3 if "n_classes" in own else None,
        module=classifier,
        generator=torch.Generator().manual_seed(7),
    )
    assert torch.equal(found, expected)
    assert not torch.equal(found, images)
    assert (found == images).all((1, 2, 3)).any(), "an eps at which some images stand shows that they come back"


@pytest.mark.parametrize(
    ("norm", "size", "fits"), [("l2", (24, 24), False), ("linf", (24, 24), True), ("linf", (8, 24), False)]
)
def test_square_says_which_sizes_it_cannot_tile(norm: Norm, size: tuple[int, int], fits: bool) -> None:
    images = torch.full((1, 3, *size), 0.5)
    call = {"labels": torch.zeros(1, dtype=torch.long), "attack": "square", "steps": 2}

    def logits(pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))

    if fits:
        assert library_attack(images, logits, ThreatModel(norm, 0.01, size), **call).shape == images.shape
    else:
        with pytest.raises(UsageError, check=coded("not_tileable", size=size)):
            library_attack(images, logits, ThreatModel(norm, 0.01, size), **call)


def test_a_classifier_that_was_not_handed_over_keeps_its_modes(images: Tensor) -> None:
    classifier = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 10)).train()
    classifier[0].eval()
    labels = torch.zeros(len(images), dtype=torch.long)
    library_attack(images, classifier, THREATS["l2"], labels=labels, attack="apgd", steps=1)
    assert [child.training for child in classifier.modules()] == [True, False, True, True]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ["apgd", "apgd-dlr", "apgd-t", "fab-t", "square"])
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
            targets=2 if attack.endswith("-t") else None,
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
    if attack != "fab-t":  # draws nothing before its second restart
        assert not torch.equal(adversarial, attacked(1))


def test_without_the_extra_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, classifier: nn.Module, images: Tensor, labels: Tensor
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchattacks", None)
    with pytest.raises(UsageError, check=coded("not_installed", module="torchattacks", extra="evaluation")):
        library_attack(images, classifier, THREATS["l2"], labels=labels, attack="apgd", steps=2)


BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("apgd", {"steps": 3}),
    ("apgd-dlr", {"steps": 3}),
    ("apgd-t", {"steps": 3, "targets": 2}),
    ("fab-t", {"steps": 2, "targets": 2}),
    ("square", {"steps": 3}),
]


@pytest.mark.parametrize(("attack", "settings"), BROKEN, ids=[name for name, _ in BROKEN])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_an_image_whose_logits_are_no_numbers_is_named(
    attack: Any, settings: dict[str, Any], broken: float, classifier: nn.Module, images: Tensor, labels: Tensor
) -> None:
    given = images.clone()
    given[5] = 0.9

    def logits(x: Tensor) -> Tensor:
        return torch.where((x.mean((1, 2, 3)) > 0.8)[:, None], broken, classifier(x))

    with pytest.raises(RunError, check=coded("not_finite", image=5)):
        library_attack(given, logits, THREATS["linf"], labels=labels, attack=attack, module=classifier, **settings)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_whose_gradient_is_no_number_is_named(norm: Norm, classifier: nn.Module, images: Tensor) -> None:
    """The logits are finite, and for dark images the slope of the square root at 0 is not."""
    given = images.clone()
    given[3] = 0

    def logits(x: Tensor) -> Tensor:
        means = x.mean((1, 2, 3))
        of_dark = torch.where(means < 0.2, means, means.detach())
        return classifier(x) + (0 * of_dark).sqrt()[:, None]

    labels = classifier.eval()(given).argmax(1)  # images that are wrong already are not attacked
    with pytest.raises(RunError, check=coded("not_finite", image=3)):
        library_attack(given, logits, THREATS[norm], labels=labels, attack="apgd", steps=1, module=classifier)
