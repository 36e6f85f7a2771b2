"""Random draws of views: one generator per picture, independent of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustclip.errors import UsageError


@final
class Draws:
    """Random numbers for V views of each of P pictures: rows p*V to p*V + V - 1 belong to picture p.

    Each picture draws from its own generator, all views at once. Numbers are float32, drawn where the generators live
    and handed over on `device` (default: there). With `shared`, one number is drawn a picture and repeated over its
    views. Raises UsageError without generators or views.
    """

    def __init__(
        self, generators: Sequence[torch.Generator], views: int, device: str | torch.device | None = None
    ) -> None:
        if not generators or views < 1:
            raise UsageError(
                f"{len(generators)} pictures of {views} views leave nothing to draw: give one generator a picture and "
                "at least one view, as in Draws([rng.generator(seed, 'views', step)], views=32)"
            )
        self.generators = list(generators)
        self.views = views
        self.device = torch.device(self.generators[0].device if device is None else device)

    def uniform(self, low: float, high: float, *shape: int, shared: bool = False) -> Float[Tensor, "b ..."]:
        """U[low, high), (P*V, *shape). Numbers are drawn also where low = high: what follows does not shift."""
        return self._draw(torch.rand, shape, shared).mul_(high - low).add_(low)

    def log_uniform(self, low: float, high: float, *, shared: bool = False) -> Float[Tensor, " b"]:
        """Numbers whose logarithms are uniform, (P*V,): as often half of something as twice of it."""
        return self.uniform(math.log(low), math.log(high), shared=shared).exp()

    def normal(self, *shape: int, shared: bool = False) -> Float[Tensor, "b ..."]:
        """N(0, 1), (P*V, *shape)."""
        return self._draw(torch.randn, shape, shared)

    def integers(self, low: int, high: int, *shape: int, shared: bool = False) -> Int[Tensor, "b ..."]:
        """Whole numbers from low to high, both included, (P*V, *shape)."""

        def between(size: tuple[int, ...], *, generator: torch.Generator, device: torch.device) -> Tensor:
            return torch.randint(low, high + 1, size, generator=generator, device=device)

        return self._draw(between, shape, shared)

    def chance(self, p: float, *, shared: bool = False) -> Bool[Tensor, " b"]:
        """True with probability p, (P*V,): never for 0, always for 1."""
        return self._draw(torch.rand, (), shared) < p

    def _draw(self, kind: Callable[..., Tensor], shape: tuple[int, ...], shared: bool) -> Tensor:
        rows = 1 if shared else self.views
        drawn = [kind((rows, *shape), generator=one, device=one.device) for one in self.generators]
        numbers = torch.cat(drawn).to(self.device)
        return numbers.repeat_interleave(self.views, 0) if shared else numbers
