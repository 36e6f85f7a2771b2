"""Optimisation streams: terms that share an optimiser; Referee-Can-Play has two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor
from torch.optim import Optimizer

from robustclip.errors import UsageError
from robustclip.synthesis.terms import Terms

Schedule = Callable[[int], float]  # step -> factor of every learning rate


@dataclass
class Stream:
    """Terms, the optimiser that follows their gradient, and what is done to that gradient first, picture by picture.

    clip_norm   its norm is cut to this (over all parameters of a picture).
    unit_rms    it is scaled to a root mean square of 1, so that the learning rate of plain SGD is the RMS change of a
                parameter in one step: steepest descent in L2, as an attack takes it.
    by_level    unit_rms for each parameter by itself: all levels of a pyramid move alike, though the gradient of a
                coarse one is many times that of a fine one.
    scale       it is multiplied by this first.
    clip_value  after all else, each of its numbers is cut to this, up and down (DOODL).
    match       (another stream, factor): it is scaled to that stream's norm times the factor, which may be a schedule
                of the step (Referee-Can-Play).
    shake       (a gradient, the step) -> what is added to it when all of that is done (Referee-Can-Play's release).
    name        what it is called where something is wrong with its gradient.
    schedule    multiplies the optimiser's learning rates; constant without one. A mapping has one for each group of
                parameters that it names (the optimiser's group["name"]); the others keep their rate.
    """

    terms: Terms
    optimiser: Optimizer
    clip_norm: float | None = None
    scale: float = 1.0
    clip_value: float | None = None
    unit_rms: bool = False
    by_level: bool = False
    match: tuple[Stream, float | Schedule] | None = None
    schedule: Schedule | Mapping[str, Schedule] | None = None
    shake: Callable[[Tensor, int], Tensor] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        self._rates = [group["lr"] for group in self.optimiser.param_groups]
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UsageError(f"clip_norm must be positive, not {self.clip_norm}: leave it out to clip nothing")
        if self.clip_value is not None and not self.clip_value > 0:
            raise UsageError(f"clip_value must be positive, not {self.clip_value}: leave it out to clip nothing")

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def step(self, gradients: Sequence[Tensor], step: int) -> None:
        """One step of the optimiser along gradients that are already prepared."""
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._factor(group.get("name"), step)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient if self.shake is None else gradient + self.shake(gradient, step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _factor(self, group: str | None, step: int) -> float:
        schedule = self.schedule.get(group or "") if isinstance(self.schedule, Mapping) else self.schedule
        return 1.0 if schedule is None else schedule(step)

    def prepared(self, gradients: Sequence[Tensor], norms: dict[int, Tensor], step: int = 0) -> list[Tensor]:
        """The gradients, matched, scaled and clipped, each picture by its own norm. `norms` holds those of the streams
        that came before, by identity, and gets this one's; a stream that rests in this step matches nothing."""
        if self.scale != 1:
            gradients = [self.scale * gradient for gradient in gradients]
        if self.unit_rms and self.by_level:
            gradients = [gradient * _rows(1 / rms(gradient).clamp(min=TINY), gradient) for gradient in gradients]
        norm = picture_norms(gradients)
        scale = torch.ones_like(norm)
        if self.match is not None and id(self.match[0]) in norms:
            other, factor = self.match
            scale = (factor(step) if callable(factor) else factor) * norms[id(other)] / norm.clamp(min=TINY)
        if self.unit_rms:
            count = sum(gradient[0].numel() for gradient in gradients)
            scale = scale * count**0.5 / (norm * scale).clamp(min=TINY)
        if self.clip_norm is not None:  # as torch.nn.utils.clip_grad_norm_: 1e-6, and never upwards
            scale = scale * (self.clip_norm / (norm * scale + 1e-6)).clamp(max=1)
        norms[id(self)] = norm * scale
        if self.match is not None or self.unit_rms or self.clip_norm is not None:
            gradients = [gradient * _rows(scale, gradient) for gradient in gradients]
        if self.clip_value is not None:
            gradients = [gradient.clamp(-self.clip_value, self.clip_value) for gradient in gradients]
        return list(gradients)


TINY = 1e-20  # a picture of no gradient takes no step, rather than one that is not a number


def picture_norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm over all parameters of each picture, (P,), in float32."""
    return torch.stack([gradient.flatten(1).float().square().sum(1) for gradient in gradients]).sum(0).sqrt()


def rms(gradient: Tensor) -> Tensor:
    """The root mean square of each picture's row, (P,), in float32."""
    return gradient.flatten(1).float().square().mean(1).sqrt()


def _rows(scale: Tensor, gradient: Tensor) -> Tensor:
    """A number a picture, (P,), shaped to multiply its row."""
    return scale.view(-1, *[1] * (gradient.ndim - 1))


def cosine_decay(steps: int, last: float = 0.0) -> Schedule:
    """From 1 to `last` along half a cosine."""
    return lambda step: last + (1 - last) * (1 + cos(pi * step / max(steps, 1))) / 2


def piecewise(steps: int, factors: Mapping[float, float]) -> Schedule:
    """1 at first, and from each share of the steps on its factor: `{0.5: 0.4, 0.75: 0.1}` are CLIPDraw's points."""
    return lambda step: [1.0, *(factor for share, factor in sorted(factors.items()) if step >= share * steps)][-1]


def linear_decay(steps: int, last: float = 0.0) -> Schedule:
    """From 1 to `last` along a line."""
    return lambda step: 1 - (1 - last) * step / max(steps, 1)
