"""The threat model: norm, eps and image size, with projection, random starts and steepest directions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustclip.data.images import check_range
from robustclip.errors import UsageError

Norm = Literal["l2", "linf"]
Source = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a batch, or one per image; None is torch's default generator."""
LARGEST_SIDE = 2**20  # pixels: far beyond any image, and its square still fits into a float exactly
SMALLEST_EPS = 2.0**-24  # half the distance of float32 pixels next to 1
IMPLAUSIBLE_RMS = 0.25  # ours: no L2 threat model of the literature changes pixels by a quarter of their range


@final
@dataclass(frozen=True)
class ThreatModel:
    """A norm ball of radius `eps` around an image, in [0, 1] pixels, for a given height and width.

    An L2 eps means nothing without a size: 1.5 changes a 64x64 image 3.5 times as much (RMS) as a 224x224 one.
    A single number as size means a square. Raises UsageError for an unknown norm, an eps that is not a positive
    number or looks as if it were given in /255, and a size that is not one or two positive integers.
    """

    norm: Norm
    eps: float
    size: tuple[int, int]

    def __init__(self, norm: Norm, eps: float, size: int | tuple[int, int]) -> None:
        if not isinstance(norm, str) or norm not in BALLS:
            raise UsageError(f"unknown norm {norm!r}: use {' or '.join(map(repr, BALLS))}", "unknown_norm", norm=norm)
        height, width = height_and_width(size)
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "eps", _number(eps))
        object.__setattr__(self, "size", (height, width))
        if not 0 < self.eps < math.inf:
            message = f"eps must be a positive number, not {eps!r}: e.g. ThreatModel('l2', 1.5, {size!r})"
            raise UsageError(message, "not_positive", argument="eps", given=eps)
        if self.eps < SMALLEST_EPS:
            message = f"eps {eps!r} is below {SMALLEST_EPS:.2g}, the resolution of float32 pixels in [0, 1]: give more"
            raise UsageError(message, "too_small", eps=eps)
        if self.rms >= (IMPLAUSIBLE_RMS if norm == "l2" else 1):
            raise UsageError(
                f"{norm} eps {eps:g} at {height}x{width} looks as if given in /255, but images are in [0, 1]: "
                f"write ThreatModel({norm!r}, {eps:g} / 255, {size!r})",
                "eps_in_255",
                eps=eps,
            )

    @property
    def rms(self) -> float:
        """The largest root-mean-square change of a pixel value inside the ball, in [0, 1] units."""
        return self.eps / self._length_of_ones

    def resized(self, size: int | tuple[int, int]) -> ThreatModel:
        """The threat model of equal RMS change at another size: equal eps for L-inf, not for L2."""
        height, width = height_and_width(size)
        growth = math.sqrt(height * width / math.prod(self.size)) if self.norm == "l2" else 1
        return ThreatModel(self.norm, self.eps * growth, (height, width))

    def random_start(self, like: Tensor, generator: Source = None) -> Tensor:
        """Random perturbations inside the ball for `like` (B, ...); same dtype, device and layout. One generator for
        all, or one per image.
        """
        return torch.empty_like(like).copy_(self._ball.random_start(like, self.eps, generator))

    def steepest(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Steepest ascent direction of unit norm: sign(g) for L-inf, g / ||g|| for L2.

        Zero for each image whose gradient is zero or holds a value that is not finite.
        """
        size = per_image_max(gradient.abs())
        usable = (size > 0) & size.isfinite()
        # The largest entry becomes 1 first, so that a tiny gradient does not vanish when it is squared.
        scaled = gradient / broadcast(torch.where(usable, size, 1), gradient)
        return torch.where(broadcast(usable, gradient), self._ball.steepest(scaled), 0)

    def project(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The nearest perturbation inside the ball, for each image."""
        return self._ball.project(delta, self.eps)

    def norms(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        """The length of each image's perturbation in this norm."""
        return self._ball.norms(delta)

    def contains(self, delta: Float[Tensor, "b ..."], rounding: float = 1e-6) -> Bool[Tensor, " b"]:
        """Whether each perturbation lies inside the ball, when every pixel value may be off by `rounding`."""
        return self.norms(delta) <= self.eps + rounding * self._length_of_ones

    def check(self, images: Tensor) -> None:
        """Raise UsageError unless `images` is (B,3,H,W) in [0, 1] and, for L2, has the threat model's size.

        An L-inf eps means the same at every size. Reads one number back from the device.
        """
        if not isinstance(images, Tensor):
            message = f"images must be a float tensor (B, 3, H, W), not a {type(images).__name__}"
            raise UsageError(message, "wrong_type", type=type(images).__name__)
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            message = f"images must be float (B, 3, H, W), not {images.dtype} {tuple(images.shape)}"
            raise UsageError(message, "wrong_shape", shape=tuple(images.shape), dtype=images.dtype)
        height, width = images.shape[-2:]
        if self.norm == "l2" and (height, width) != self.size:
            raise UsageError(
                f"{self} was given images of {height}x{width}: threat.resized(({height}, {width})) is the same change "
                f"of a pixel there, ThreatModel('l2', {self.eps:g}, ({height}, {width})) the same eps",
                "other_size",
                size=(height, width),
                expected=self.size,
            )
        if images.numel():
            check_range(images)

    def to_json(self) -> dict[str, Any]:
        """As in cards and reports: {"norm": "l2", "eps": 1.5, "size": [224, 224]}."""
        return {"norm": self.norm, "eps": self.eps, "size": list(self.size)}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> ThreatModel:
        """The inverse of `to_json`. Raises UsageError for missing or unknown entries."""
        if not isinstance(entry, dict) or set(entry) != {"norm", "eps", "size"}:
            came = sorted(map(str, entry)) if isinstance(entry, dict) else repr(entry)
            raise UsageError(
                f"a threat model has the entries norm, eps and size, not {came}", "wrong_entries", entries=came
            )
        size = entry["size"]
        return cls(entry["norm"], entry["eps"], tuple(size) if isinstance(size, list) else size)

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{self._ball.label} eps {self.eps:.4g} at {height}x{width} (RMS {self.rms:.4f} = {self.rms * 255:.2f}/255)"
        )

    @property
    def _length_of_ones(self) -> float:
        """The length, in this norm, of the perturbation that adds 1 to every pixel value."""
        return math.sqrt(3 * math.prod(self.size)) if self.norm == "l2" else 1

    @property
    def _ball(self) -> Ball:
        return BALLS[self.norm]


class Ball(ABC):
    """Norm-specific operations of an attack: random start, steepest direction, projection, norm.

    Perturbations are (B, ...); each image is treated by itself.
    """

    label: str

    @abstractmethod
    def random_start(self, like: Tensor, eps: float, generator: Source) -> Tensor:
        """A random point of the ball, in the shape of `like`."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The unit vector that maximises <., gradient>; the gradient's largest entry is 1 (or all are 0)."""

    @abstractmethod
    def project(self, delta: Tensor, eps: float) -> Tensor:
        """The nearest point of the ball."""

    @abstractmethod
    def norms(self, delta: Tensor) -> Tensor:
        """(B,) lengths."""


@final
class L2(Ball):
    label = "L2"

    def random_start(self, like: Tensor, eps: float, generator: Source) -> Tensor:
        # Uniform in direction and in radius, as torchattacks' PGDL2: uniform in the ball would, in so many
        # dimensions, mean on its surface.
        direction = self.steepest(draw_normal(like, generator))
        return direction * broadcast(eps * draw_uniform(like.new_empty(len(like)), generator), like)

    def steepest(self, gradient: Tensor) -> Tensor:
        lengths = self.norms(gradient)
        return gradient / broadcast(torch.where(lengths > 0, lengths, 1), gradient)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        return delta * broadcast(eps / self.norms(delta).clamp_min(eps), delta)

    def norms(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta, dim=_all_but_batch(delta))


@final
class LInf(Ball):
    label = "L-inf"

    def random_start(self, like: Tensor, eps: float, generator: Source) -> Tensor:
        return eps * (2 * draw_uniform(like, generator) - 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor, eps: float) -> Tensor:
        return delta.clamp(-eps, eps)

    def norms(self, delta: Tensor) -> Tensor:
        return per_image_max(delta.abs())


BALLS: dict[str, Ball] = {"l2": L2(), "linf": LInf()}


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """A single number means a square. Raises UsageError unless the sides are positive integers (up to a million)."""
    sides = (size, size) if isinstance(size, int) else size
    is_pair = isinstance(sides, list | tuple) and len(sides) == 2
    if not is_pair or not all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in sides):
        raise UsageError(
            f"size must be one or two positive integers, not {size!r}: e.g. 224 or (224, 224)", "not_a_size", size=size
        )
    return sides[0], sides[1]


