"""Weighted loss terms on views, which add up to an objective.

cosine = Cosine(targets)
loss = Term(cosine, diffaug) + 5 * Term(cosine, patches)      prints 1*cosine@diffaug x32 + 5*cosine@patches x32
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from robustclip.errors import UsageError

Loss = Callable[[Tensor], Tensor]  # views (P,V,...) -> losses (P,V)
Drawing = Callable[[Tensor, Sequence[Generator]], Tensor]  # the same of a loss that draws, with `draws` set
Reduce = Callable[[Tensor], Tensor]  # losses (P,V) -> (P,)
Weight = float | Callable[[int], float]  # a number, or one for each step
Generators = Callable[[str], Sequence[Generator]]  # what for -> one generator a picture, the same ones in every call
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
            raise UsageError(f"the hardest {self.k} of {losses.shape[1]} views: k must lie in 1 to the number of views")
        return losses.topk(self.k, dim=1).values.mean(1)

    def __str__(self) -> str:
        return f" hardest {self.k}"


@dataclass(frozen=True)
class Lowest:
    """The lowest loss: one view that fits is enough (DOODL's release)."""

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
    """The mean over all views, where losses below the q-quantile of the picture's own views count as zero (CLIPAG's
    notebook, off by default there)."""

    q: float

    def __call__(self, losses: Float[Tensor, "p v"]) -> Float[Tensor, " p"]:
        limits = losses.detach().quantile(self.q, dim=1, keepdim=True)
        return torch.where(losses < limits, 0, losses).mean(1)

    def __str__(self) -> str:
        return f" zero below quantile {self.q:g}"


@dataclass(frozen=True)
class Term:
    """weight * reduce(loss(views(rendered[reads]))), one number a picture.

    Without `views` the loss sees what is rendered as its single view. A loss that `draws` numbers of its own gets a
    generator for each picture after the views. `weight` may depend on the step; at 0 the term is not computed. `name`
    is what its numbers are recorded under, unless two of a sum share it.
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
            raise UsageError(f"the term {self} reads {self.reads!r}, and the canvas renders {', '.join(rendered)}")
        seen = rendered[self.reads]
        views = seen.unsqueeze(1) if self.views is None else self.views(seen, generators(self.label))
        if getattr(self.loss, "draws", False):
            losses = cast("Drawing", self.loss)(views, generators(f"{self.label} draws"))
        else:
            losses = cast("Loss", self.loss)(views)
        if losses.shape != views.shape[:2]:
            raise UsageError(
                f"the loss {self.loss} gave {tuple(losses.shape)} for {tuple(views.shape)}: it must give one number a "
                "view, as in (P,V)"
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
    """A sum of terms. Raises UsageError where there is none."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise UsageError("nothing to optimise: give at least one term, e.g. Term(Cosine(targets), views)")

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
        """(the weighted sum, what each term found). None where all weights are 0 at this step."""
        found: dict[str, Tensor] = {}
        total = None
        for number, term in enumerate(self.terms):
            weight = term.weight_at(step)
            if weight == 0:
                continue
            label = term.label if term.label not in found else f"{term.label} #{number}"
            losses = term(rendered, _numbered(generators, number))
            found[label] = losses.detach()
            total = weight * losses if total is None else total + weight * losses
        return total, found

    def __str__(self) -> str:
        return " + ".join(str(term) for term in self.terms if term.weight != 0)


def _numbered(generators: Generators, number: int) -> Generators:
    """Two terms of the same name draw their own numbers."""
    return lambda purpose: generators(f"{purpose} {number}")
