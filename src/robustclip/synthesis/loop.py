"""The loop of every synthesis: render, losses, step, callbacks, project, record."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from robustclip.canvases.base import Canvas
from robustclip.errors import RunError, UsageError
from robustclip.synthesis.terms import Schedule, Stream

Trace = dict[str, Float[Tensor, "s p"]]
"""Losses of every step and picture by term; NaN in steps in which the term was not computed."""


@dataclass(frozen=True)
class Moment:
    """State of a step as passed to callbacks: renderings and losses before the update.

    image: (P,3,H,W), detached; losses: (P,), the weighted sum over all streams; numbers: each term's losses (P,);
    gradients: prepared gradients by stream name.
    """

    step: int
    steps: int
    canvas: Canvas
    image: Float[Tensor, "p 3 h w"]
    losses: Float[Tensor, " p"]
    numbers: Mapping[str, Float[Tensor, " p"]]
    gradients: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)


class Callback(Protocol):
    """Called between step and projection; may change the canvas's parameters. True ends the loop after this step."""

    def __call__(self, moment: Moment, /) -> bool | None: ...


def optimise(
    canvas: Canvas,
    streams: Sequence[Stream],
    *,
    steps: int,
    generators: Callable[[str, int], Sequence[Generator]],
    callbacks: Sequence[Callback] = (),
) -> tuple[Float[Tensor, "p 3 h w"], Trace]:
    """Optimise the canvas for `steps` steps on the streams' losses; returns (final rendering, trace).

    `generators(purpose, step)` gives one generator per picture, so that a picture does not depend on the others of its
    batch. All streams' gradients are taken at the same rendering, before any of them steps. A callback that returns
    True ends the loop.
    """
    trace: list[dict[str, Tensor]] = []
    for step in range(steps):
        rendered = canvas.render()
        losses, numbers, gradients = _losses_and_gradients(streams, rendered, generators, step)
        norms: dict[int, Tensor] = {}
        prepared = [
            None if gradient is None else stream.prepared(gradient, norms, step)
            for stream, gradient in zip(streams, gradients, strict=True)
        ]
        image = rendered["image"].detach().clone()  # a step changes parameters in place, and pixels are parameters
        active = [(stream, one) for stream, one in zip(streams, prepared, strict=True) if one is not None]
        for stream, gradient in active:
            stream.step(gradient, step)
        followed = {stream.name: gradient for stream, gradient in active}
        moment = Moment(step, steps, canvas, image, losses, numbers, followed)
        ended = [callback(moment) for callback in callbacks]
        canvas.project()
        trace.append({"loss": losses, **numbers})
        if any(ended):
            break
    with torch.no_grad():
        return canvas.render()["image"].clone(), _stacked(trace)


def _losses_and_gradients(
    streams: Sequence[Stream],
    rendered: Mapping[str, Tensor],
    generators: Callable[[str, int], Sequence[Generator]],
    step: int,
) -> tuple[Tensor, dict[str, Tensor], list[list[Tensor] | None]]:
    """(losses (P,), losses by term, each stream's gradients or None if it is inactive in this step)."""
    pictures = rendered["image"]
    total = pictures.new_zeros(len(pictures), dtype=torch.float32)
    numbers: dict[str, Tensor] = {}
    gradients: list[list[Tensor] | None] = []
    for number, stream in enumerate(streams):
        losses, by_term = stream.terms(rendered, partial(_of_stream, generators, number, step), step)
        numbers |= {
            name if name not in numbers else f"{name} of stream {number}": value for name, value in by_term.items()
        }
        if losses is None:
            gradients.append(None)
            continue
        keep = number < len(streams) - 1  # the next stream uses the same graph
        gradients.append(_gradients(stream, losses, step, keep))
        total = total + losses.detach().float()
    return total, numbers, gradients


