"""An exponential moving average of what is optimised, and restarts from it: Referee-Can-Play, Alg. 1."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

import torch
from torch import Tensor

from robustclip.synthesis.loop import Moment


@final
class MovingAverage:
    """average <- decay * average + (1 - decay) * parameters, after each step; it starts as what the canvas starts as.

    restarts    steps after which the parameters become a copy of the average. The release makes them the average's own
                memory, so that the next step moves both; here they are two. Optimisers keep their state, as there.
    last        after the last step the parameters become the average, and so does the picture.
    """

    def __init__(self, start: Collection[Tensor], decay: float, restarts: Collection[int] = (), *, last: bool = False):
        self.average = [parameter.detach().clone() for parameter in start]
        self.decay, self.restarts, self.last = decay, frozenset(restarts), last

    @torch.no_grad()
    def __call__(self, moment: Moment) -> None:
        parameters = list(moment.canvas.parameters())
        for average, parameter in zip(self.average, parameters, strict=True):
            average.lerp_(parameter, 1 - self.decay)
        if moment.step in self.restarts or (self.last and moment.step == moment.steps - 1):
            for average, parameter in zip(self.average, parameters, strict=True):
                parameter.copy_(average)


def restarts_of(start: int, period: int, steps: int) -> list[int]:
    """Steps i, counted from 0, with i >= start and (i - start) mod period = 0."""
    return list(range(start, steps, period))
