"""Exponential moving average of optimised parameters, with restarts (Referee-Can-Play, Alg. 1)."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

import torch
from torch import Tensor

from robustclip.synthesis.loop import Moment


@final
class MovingAverage:
    """average <- decay * average + (1 - decay) * parameters, after each step.

    start       what the average begins as; without it, the parameters after the first step.
    restarts    steps after which the parameters become a copy of the average. Optimisers keep their state.
    last        after the last step the parameters become the average, and so does the picture.
    """

    def __init__(
        self,
        start: Collection[Tensor] | None,
        decay: float,
        restarts: Collection[int] = (),
        *,
        last: bool = False,
    ):
        self.average = None if start is None else [parameter.detach().clone() for parameter in start]
        self.decay, self.restarts, self.last = decay, frozenset(restarts), last

    @torch.no_grad()
    def __call__(self, moment: Moment) -> None:
        parameters = list(moment.canvas.parameters())
        if self.average is None:
            self.average = [parameter.detach().clone() for parameter in parameters]
        else:
            for average, parameter in zip(self.average, parameters, strict=True):
                average.lerp_(parameter, 1 - self.decay)
        if moment.step in self.restarts or (self.last and moment.step == moment.steps - 1):
            for average, parameter in zip(self.average, parameters, strict=True):
                parameter.copy_(average)

    @torch.no_grad()
    def lend(self, moment: Moment) -> None:
        """A callback between the streams' steps and the noise: in the step after a restart the average takes the step
        of every stream but SDS.

        VLMinv's restart makes the latents the average's own memory. The referee's step, which is in place, then moves
        both, and that of SDS, which is not, gives the latents a memory of their own again.
        """
        if self.average is None or moment.step - 1 not in self.restarts:
            return
        distilled = moment.gradients.get("sds")
        for row, (average, parameter) in enumerate(zip(self.average, moment.canvas.parameters(), strict=True)):
            average.copy_(parameter if distilled is None else parameter + distilled[row])


def restarts_of(start: int, period: int, steps: int) -> list[int]:
    """Steps i, counted from 0, with i >= start and (i - start) mod period = 0."""
    return list(range(start, steps, period))
