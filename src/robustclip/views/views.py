"""Views of a batch: the same sequence of transforms applied to several copies of each picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustclip.errors import UsageError

Range = tuple[float, float]
"""Lower and upper end of a uniform distribution; equal ends: a constant."""


def check_ends(call: str, ends: Range, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise UsageError unless `ends` is a pair with least <= low <= high <= most, all finite.

    `call` is the call with {} for the range, for the message: "Contrast({})".
    """
    numbers = isinstance(ends, tuple | list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
    if not numbers or not all(map(math.isfinite, ends)):
        message = f"{call.format(repr(ends))}: a range is two numbers, the least and the most, as in (0.8, 1.2)"
        raise UsageError(message, "not_a_range", call=call.format(repr(ends)))
    low, high = ends
    if low > high:
        message = f"{call.format(f'({low}, {high})')} ends before it begins: use {call.format(f'({high}, {low})')}"
        raise UsageError(message, "not_a_range", call=call.format(f"({low}, {high})"))
    if low < least or high > most:
        inside = min(max(low, least), most), max(min(high, most), least)
        raise UsageError(
            f"{call.format(f'({low}, {high})')} reaches outside {_limits(least, most)}: "
            f"e.g. {call.format(f'({inside[0]}, {inside[1]})')}",
            "out_of_range",
            call=call.format(f"({low}, {high})"),
        )


def check_number(call: str, number: float, least: float, most: float, example: float) -> None:
    """Raise UsageError unless least <= number <= most; `call` as for `check_ends`."""
    if not isinstance(number, int | float) or not least <= number <= most:
        message = f"{call.format(repr(number))} is not within {_limits(least, most)}: e.g. {call.format(repr(example))}"
        raise UsageError(message, "out_of_range", call=call.format(repr(number)))


def _limits(least: float, most: float) -> str:
    if most == math.inf:
        return f"{least:g} and up"
    return f"{least:g} to {most:g}"


@final
class Draws:
    """Random numbers for V views of each of P pictures: rows p*V to p*V + V - 1 belong to picture p.

    Each picture draws from its own generator, all views at once. Numbers are float32, drawn on the generators' device
    and moved to `device` (default: the same). With `shared`, all views of a picture get one number. Raises UsageError
    without generators or views.
    """

    def __init__(
        self, generators: Sequence[torch.Generator], views: int, device: str | torch.device | None = None
    ) -> None:
        if not generators or views < 1:
            raise UsageError(
                f"{len(generators)} pictures of {views} views: give one generator per picture and "
                "at least one view, as in Draws([rng.generator(seed, 'views', step)], views=32)",
                "too_few",
                pictures=len(generators),
                views=views,
            )
        self.generators = list(generators)
        self.views = views
        self.device = torch.device(self.generators[0].device if device is None else device)

    def uniform(self, low: float, high: float, *shape: int, shared: bool = False) -> Float[Tensor, "b ..."]:
        """U[low, high), (P*V, *shape). Drawn even if low = high, so that later draws do not shift."""
        return self._draw(torch.rand, shape, shared).mul_(high - low).add_(low)

    def log_uniform(self, low: float, high: float, *, shared: bool = False) -> Float[Tensor, " b"]:
        """Log-uniform numbers, (P*V,)."""
        return self.uniform(math.log(low), math.log(high), shared=shared).exp()

    def normal(self, *shape: int, shared: bool = False) -> Float[Tensor, "b ..."]:
        """N(0, 1), (P*V, *shape)."""
        return self._draw(torch.randn, shape, shared)

    def integers(self, low: int, high: int, *shape: int) -> Int[Tensor, "b ..."]:
        """Uniform integers from low to high inclusive, (P*V, *shape)."""

        def between(size: tuple[int, ...], *, generator: torch.Generator, device: torch.device) -> Tensor:
            return torch.randint(low, high + 1, size, generator=generator, device=device)

        return self._draw(between, shape, shared=False)

    def chance(self, p: float, *, shared: bool = False) -> Bool[Tensor, " b"]:
        """Bernoulli(p), (P*V,)."""
        return self._draw(torch.rand, (), shared) < p

    def _draw(self, kind: Callable[..., Tensor], shape: tuple[int, ...], shared: bool) -> Tensor:
        rows = 1 if shared else self.views
        drawn = [kind((rows, *shape), generator=one, device=one.device) for one in self.generators]
        numbers = torch.cat(drawn).to(self.device)
        return numbers.repeat_interleave(self.views, 0) if shared else numbers


View = Callable[[Float[Tensor, "b 3 h w"], Draws], Float[Tensor, "b 3 h2 w2"]]
"""Transform of all views of all pictures, pictures major, differentiable in the images."""


@final
@dataclass(frozen=True)
class Views:
    """Apply `transforms` in order to `count` copies of each picture; without transforms, plain copies.

    Its text is "diffaug x32". Raises UsageError for a count below 1.
    """

    count: int
    transforms: tuple[View, ...] = ()
    name: str = "whole"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(
                f"{self.count} views of a picture: give one or more, as in Views(32)", "too_few", views=self.count
            )

    def __call__(
        self, images: Float[Tensor, "p 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "p v 3 h2 w2"]:
        """The views of P pictures, drawn from one generator per picture. Raises UsageError for another number."""
        if len(generators) != len(images):
            message = f"{len(generators)} generators for {len(images)} pictures: give one per picture"
            raise UsageError(message, "unequal_counts", generators=len(generators), pictures=len(images))
        views = images[:, None].expand(-1, self.count, -1, -1, -1).flatten(0, 1)
        draws = Draws(generators, self.count, images.device)
        for transform in self.transforms:
            views = transform(views, draws)
        return views.unflatten(0, (len(images), self.count))

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.name} x{self.count}"
