"""Shared settings of evaluation tasks, and names of their controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.attacks.spec import AttackSpec
from robustclip.data.examples import Examples
from robustclip.evaluation.ledger import Ledger
from robustclip.evaluation.report import CONTROL
from robustclip.evaluation.zeroshot import Candidates

if TYPE_CHECKING:  # named imports this module
    from robustclip.evaluation.named import NamedReferee


WORST = "worst "  # the norm and eps follow


@dataclass(frozen=True)
class Setting:
    """Settings shared by the tasks of one evaluation. `present_only` restricts the labels to those of the images,
    `count` to that many; `judge` and `pull` are for the PAG score, `method` and `layer` for heat maps, `sigma` and
    `samples` for certification; `ledger` stores attacked batches; `stored` has the perturbations of universal attacks
    and of their controls, by name."""

    examples: Examples
    attacks: Sequence[AttackSpec]
    templates: Sequence[str]
    present_only: bool
    batch_size: int
    dtype: torch.dtype
    seed: int
    judge: NamedReferee | None = None
    pull: AttackSpec | None = None
    method: str = "gradcam"
    layer: str | None = None
    sigma: float | None = None
    samples: int = 1_000
    count: int | None = None
    ledger: Ledger | None = None
    stored: Mapping[str, Float[Tensor, "3 h w"]] = field(default_factory=dict)

    def among(self) -> Candidates:
        """The candidate labels. Raises UsageError for a count that does not fit the set."""
        names, labels = self.examples.label_names, self.examples.labels
        return Candidates.among(names, labels, present_only=self.present_only, count=self.count, seed=self.seed)

    def choice(self, names: int) -> str:
        """Suffix of a metric's name for a restricted label set: " of 98 present"."""
        if self.count is not None:
            return f" of {names} labels"
        return f" of {names} present" if self.present_only else ""


def prompts_of(examples: Examples) -> list[str]:
    """Each image's label, or else its first caption."""
    if examples.label_names:
        return [examples.label_names[label] for label in examples.labels.tolist()]
    return [captions[0] for captions in examples.captions]


def control_of(spec: AttackSpec) -> str:
    """ "random l2:1.5": noise of the attack's norm and eps; "random l2:1.5@universal:FILE": a stored perturbation with
    its values at random places."""
    return CONTROL + (str(spec) if spec.kind == "universal" else spec.ball)


def worst_of(ball: str) -> str:
    """ "worst l2:1.5": the worst case over all attacks of that norm and eps, image by image."""
    return WORST + ball
