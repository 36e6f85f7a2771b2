"""The loop of every synthesis: render, losses, step, callbacks, project, record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from robustclip.canvases.base import Canvas
from robustclip.errors import RunError, UsageError
from robustclip.synthesis.streams import Stream

Trace = dict[str, Float[Tensor, "s p"]]
"""Every number of every step and picture; NaN in a step in which its term was not computed."""


@dataclass(frozen=True)
class Moment:
    """What callbacks are shown of a step: what was rendered and scored in it, before the canvas was changed.

    image: (P,3,H,W), detached; losses: (P,), the weighted sum over all streams; numbers: what each term found, (P,);
    gradients: by the streams' names, those that they stepped along.
    """

    step: int
    steps: int
    canvas: Canvas
    image: Float[Tensor, "p 3 h w"]
    losses: Float[Tensor, " p"]
    numbers: Mapping[str, Float[Tensor, " p"]]
    gradients: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)


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
            None if found is None else stream.prepared(found, norms, step)
            for stream, found in zip(streams, gradients, strict=True)
        ]
        image = rendered["image"].detach().clone()  # a step changes parameters in place, and pixels are parameters
        for stream, found in zip(streams, prepared, strict=True):
            if found is not None:
                stream.step(found, step)
        followed = {stream.name: found for stream, found in zip(streams, prepared, strict=True) if found is not None}
        moment = Moment(step, steps, canvas, image, losses, numbers, followed)
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
        gradients.append(_gradients(stream, losses, step, keep))
        total = total + losses.detach().float()
    return total, numbers, gradients


def _gradients(stream: Stream, losses: Tensor, step: int, keep: bool) -> list[Tensor]:
    """Raises UsageError where there is none, and RunError where one of a stream with a name is not a number."""
    if not losses.requires_grad:
        raise UsageError(
            f"{stream.name or 'the stream'} has no gradient ({stream.terms}): a referee that guides must not detach "
            "its answer, and must not run under torch.no_grad()"
        )
    found = list(torch.autograd.grad(losses.sum(), stream.parameters, retain_graph=keep))
    if stream.name:
        whole = torch.stack([one.flatten(1).isfinite().all(1) for one in found]).all(0)
        if not bool(whole.all()):
            rows = (~whole).nonzero()[:, 0].tolist()
            raise RunError(
                f"the gradient of {stream.name} ({stream.terms}) is not a number at step {step}, in picture"
                f"{'s' if len(rows) > 1 else ''} {', '.join(str(row + 1) for row in rows[:8])} of {len(whole)}: lower "
                "its rate or weight, or compute in float32 (--dtype float32)"
            )
    return found


def _of_stream(
    generators: Callable[[str, int], Sequence[Generator]], number: int, step: int, purpose: str
) -> Sequence[Generator]:
    """Two streams draw their own numbers."""
    return generators(f"{purpose} of stream {number}", step)


def _stacked(trace: Sequence[Mapping[str, Tensor]]) -> Trace:
    names = dict.fromkeys(name for numbers in trace for name in numbers)
    absent = torch.full_like(trace[0]["loss"], torch.nan) if trace else torch.empty(0)
    return {name: torch.stack([numbers.get(name, absent) for numbers in trace]).cpu() for name in names}
