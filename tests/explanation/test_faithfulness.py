"""Deletion and insertion against scores whose areas are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustclip.explanation.maps import PARTS, deletion, insertion, rank

Array = NDArray[np.generic]


def test_ranks_run_from_the_brightest() -> None:
    heat = torch.tensor([[[0.1, 0.9], [0.5, 0.5]]])
    assert rank(heat).tolist() == [[[3, 0], [1, 2]]]


def picture() -> Tensor:
    """White on the left, black on the right."""
    image = torch.zeros(1, 3, 16, 16)
    image[..., :8] = 1
    return image


def left(images: Tensor) -> Tensor:
    return images[..., :8].mean((1, 2, 3))


def test_deletion_of_what_counts_costs_most() -> None:
    """The score falls from 1 to the mean colour, 0.5: on the first half of the way if the map is true, else on the
    second."""
    true = picture()[:, 0]
    assert deletion(left, picture(), true).item() == pytest.approx(0.75 * 0.5 + 0.5 * 0.5)
    assert deletion(left, picture(), 1 - true).item() == pytest.approx(1.0 * 0.5 + 0.75 * 0.5)


def test_insertion_of_what_counts_brings_most() -> None:
    true = picture()[:, 0]
    good, bad = (insertion(left, picture(), heat).item() for heat in (true, 1 - true))
    assert 1 > good > bad > 0.5


def test_a_batch_is_taken_image_by_image() -> None:
    images = torch.cat([picture(), picture().flip(-1)])
    heat = images[:, 0]
    both = deletion(left, images, heat)
    torch.testing.assert_close(both[1:], deletion(left, images[1:], heat[1:]))


def test_a_small_image_can_be_blurred() -> None:
    assert insertion(left, torch.rand(1, 3, 16, 24), torch.rand(1, 16, 24)).isfinite().all()


def test_deletion_equals_quantus() -> None:
    """Its curve of pixel flipping begins after the first step, and has three points to one of ours: one a channel."""
    quantus = pytest.importorskip("quantus")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 16, 16, generator=generator)
    maps = torch.stack([torch.randperm(256, generator=generator).view(16, 16) / 256 for _ in images])
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(784, 2)
    ).eval()

    def score(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            values: Tensor = model(pictures)[:, 1]
        return values

    def blanked(arr: Array, indices: Array, **_: object) -> Array:
        blank = images.mean((2, 3), keepdim=True).expand_as(images).flatten(1).numpy()
        changed = arr.copy()
        np.put_along_axis(changed, indices, np.take_along_axis(blank, indices, 1), 1)
        return changed

    flipping = quantus.PixelFlipping(
        features_in_step=256 // PARTS, normalise=False, perturb_func=blanked, disable_warnings=True
    )
    labels, attributions = np.ones(3, dtype=int), maps[:, None].numpy()
    curves = flipping(model, images.numpy(), labels, attributions, softmax=False, channel_first=True, device="cpu")
    scores = torch.cat([score(images)[:, None], torch.tensor(curves)[:, 2::3]], 1)
    torch.testing.assert_close(deletion(score, images, maps), torch.trapezoid(scores) / PARTS, atol=1e-6, rtol=0)
