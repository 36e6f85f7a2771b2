from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustclip.errors import UsageError, coded
from robustclip.inits import Mixture
from robustclip.inits.mixture import fit_classes, fit_components
from robustclip.runs import rng

CPU = torch.device("cpu")
NAMES = ["dark", "bright", "never seen"]


def streams(count: int, first: int = 0) -> list[torch.Generator]:
    return [rng.generator(0, "init", index) for index in range(first, first + count)]


def toy_images(count: int = 40) -> tuple[Tensor, Tensor]:
    """Two classes of 1x2 pictures around 0.4 and 0.6, narrow enough that no sample is clamped."""
    noise = torch.randn(2 * count, 3, 1, 2, generator=rng.generator(0, "toy"))
    noise[:, 1] = 0.5 * noise[:, 0]  # correlated channels
    labels = torch.arange(2 * count) % 2
    return 0.4 + 0.2 * labels[:, None, None, None] + 0.03 * noise, labels


def toy() -> Mixture:
    return fit_classes(*toy_images(), NAMES)


def even(count: int) -> Mixture:
    """So many classes of one picture each, the brightness of class c being c / count."""
    images = (torch.arange(count) / count)[:, None, None, None].expand(-1, 3, 2, 2)
    return fit_classes(images, torch.arange(count), [f"class {c}" for c in range(count)])


def test_fitted_is_the_empirical_mean_and_covariance_with_a_ridge() -> None:
    images, labels = toy_images()
    mixture = toy()
    assert mixture.class_names == ["dark", "bright"], "a class without pictures has no Gaussian"
    for c in (0, 1):
        rows = (images[labels == c].flatten(1) * 2 - 1).double()
        around = rows - rows.mean(0)
        expected = around.T @ around / len(rows) + 1e-4 * torch.eye(6)  # by n, not n - 1
        torch.testing.assert_close(mixture.mean(c).double(), rows.mean(0), atol=1e-6, rtol=0)
        torch.testing.assert_close(mixture.covariance(c).double(), expected, atol=1e-7, rtol=0)


def test_few_pictures_keep_their_whole_covariance() -> None:
    images = torch.rand(3, 3, 4, 4, generator=rng.generator(0, "few"))
    mixture = fit_classes(images, torch.zeros(3, dtype=torch.long), ["one"])
    assert mixture.factors.shape == (3, 48), "a row a picture, not one a pixel"
    around = (images.flatten(1) - images.flatten(1).mean(0)) * 2
    torch.testing.assert_close(mixture.covariance(0), around.T @ around / 3 + 1e-4 * torch.eye(48), atol=1e-6, rtol=0)