def _number(value: object) -> float:
    """A float; NaN for other values, which fails every range check."""
    try:
        return math.nan if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def broadcast(per_image: Tensor, like: Tensor) -> Tensor:
    """(B,) numbers, shaped to multiply (B, ...)."""
    return per_image.reshape(-1, *(1,) * (like.ndim - 1))


def per_image_max(values: Tensor) -> Tensor:
    """(B,) the largest value of each image; NaN if it holds one."""
    return values.amax(_all_but_batch(values))


def _all_but_batch(values: Tensor) -> tuple[int, ...]:
    return tuple(range(1, values.ndim))  # without flattening, which would copy a channels_last tensor


def draw_normal(like: Tensor, source: Source) -> Tensor:
    """N(0, 1) in the shape of `like`, drawn on the generator's device, so that a CPU generator gives the same numbers
    for any device. Of a sequence of generators, each draws one row."""
    return _draw(torch.randn, like, source)


def draw_uniform(like: Tensor, source: Source) -> Tensor:
    """U[0, 1), as `draw_normal`."""
    return _draw(torch.rand, like, source)


def _draw(kind: Callable[..., Tensor], like: Tensor, source: Source) -> Tensor:
    if isinstance(source, Sequence):
        return torch.stack([_draw(kind, row, generator) for row, generator in zip(like, source, strict=True)])
    device = source.device if source else like.device
    return kind(like.shape, generator=source, device=device, dtype=like.dtype).to(like.device)
