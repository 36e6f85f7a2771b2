"""Weighted loss terms on views, summed to an objective, and their optimisation streams.

cosine = Cosine(targets)
loss = Term(cosine, diffaug) + 5 * Term(cosine, patches)      prints 1*cosine@diffaug x32 + 5*cosine@patches x32
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import cos, exp, pi
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.optim import Optimizer

from robustclip.errors import UsageError

Loss = Callable[[Tensor], Tensor]  # views (P,V,...) -> losses (P,V)
Drawing = Callable[[Tensor, Sequence[Generator]], Tensor]  # of losses that draw random numbers, marked by `draws`
Reduce = Callable[[Tensor], Tensor]  # losses (P,V) -> (P,)
Weight = float | Callable[[int], float]  # a number, or one for each step
Generators = Callable[[str], Sequence[Generator]]  # purpose -> one generator per picture
Looking = Callable[[Tensor, Sequence[Generator]], Tensor]  # rendered (P,...), generators -> views (P,V,...)


@dataclass(frozen=True)
class Mean:
    """The mean over views."""

    def __call__(self, losses: Float[Tensor, "p v"]) -> Float[Tensor, " p"]:
        return losses.mean(1)

    def __str__(self) -> str:
        return ""


MEAN: Final = Mean()


@dataclass(frozen=True)
class Hardest:
    """The mean of the k highest losses."""

    k: int

    def __call__(self, losses: Float[Tensor, "p v"]) -> Float[Tensor, " p"]:
        if not 0 < self.k <= losses.shape[1]:
            message = f"the hardest {self.k} of {losses.shape[1]} views: k must lie in 1 to the number of views"
            raise UsageError(message, "out_of_range", argument="k", given=self.k, most=losses.shape[1])
        return losses.topk(self.k, dim=1).values.mean(1)

    def __str__(self) -> str:
        return f" hardest {self.k}"


@dataclass(frozen=True)
class Lowest:
    """The lowest loss over views (DOODL's release)."""

    def __call__(self, losses: Float[Tensor, "p v"]) -> Float[Tensor, " p"]:
        return losses.min(1).values

    def __str__(self) -> str:
        return " lowest"


@dataclass(frozen=True)
class ZeroBelow:
    """The mean over all views, where losses below a threshold count as zero (CLIPStyler: 0.7)."""

    threshold: float

    def __call__(self, losses: Float[Tensor, "p v"]) -> Float[Tensor, " p"]:
        return torch.where(losses < self.threshold, 0, losses).mean(1)

    def __str__(self) -> str:
        return f" zero below {self.threshold:g}"


@dataclass(frozen=True)
class ZeroBelowQuantile:
    """Mean over views, with losses below the q-quantile of the picture's own views counted as zero (CLIPAG's notebook;
    off by default there).
    """

    q: float

    def __call__(self, losses: Float[Tensor, "p v"]) -> Float[Tensor, " p"]:
        limits = losses.detach().quantile(self.q, dim=1, keepdim=True)
        return torch.where(losses < limits, 0, losses).mean(1)

    def __str__(self) -> str:
        return f" zero below quantile {self.q:g}"


@dataclass(frozen=True)
class Term:
    """weight * reduce(loss(views(rendered[reads]))), one number per picture.

    Without `views` the rendering is the single view. A loss with `draws` set gets one generator per picture after the
    views. `weight` may depend on the step; at 0 the term is not computed. `name` labels its recorded losses.
    """

    loss: Loss | Drawing
    views: Looking | None = None
    weight: Weight = 1.0
    reduce: Reduce = MEAN
    reads: str = "image"
    name: str = ""

    def weight_at(self, step: int) -> float:
        return float(self.weight(step) if callable(self.weight) else self.weight)

    def __call__(self, rendered: Mapping[str, Tensor], generators: Generators) -> Float[Tensor, " p"]:
        """The loss of each picture, without the weight."""
        if self.reads not in rendered:
            message = f"the term {self} reads {self.reads!r}, and the canvas renders {', '.join(rendered)}"
            raise UsageError(message, "not_rendered", reads=self.reads)
        image = rendered[self.reads]
        views = image.unsqueeze(1) if self.views is None else self.views(image, generators(self.label))
        if getattr(self.loss, "draws", False):
            losses = cast("Drawing", self.loss)(views, generators(f"{self.label} draws"))
        else:
            losses = cast("Loss", self.loss)(views)
        if losses.shape != views.shape[:2]:
            raise UsageError(
                f"the loss {self.loss} gave {tuple(losses.shape)} for {tuple(views.shape)}: it must give (P,V), one "
                "number per view",
                "wrong_shape",
                shape=tuple(losses.shape),
            )
        return self.reduce(losses)

    @property
    def label(self) -> str:
        return self.name or f"{self.loss}{'' if self.views is None else f'@{self.views}'}"

    def __str__(self) -> str:
        weight = "scheduled" if callable(self.weight) else f"{self.weight:g}"
        reads = "" if self.reads == "image" else f"({self.reads})"
        return f"{weight}*{self.loss}{reads}{'' if self.views is None else f'@{self.views}'}{self.reduce}"

    def __mul__(self, factor: float) -> Term:
        weight = self.weight
        scaled: Weight = (lambda step: factor * weight(step)) if callable(weight) else factor * weight
        return replace(self, weight=scaled)

    __rmul__ = __mul__

    def __add__(self, other: Term | Terms) -> Terms:
        return Terms((self,)) + other


@dataclass(frozen=True)
class Terms:
    """Sum of terms. Raises UsageError for none."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise UsageError(
                "nothing to optimise: give at least one term, e.g. Term(Cosine(targets), views)", "no_terms"
            )

    def __iter__(self) -> Iterator[Term]:
        return iter(self.terms)

    def __add__(self, other: Any) -> Terms:
        if not isinstance(other, Term | Terms):
            return NotImplemented
        return Terms(self.terms + ((other,) if isinstance(other, Term) else other.terms))

    def __rmul__(self, factor: float) -> Terms:
        return Terms(tuple(factor * term for term in self.terms))

    def __call__(
        self, rendered: Mapping[str, Tensor], generators: Generators, step: int
    ) -> tuple[Float[Tensor, " p"] | None, dict[str, Float[Tensor, " p"]]]:
        """(the weighted sum, each term's losses); None if all weights are 0 at this step."""
        by_label: dict[str, Tensor] = {}
        total = None
        for number, term in enumerate(self.terms):
            weight = term.weight_at(step)
            if weight == 0:
                continue
            label = term.label if term.label not in by_label else f"{term.label} #{number}"
            losses = term(rendered, _numbered(generators, number))
            by_label[label] = losses.detach()
            total = weight * losses if total is None else total + weight * losses
        return total, by_label

    def __str__(self) -> str:
        return " + ".join(str(term) for term in self.terms if term.weight != 0)


def _numbered(generators: Generators, number: int) -> Generators:
    """Generators that differ between terms of the same name."""
    return lambda purpose: generators(f"{purpose} {number}")


Schedule = Callable[[int], float]  # step -> factor of every learning rate


@dataclass
class Stream:
    """Terms with their optimiser, and the per-picture gradient transform before it.

    scale       factor of the gradient, applied first.
    clip_norm   maximum norm over all parameters of a picture.
    unit_rms    scale to a root mean square of 1, so that the learning rate of plain SGD is the RMS change of a
                parameter in one step: steepest descent in L2, as in an attack.
    by_level    unit_rms for each parameter separately: equal changes of all levels of a pyramid, although gradients of
                coarse levels are many times larger.
    match       (another stream, factor): scale to that stream's norm times the factor, which may be a schedule
                (Referee-Can-Play).
    clip_value  maximum absolute value of elements, applied last (DOODL).
    noise       (gradient, step) -> noise added after all of these (Referee-Can-Play's release).
    name        in error messages; named streams are checked for finite gradients.
    schedule    factor of the optimiser's learning rates; a mapping has one per parameter group that it names (the
                optimiser's group["name"]).
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
    noise: Callable[[Tensor, int], Tensor] | None = None
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
        """One optimiser step along `prepared` gradients."""
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._factor(group.get("name"), step)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient if self.noise is None else gradient + self.noise(gradient, step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _factor(self, group: str | None, step: int) -> float:
        schedule = self.schedule.get(group or "") if isinstance(self.schedule, Mapping) else self.schedule
        return 1.0 if schedule is None else schedule(step)

    def prepared(self, gradients: Sequence[Tensor], norms: dict[int, Tensor], step: int = 0) -> list[Tensor]:
        """Gradients scaled, matched and clipped by each picture's norm. `norms` maps earlier streams, by identity, to
        their norms, and gets this one's; a stream inactive in this step is not matched."""
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
        if self.clip_norm is not None:  # as torch.nn.utils.clip_grad_norm_: 1e-6, no scaling up
            scale = scale * (self.clip_norm / (norm * scale + 1e-6)).clamp(max=1)
        norms[id(self)] = norm * scale
        if self.match is not None or self.unit_rms or self.clip_norm is not None:
            gradients = [gradient * _rows(scale, gradient) for gradient in gradients]
        if self.clip_value is not None:
            gradients = [gradient.clamp(-self.clip_value, self.clip_value) for gradient in gradients]
        return list(gradients)


TINY = 1e-20  # a zero gradient gives a zero step instead of NaN


def picture_norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm over all parameters of each picture, (P,), in float32."""
    return torch.stack([gradient.flatten(1).float().square().sum(1) for gradient in gradients]).sum(0).sqrt()


def rms(gradient: Tensor) -> Tensor:
    """The root mean square of each picture's row, (P,), in float32."""
    return gradient.flatten(1).float().square().mean(1).sqrt()


def _rows(scale: Tensor, gradient: Tensor) -> Tensor:
    """(P,) reshaped to multiply the rows of `gradient`."""
    return scale.view(-1, *[1] * (gradient.ndim - 1))


def cosine_decay(steps: int, last: float = 0.0) -> Schedule:
    """From 1 to `last` by a half cosine."""
    return lambda step: last + (1 - last) * (1 + cos(pi * step / max(steps, 1))) / 2


def piecewise(steps: int, factors: Mapping[float, float]) -> Schedule:
    """1, then each factor from its share of the steps on: CLIPDraw's points are `{0.5: 0.4, 0.75: 0.1}`."""
    return lambda step: [1.0, *(factor for share, factor in sorted(factors.items()) if step >= share * steps)][-1]


def linear_decay(steps: int, last: float = 0.0) -> Schedule:
    """From 1 to `last` linearly."""
    return lambda step: 1 - (1 - last) * step / max(steps, 1)


def moving_peak(place: int, places: int, steps: int, spread: float) -> Schedule:
    """exp(-(place - peak)^2 / (2 spread^2)), whose peak moves along a line from the first of `places` to the last:
    CLIP^-1's rate of a layer."""
    return lambda step: exp(-(((place - (places - 1) * step / max(steps - 1, 1)) / spread) ** 2) / 2)