def test_samples_have_the_fitted_mean_and_covariance() -> None:
    mixture = toy()
    n = 10_000
    drawn = mixture.draw(torch.ones(n, dtype=torch.long), streams(1) * n).flatten(1) * 2 - 1
    covariance = mixture.covariance(1)
    assert covariance.diagonal().min() > 5e-4, "else the tolerance below says nothing"
    torch.testing.assert_close(drawn.mean(0), mixture.mean(1), atol=3e-3, rtol=0)
    torch.testing.assert_close(drawn.T.cov(correction=0), covariance, atol=2e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_temperature_scales_the_distance_from_the_mean(temperature: float) -> None:
    mixture = toy()
    classes = torch.tensor([0, 1])
    mean = (torch.stack([mixture.mean(0), mixture.mean(1)]) + 1).view(2, 3, 1, 2) / 2
    at_one = mixture.draw(classes, streams(2)) - mean
    torch.testing.assert_close(
        mixture.draw(classes, streams(2), temperature=temperature), mean + temperature * at_one, atol=1e-6, rtol=0
    )


def test_one_picture_varies_by_the_ridge_alone() -> None:
    mixture = even(2)
    torch.testing.assert_close(mixture.covariance(0), 1e-4 * torch.eye(12))
    drawn = mixture.draw(torch.ones(2000, dtype=torch.long), streams(1) * 2000)
    assert drawn.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert drawn.std().item() == pytest.approx(0.005, rel=0.05)  # 0.01 in [-1, 1]


def test_samples_do_not_depend_on_the_batch() -> None:
    mixture = fit_classes(torch.rand(60, 3, 8, 8), torch.arange(60) % 4, list("abcd"), directions=20)
    classes = torch.tensor([3, 0, 2, 2, 1])
    together = mixture.sample(classes, streams(5), 16, 24)
    assert together.shape == (5, 3, 16, 24)
    assert 0 <= together.min() <= together.max() <= 1
    for row in range(5):
        assert torch.equal(together[row : row + 1], mixture.sample(classes[row : row + 1], streams(1, row), 16, 24))
    assert not torch.equal(together[2], together[3]), "the same class from two generators"


def test_as_a_start_each_picture_draws_class_and_pixels_from_its_own_generator() -> None:
    init = even(50).init(temperature=0.1)
    together = init(4, 6, streams(40), CPU)
    assert together.shape == (40, 3, 4, 6)
    assert torch.equal(together[7:9], init(4, 6, streams(2, 7), CPU))
    brightness = {round(image.mean().item() * 50) for image in together}
    assert len(brightness) > 20, "classes differ from picture to picture"
    assert init(4, 6, [], CPU).shape == (0, 3, 4, 6)


def test_the_notebooks_candidates_reach_only_the_first_classes() -> None:
    mixture = even(200)
    notebook, fixed = mixture.pick(1000, notebook=True), mixture.pick(1000)
    assert notebook.unique().tolist() == list(range(20)), "1000 candidates, 50 a class, 20 of 200 classes"
    assert fixed.bincount().tolist() == [5] * 200
    drawn = mixture.candidates(1000, streams(1)[0], notebook=True, temperature=0.0)
    assert drawn.max() < 0.1, "only the dark classes"
    assert mixture.candidates(1000, streams(1)[0], temperature=0.0).max() > 0.98


@pytest.mark.parametrize(("count", "classes"), [(7, 20), (20, 20), (50, 20), (1, 3)])
def test_candidates_are_spread_evenly(count: int, classes: int) -> None:
    for generator in (None, *streams(5)):
        counts = even(classes).pick(count, generator).bincount(minlength=classes)
        assert counts.sum() == count
        assert set(counts.tolist()) <= {count // classes, -(-count // classes)}


def test_every_class_is_as_likely_when_candidates_are_few() -> None:
    mixture = even(10)
    drawn = torch.cat([mixture.pick(3, generator) for generator in streams(2000)])
    assert (drawn.bincount(minlength=10) / 6000 - 0.1).abs().max() < 0.015


def test_weights_say_how_often_a_class_is_drawn() -> None:
    mixture = even(4)
    weights = torch.tensor([1.0, 0.0, 3.0, 0.0])
    assert mixture.pick(400, weights=weights).bincount(minlength=4).tolist() == [100, 0, 300, 0]
    assert set(mixture.pick(1000, streams(1)[0], weights=weights).tolist()) == {0, 2}


def test_fewer_directions_lose_only_what_they_do_not_span() -> None:
    generator = rng.generator(0, "low rank")
    plane = torch.randn(2, 48, generator=generator)
    images = (0.5 + 0.02 * torch.randn(60, 2, generator=generator) @ plane).view(60, 3, 4, 4)
    labels = torch.arange(60) % 3
    whole, kept = (fit_classes(images, labels, list("abc"), directions=k) for k in (None, 2))
    assert kept.means.shape == (3, 2)
    for c in range(3):
        torch.testing.assert_close(kept.mean(c), whole.mean(c), atol=1e-4, rtol=0)
        torch.testing.assert_close(kept.covariance(c), whole.covariance(c), atol=1e-4, rtol=0)
    one = fit_classes(images, labels, list("abc"), directions=1)
    assert (one.mean(0) - whole.mean(0)).abs().max() > 1e-3


def test_components_are_found_without_labels() -> None:
    pytest.importorskip("sklearn")
    images, _ = toy_images(200)
    mixture = fit_components(images, 2)
    found = sorted((mixture.mean(c).mean().item() + 1) / 2 for c in (0, 1))
    assert found == pytest.approx([0.4, 0.6], abs=0.01)
    assert mixture.weights.tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    dark = int(mixture.mean(0).mean() > mixture.mean(1).mean())
    torch.testing.assert_close(mixture.covariance(dark), toy().covariance(0), atol=1.5e-3, rtol=0)
    assert torch.equal(mixture.means, fit_components(images, 2).means)


def test_calls_of_no_use_are_refused() -> None:
    mixture = even(3)
    with pytest.raises(UsageError, check=coded("too_few", most=150)):
        mixture.pick(151, notebook=True)
    with pytest.raises(UsageError, check=coded("out_of_range", argument="count", given=0)):
        mixture.pick(0)
    with pytest.raises(UsageError, check=coded("weights_of_notebook")):
        mixture.pick(5, weights=torch.ones(3), notebook=True)
    for weights in (torch.zeros(3), torch.ones(2), torch.tensor([1.0, -1.0, 1.0]), torch.full((3,), float("nan"))):
        with pytest.raises(UsageError, check=coded("not_weights")):
            mixture.pick(5, weights=weights)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, check=coded("out_of_range", argument="temperature")):
            mixture.draw(torch.tensor([0]), streams(1), temperature=temperature)
    with pytest.raises(UsageError, check=coded("unequal_counts", classes=2, generators=1)):
        mixture.draw(torch.tensor([0, 1]), streams(1))
    with pytest.raises(UsageError, check=coded("unknown_class", classes=3)):
        mixture.draw(torch.tensor([0, 3]), streams(2))
    with pytest.raises(UsageError, check=coded("no_images")):
        fit_classes(torch.empty(0, 3, 2, 2), torch.empty(0, dtype=torch.long), [])
    with pytest.raises(UsageError, check=coded("out_of_range", argument="directions", given=0, most=12)):
        fit_classes(torch.rand(4, 3, 2, 2), torch.arange(4), list("abcd"), directions=0)
    with pytest.raises(UsageError, check=coded("out_of_range", argument="components", given=5, most=4)):
        fit_components(torch.rand(4, 3, 2, 2), 5)
