"""Gaussian mixture of small pictures, sampled and enlarged: CLIPAG's init (App. A.3 and its notebook).

A Gaussian over pixels at 16x16 models colours, composition and background without detail: a start with some similarity
to the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast, final

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from robustclip.data.images import resize
from robustclip.errors import UsageError, require
from robustclip.inits.basic import Init
from robustclip.runs import rng

RIDGE = 1e-4  # added to every variance, in the units of [-1, 1] pixels (notebook)
NOTEBOOK_DRAWS = 50  # candidates per class, in order of the classes (notebook)


@final
@dataclass(frozen=True, eq=False)
class Mixture:
    """Mixture of C Gaussians over pictures of `size` (height, width), pixels in [-1, 1], flattened to d = 3 * height *
    width.

    Gaussian c has the mean `centre + means[c] @ basis` and the covariance `(F @ basis)^T (F @ basis) + ridge * I`,
    where F are its `counts[c]` rows of `factors`: with few pictures in d dimensions that is the whole empirical
    covariance. `basis` (k,d) holds the kept directions; None: all (k = d). `weights` (C,) sum to 1. All tensors are
    float32 on the CPU, where pictures are sampled; resizing is done on the requested device.
    """

    centre: Float[Tensor, " d"]
    means: Float[Tensor, "c k"]
    factors: Float[Tensor, "r k"]
    counts: Int64[Tensor, " c"]
    weights: Float[Tensor, " c"]
    size: tuple[int, int]
    class_names: list[str]
    basis: Float[Tensor, "k d"] | None = None
    ridge: float = RIDGE
    starts: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", [0, *self.counts.cumsum(0).tolist()])

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.means)

    def __repr__(self) -> str:
        height, width = self.size
        return f"Mixture({len(self)} Gaussians over {height}x{width} pixels)"

    def mean(self, index: int) -> Float[Tensor, " d"]:
        """The mean of one Gaussian, in [-1, 1] pixels."""
        return self.centre + self._spread(self.means[index])

    def covariance(self, index: int) -> Float[Tensor, "d d"]:
        """The covariance of one Gaussian, in [-1, 1] pixels."""
        factor = self._spread(self._factor(index))
        return factor.T @ factor + self.ridge * torch.eye(len(self.centre))

    def pick(
        self,
        count: int,
        generator: torch.Generator | None = None,
        *,
        weights: Float[Tensor, " c"] | None = None,
        notebook: bool = False,
    ) -> Int64[Tensor, " n"]:
        """Sample the component of each of `count` candidates.

        The default spreads them as evenly as `weights` (the mixture's own if None) allow: systematic sampling, with an
        offset from `generator` (default: the middle), so that classes of equal weight repeat only in turn. `notebook`
        is CLIPAG's released sampler: candidate i is of class i // 50, so that 1000 candidates cover only the first 20
        classes. Raises UsageError for invalid weights, and for more candidates than the notebook's sampler has.
        """
        if count < 1:
            raise UsageError(f"{count} candidates: give at least 1", "out_of_range", argument="count", given=count)
        if notebook:
            if weights is not None:
                raise UsageError(
                    "the notebook's sampler goes through the classes in their order: leave out the weights",
                    "weights_of_notebook",
                )
            if count > NOTEBOOK_DRAWS * len(self):
                raise UsageError(
                    f"the notebook's sampler draws {NOTEBOOK_DRAWS} of each of {len(self)} classes, fewer than "
                    f"{count}: give {NOTEBOOK_DRAWS * len(self)} or leave out notebook",
                    "too_few",
                    most=NOTEBOOK_DRAWS * len(self),
                )
            return torch.arange(count) // NOTEBOOK_DRAWS
        edges = self._edges(weights)
        drawn = torch.tensor(0.5)
        if generator is not None:
            drawn = torch.rand((), generator=generator, device=generator.device).cpu()
        points = (torch.arange(count, dtype=torch.float64) + drawn) / count
        # A point that rounds up to the end belongs to the last class that has any weight.
        last = int((edges < edges[-1]).sum())
        return torch.searchsorted(edges, points * edges[-1], right=True).clamp(max=last)

    def draw(
        self, classes: Int64[Tensor, " p"], generators: Sequence[torch.Generator], *, temperature: float = 1.0
    ) -> Float[Tensor, "p 3 h w"]:
        """Sample one picture per class and generator at the mixture's size, in [0, 1], on the CPU.

        `temperature` multiplies all standard deviations: 0 gives the means. A repeated generator
        draws its pictures in sequence. Raises UsageError for a negative temperature and unknown classes.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            message = f"temperature {temperature}: give a number from 0 (the means), 1 for the fitted spread"
            raise UsageError(message, "out_of_range", argument="temperature", given=temperature)
        if len(classes) != len(generators):
            message = f"{len(classes)} classes for {len(generators)} generators: give one generator per picture"
            raise UsageError(message, "unequal_counts", classes=len(classes), generators=len(generators))
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(self):
            message = f"classes {classes.min()} to {classes.max()}: there are {len(self)}, counted from 0"
            raise UsageError(message, "unknown_class", classes=len(self))
        # One picture at a time, because the rounding of matrix products depends on the number of rows.
        drawn = [
            self._one(index, generator, temperature)
            for index, generator in zip(classes.tolist(), generators, strict=True)
        ]
        flat = torch.stack(drawn) if drawn else torch.empty(0, len(self.centre))
        return ((flat + 1) / 2).clamp(0, 1).unflatten(1, (3, *self.size))

    def sample(
        self,
        classes: Int64[Tensor, " p"],
        generators: Sequence[torch.Generator],
        height: int,
        width: int,
        *,
        temperature: float = 1.0,
        device: str | torch.device = "cpu",
    ) -> Float[Tensor, "p 3 h2 w2"]:
        """As `draw`, resized (bicubic, antialiased) to height x width, on `device`, in [0, 1]."""
        return resize(self.draw(classes, generators, temperature=temperature).to(device), (height, width))

    def candidates(
        self, count: int, generator: torch.Generator, *, notebook: bool = False, temperature: float = 1.0
    ) -> Float[Tensor, "n 3 h w"]:
        """Sample `count` small pictures of the classes given by `pick`, from one generator."""
        classes = self.pick(count, None if notebook else generator, notebook=notebook)
        return self.draw(classes, [generator] * count, temperature=temperature)

    def init(self, *, temperature: float = 1.0) -> Init:
        """An init for canvases: one generator per picture samples component and picture."""

        def start(
            height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
        ) -> Float[Tensor, "p 3 h w"]:
            small = [self.draw(self.pick(1, one), [one], temperature=temperature) for one in generators]
            drawn = torch.cat(small) if small else torch.empty(0, 3, *self.size)
            return resize(drawn.to(device), (height, width))

        return start

    def _one(self, index: int, generator: torch.Generator, temperature: float) -> Float[Tensor, " d"]:
        factor = self._factor(index)
        normal = torch.randn(len(factor) + len(self.centre), generator=generator, device=generator.device).cpu()
        within, everywhere = normal[: len(factor)], normal[len(factor) :]
        coefficients = self.means[index] + temperature * (within @ factor)
        return self.centre + self._spread(coefficients) + temperature * math.sqrt(self.ridge) * everywhere

    def _factor(self, index: int) -> Float[Tensor, "n k"]:
        return self.factors[self.starts[index] : self.starts[index + 1]]

    def _spread(self, coefficients: Float[Tensor, "*n k"]) -> Float[Tensor, "*n d"]:
        return coefficients if self.basis is None else coefficients @ self.basis

    def _edges(self, weights: Float[Tensor, " c"] | None) -> Float[Tensor, " c"]:
        """Cumulative weights."""
        shares = self.weights if weights is None else weights
        wide = torch.as_tensor(shares, dtype=torch.float64).cpu()
        if wide.shape != (len(self),) or not (wide.isfinite() & (wide >= 0)).all() or not wide.sum() > 0:
            message = f"weights of shape {tuple(wide.shape)}: give {len(self)} numbers from 0, not all of them 0"
            raise UsageError(message, "not_weights", shape=tuple(wide.shape))
        return wide.cumsum(0)


NOTHING = 1e-9  # variance, in the units of [-1, 1] pixels, below which a direction is left out


def fit_classes(
    images: Float[Tensor, "n 3 h w"],
    labels: Int[Tensor, " n"],
    class_names: Sequence[str],
    *,
    ridge: float = RIDGE,
    directions: int | None = None,
) -> Mixture:
    """Fit one Gaussian per class: mean, covariance (divided by n) + `ridge` * I (notebook).

    `images` are in [0,1]; the covariance of one image is the ridge alone. `directions`: number of principal components
    of all images that are kept: less memory, less detail. Classes have equal weights. Raises UsageError without images.
    """
    flat, centre, basis = _reduced(images, directions)
    labels = labels.cpu()
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
    """Raise UsageError if scikit-learn is not installed."""
    require("sklearn", "synthesis", "k-means, which finds components,")


def fit_components(
    images: Float[Tensor, "n 3 h w"],
    components: int,
    *,
    ridge: float = RIDGE,
    directions: int | None = None,
    seed: int = 0,
) -> Mixture:
    """Fit one Gaussian per k-means cluster of the images, regardless of class; clusters are seeded by `seed` and
    weighted equally.

    Without EM, which is slow with many more directions than images per cluster. Other arguments as of `fit_classes`.
    Raises UsageError for more components than images, or without scikit-learn.
    """
    if not 1 <= components <= len(images):
        message = f"{components} components for {len(images)} images: give 1 to {len(images)}"
        raise UsageError(message, "out_of_range", argument="components", given=components, most=len(images))
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
        raise UsageError("a mixture needs images: none are left", "no_images")
    flat = images.double().cpu().flatten(1) * 2 - 1
    centre = flat.mean(0).float()
    flat = flat - centre
    if directions is None or directions >= flat.shape[1]:
        return flat, centre, None
    if directions < 1:
        message = f"{directions} directions: give 1 to {flat.shape[1]}, or none to keep all"
        raise UsageError(message, "out_of_range", argument="directions", given=directions, most=flat.shape[1])
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    basis = vectors.flip(1)[:, :directions].T
    # Eigenvectors have either sign: make the largest entry positive.
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    basis = basis.half().float()  # as stored, so that projections are consistent
    return flat @ basis.double().T, centre, basis


def _factor(rows: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
    """A factor F of the rows' covariance F^T F = rows^T rows / n, with at most min(n, k) rows."""
    count, width = rows.shape
    if count == 1:
        return rows[:0]
    return rows / count**0.5 if count <= width else _root((rows.T @ rows / count).numpy())


def _root(covariance: np.ndarray) -> Float[Tensor, "m k"]:
    """F with F^T F = covariance, one row per direction of non-zero variance."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
    kept = values > NOTHING
    return (vectors[:, kept] * values[kept].sqrt()).T