def _gradients(stream: Stream, losses: Tensor, step: int, keep: bool) -> list[Tensor]:
    """Gradients of a stream. Raises UsageError if there is none, RunError if one of a named stream is not finite."""
    if not losses.requires_grad:
        raise UsageError(
            f"{stream.name or 'the stream'} has no gradient ({stream.terms}): a referee that guides must not detach "
            "its output, and must not run under torch.no_grad()",
            "no_gradient",
            stream=stream.name,
        )
    gradients = list(torch.autograd.grad(losses.sum(), stream.parameters, retain_graph=keep))
    if stream.name:
        finite = torch.stack([one.flatten(1).isfinite().all(1) for one in gradients]).all(0)
        if not bool(finite.all()):
            rows = (~finite).nonzero()[:, 0].tolist()
            raise RunError(
                f"the gradient of {stream.name} ({stream.terms}) is not a number at step {step}, in picture"
                f"{'s' if len(rows) > 1 else ''} {', '.join(str(row + 1) for row in rows[:8])} of {len(finite)}: lower "
                "its rate or weight, or compute in float32 (--dtype float32)",
                "not_finite",
                stream=stream.name,
                step=step,
                rows=rows,
            )
    return gradients


def _of_stream(
    generators: Callable[[str, int], Sequence[Generator]], number: int, step: int, purpose: str
) -> Sequence[Generator]:
    """Generators that differ between streams."""
    return generators(f"{purpose} of stream {number}", step)


def _stacked(trace: Sequence[Mapping[str, Tensor]]) -> Trace:
    names = dict.fromkeys(name for numbers in trace for name in numbers)
    absent = torch.full_like(trace[0]["loss"], torch.nan) if trace else torch.empty(0)
    return {name: torch.stack([numbers.get(name, absent) for numbers in trace]).cpu() for name in names}


@final
class KeepBest:
    """Callback that keeps each picture's rendering of lowest loss.

    by      label of the loss that decides; default: the weighted sum of all terms.
    late    as in CLIPAG's notebook: the loss is measured before the step and the picture is kept after it, one step
            later than it was measured.
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
        better = losses < self.losses  # false for NaN
        self.losses = torch.where(better, losses, self.losses)
        if self.late:
            self._pending = better
        else:
            self._images = torch.where(better.view(-1, 1, 1, 1), moment.image, self._images)

    def images(self, last: Float[Tensor, "p 3 h w"]) -> Float[Tensor, "p 3 h w"]:
        """The best pictures; `last` is the loop's final rendering, which is not measured."""
        self._keep_pending(last)
        return last if self._images is None else self._images

    def _keep_pending(self, image: Tensor) -> None:
        if self._pending is not None and self._images is not None:
            self._images = torch.where(self._pending.view(-1, 1, 1, 1), image, self._images)
            self._pending = None


@final
class Film:
    """Callback that keeps renderings of evenly spread steps."""

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
    """Callback that adds Gaussian noise to every parameter after each step before `last` (Referee-Can-Play, DOODL); the
    deviation may be a schedule."""

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
        """Noise of a step for a tensor (P,...), from one generator per picture."""
        if self.last is not None and step >= self.last:
            return torch.zeros_like(like)
        deviation = self.deviation(step) if callable(self.deviation) else self.deviation
        rows = [
            torch.randn(row.shape, generator=generator, device=generator.device, dtype=row.dtype)
            for row, generator in zip(like, self.generators, strict=True)
        ]
        return deviation * torch.stack(rows).to(like.device)


@final
class MovingAverage:
    """average <- decay * average + (1 - decay) * parameters, after each step.

    start       initial average; default: the parameters after the first step.
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
        """Callback between the streams' steps and the noise: in the step after a restart the average also takes the
        step of every stream but SDS.

        In VLMinv, a restart aliases the latents to the average. The referee's in-place step then changes both; the step
        of SDS, not in place, ends the aliasing.
        """
        if self.average is None or moment.step - 1 not in self.restarts:
            return
        distilled = moment.gradients.get("sds")
        for row, (average, parameter) in enumerate(zip(self.average, moment.canvas.parameters(), strict=True)):
            average.copy_(parameter if distilled is None else parameter + distilled[row])


def restarts_of(start: int, period: int, steps: int) -> list[int]:
    """Steps i, counted from 0, with i >= start and (i - start) mod period = 0."""
    return list(range(start, steps, period))
