"""Fit the Gaussians of a mixture, per class or per k-means component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.errors import UsageError, require
from robustclip.inits.mixture import RIDGE, Mixture
from robustclip.runs import rng

NOTHING = 1e-9  # variance, in the units of [-1, 1] pixels, below which a direction is left out


def fit_classes(
    images: Float[Tensor, "n 3 h w"],
    labels: Int[Tensor, " n"],
    class_names: Sequence[str],
    *,
    ridge: float = RIDGE,
    directions: int | None = None,
) -> Mixture:
    """A Gaussian for each class that has images: its mean, its covariance (divided by n) + `ridge` * I (notebook).

    `images` are in [0,1]; the covariance of one image is the ridge alone. `directions` keeps what lies in the first
    that many principal components of all images, around their mean: less memory, less detail. Classes weigh the same,
    however many images they have. Raises UsageError without images.
    """
    flat, centre, basis = _reduced(images, directions)
    present = labels.unique().tolist()
    means, factors = [], []
    for label in present:
        rows = flat[labels == label]
        means.append(rows.mean(0))
        factors.append(_factor(rows - rows.mean(0)))
    return Mixture(
        centre=centre,
        means=torch.stack(means).float(),
        factors=torch.cat(factors).float(),
        counts=torch.tensor([len(factor) for factor in factors]),
        weights=torch.full((len(present),), 1 / len(present)),
        size=cast("tuple[int, int]", tuple(images.shape[-2:])),
        class_names=[class_names[label] for label in present],
        basis=basis,
        ridge=ridge,
    )


def check_installed() -> None:
    """Raise UsageError where scikit-learn is not installed."""
    require("sklearn", "synthesis", "k-means, which finds components,")


def fit_components(
    images: Float[Tensor, "n 3 h w"],
    components: int,
    *,
    ridge: float = RIDGE,
    directions: int | None = None,
    seed: int = 0,
) -> Mixture:
    """A Gaussian for each of so many groups of similar images, whatever their classes: k-means finds the groups, drawn
    by `seed`, and each counts the same, as a class does.

    With many more directions than images to a group, EM from there on would take very long. The other
    arguments are those of `fit_classes`. Raises UsageError for more components than images, or where
    scikit-learn is not installed.
    """
    if not 1 <= components <= len(images):
        raise UsageError(f"{components} components for {len(images)} images: give 1 to {len(images)}")
    check_installed()
    from sklearn.cluster import KMeans

    state = rng.generator(seed, "mixture").initial_seed() % 2**32
    groups = KMeans(components, n_init=1, random_state=state).fit_predict(images.double().cpu().flatten(1).numpy())
    names = [f"component {number}" for number in range(1, components + 1)]
    labels = torch.from_numpy(groups).long()
    return fit_classes(images, labels, names, ridge=ridge, directions=directions)


def _reduced(
    images: Float[Tensor, "n 3 h w"], directions: int | None
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " d"], Float[Tensor, "k d"] | None]:
    """The images as float64 rows around their mean, in [-1, 1] units or along their principal directions."""
    if not len(images):
        raise UsageError("a mixture needs images: none are left")
    flat = images.double().cpu().flatten(1) * 2 - 1
    centre = flat.mean(0).float()
    flat = flat - centre
    if directions is None or directions >= flat.shape[1]:
        return flat, centre, None
    if directions < 1:
        raise UsageError(f"{directions} directions: give 1 to {flat.shape[1]}, or none to keep all")
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    basis = vectors.flip(1)[:, :directions].T
    # Eigenvectors come with either sign: the largest entry is made positive.
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    basis = basis.half().float()  # as it is stored, so that what is projected on it here is what comes back
    return flat @ basis.double().T, centre, basis


def _factor(rows: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
    """A factor F of the rows' covariance F^T F = rows^T rows / n, of as few rows as n, less than n or k allow."""
    count, width = rows.shape
    if count == 1:
        return rows[:0]
    return rows / count**0.5 if count <= width else _root((rows.T @ rows / count).numpy())


def _root(covariance: np.ndarray) -> Float[Tensor, "m k"]:
    """F with F^T F = covariance, a row for each direction that varies."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
    kept = values > NOTHING
    return (vectors[:, kept] * values[kept].sqrt()).T
