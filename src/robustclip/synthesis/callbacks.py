"""Callbacks of the synthesis loop, between step and projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.synthesis.loop import Moment
from robustclip.synthesis.streams import Schedule


@final
class KeepBest:
    """The picture of the lowest loss so far, for each picture by itself.

    by      the number that decides; the weighted sum of all terms without one.
    late    as CLIPAG's notebook: the loss is measured before the step, and the picture is kept after it. So what is
            kept is one step further than what was measured.
    """

    def __init__(self, by: str | None = None, *, late: bool = False) -> None:
        self.by = by
        self.late = late
        self.losses: Tensor | None = None
        self._images: Tensor | None = None
        self._pending: Tensor | None = None

    def __call__(self, moment: Moment) -> None:
        self._keep_pending(moment.image)
        losses = moment.losses if self.by is None else moment.numbers[self.by]
        if self.losses is None or self._images is None:
            self.losses, self._images = torch.full_like(losses, torch.inf), moment.image
        better = losses < self.losses  # false for what is not a number
        self.losses = torch.where(better, losses, self.losses)
        if self.late:
            self._pending = better
        else:
            self._images = torch.where(better.view(-1, 1, 1, 1), moment.image, self._images)

    def images(self, last: Float[Tensor, "p 3 h w"]) -> Float[Tensor, "p 3 h w"]:
        """The best pictures; `last` is what the loop returned, which was never measured."""
        self._keep_pending(last)
        return last if self._images is None else self._images

    def _keep_pending(self, image: Tensor) -> None:
        if self._pending is not None and self._images is not None:
            self._images = torch.where(self._pending.view(-1, 1, 1, 1), image, self._images)
            self._pending = None


@final
class Film:
    """Pictures of the way, as they were rendered at evenly spread steps."""

    def __init__(self, steps: int, count: int) -> None:
        self.wanted = sorted({round(index * steps / max(count, 1)) for index in range(count)})
        self.steps: list[int] = []
        self._frames: list[Tensor] = []

    def __call__(self, moment: Moment) -> None:
        if moment.step in self.wanted:
            self.steps.append(moment.step)
            self._frames.append(moment.canvas.picture(moment.image).cpu())

    def frames(self) -> Float[Tensor, "f p 3 h w"]:
        return torch.stack(self._frames) if self._frames else torch.empty(0)


@final
class Noise:
    """Gaussian noise of this deviation, which may be a schedule of the step, on every parameter after each step, until
    `last` (Referee-Can-Play, DOODL)."""

    def __init__(
        self, deviation: float | Schedule, generators: Sequence[torch.Generator], last: int | None = None
    ) -> None:
        self.deviation = deviation
        self.generators = generators
        self.last = last

    @torch.no_grad()
    def __call__(self, moment: Moment) -> None:
        for parameter in moment.canvas.parameters():
            parameter.add_(self.drawn(parameter, moment.step))

    @torch.no_grad()
    def drawn(self, like: Tensor, step: int) -> Tensor:
        """The noise of a step for a tensor (P,...), each picture's row from its own generator."""
        if self.last is not None and step >= self.last:
            return torch.zeros_like(like)
        deviation = self.deviation(step) if callable(self.deviation) else self.deviation
        rows = [
            torch.randn(row.shape, generator=generator, device=generator.device, dtype=row.dtype)
            for row, generator in zip(like, self.generators, strict=True)
        ]
        return deviation * torch.stack(rows).to(like.device)
