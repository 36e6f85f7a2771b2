"""The loop of every synthesis: render, losses, step, callbacks, project, record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from robustclip.canvases.base import Canvas
from robustclip.synthesis.streams import Stream

Trace = dict[str, Float[Tensor, "s p"]]
"""Every number of every step and picture; NaN in a step in which its term was not computed."""


@dataclass(frozen=True)
class Moment:
    """What callbacks are shown of a step: what was rendered and scored in it, before the canvas was changed.

    image: (P,3,H,W), detached; losses: (P,), the weighted sum over all streams; numbers: what each term found, (P,).
    """

    step: int
    steps: int
    canvas: Canvas
    image: Float[Tensor, "p 3 h w"]
    losses: Float[Tensor, " p"]
    numbers: Mapping[str, Float[Tensor, " p"]]


class Callback(Protocol):
    """Runs between step and projection: it may change the canvas's parameters, or only look."""

    def __call__(self, moment: Moment, /) -> None: ...


def optimise(
    canvas: Canvas,
    streams: Sequence[Stream],
    *,
    steps: int,
    generators: Callable[[str, int], Sequence[Generator]],
    callbacks: Sequence[Callback] = (),
) -> tuple[Float[Tensor, "p 3 h w"], Trace]:
    """Change the canvas for `steps` steps so that the streams' losses fall; (what it then renders, the trace).

    `generators(purpose, step)` gives one generator a picture, so that a picture does not depend on which others are
    optimised beside it. All streams' gradients are taken at the same rendering, before any of them steps.
    """
    trace: list[dict[str, Tensor]] = []
    for step in range(steps):
        rendered = canvas.render()
        losses, numbers, gradients = _losses_and_gradients(streams, rendered, generators, step)
        norms: dict[int, Tensor] = {}
        prepared = [
            None if found is None else stream.prepared(found, norms)
            for stream, found in zip(streams, gradients, strict=True)
        ]
        image = rendered["image"].detach().clone()  # a step changes parameters in place, and pixels are parameters
        for stream, found in zip(streams, prepared, strict=True):
            if found is not None:
                stream.step(found, step)
        moment = Moment(step, steps, canvas, image, losses, numbers)
        for callback in callbacks:
            callback(moment)
        canvas.project()
        trace.append({"loss": losses, **numbers})
    with torch.no_grad():
        return canvas.render()["image"].clone(), _stacked(trace)


def _losses_and_gradients(
    streams: Sequence[Stream],
    rendered: Mapping[str, Tensor],
    generators: Callable[[str, int], Sequence[Generator]],
    step: int,
) -> tuple[Tensor, dict[str, Tensor], list[list[Tensor] | None]]:
    """(the losses (P,), what each term found, for each stream its gradients or None where it rests in this step)."""
    pictures = rendered["image"]
    total = pictures.new_zeros(len(pictures), dtype=torch.float32)
    numbers: dict[str, Tensor] = {}
    gradients: list[list[Tensor] | None] = []
    for number, stream in enumerate(streams):
        losses, found = stream.terms(rendered, partial(_of_stream, generators, number, step), step)
        numbers |= {
            name if name not in numbers else f"{name} of stream {number}": value for name, value in found.items()
        }
        if losses is None:
            gradients.append(None)
            continue
        keep = number < len(streams) - 1  # the next stream goes back through the same rendering
        gradients.append(list(torch.autograd.grad(losses.sum(), stream.parameters, retain_graph=keep)))
        total = total + losses.detach().float()
    return total, numbers, gradients


def _of_stream(
    generators: Callable[[str, int], Sequence[Generator]], number: int, step: int, purpose: str
) -> Sequence[Generator]:
    """Two streams draw their own numbers."""
    return generators(f"{purpose} of stream {number}", step)


def _stacked(trace: Sequence[Mapping[str, Tensor]]) -> Trace:
    names = dict.fromkeys(name for numbers in trace for name in numbers)
    absent = torch.full_like(trace[0]["loss"], torch.nan) if trace else torch.empty(0)
    return {name: torch.stack([numbers.get(name, absent) for numbers in trace]).cpu() for name in names}
