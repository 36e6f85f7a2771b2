"""AutoAttack (Croce & Hein 2020, arXiv:2003.01690) and its components, assembled from torchattacks.

    apgd-ce            APGD on the cross-entropy
    apgd-dlr           APGD on the difference of logits ratio, which no scale of the logits weakens
    apgd-t             APGD on the targeted ratio, against the 9 likeliest wrong classes
    square             random search without gradients
    autoattack         the standard ensemble, as in the paper and the authors' code: apgd-ce and apgd-t of 100 steps,
                       fab-t of 100 steps against 9 targets, square of 5000 queries; one restart of each
    autoattack-light   ours, for what a CPU can pay: apgd-ce, then apgd-t against 3 targets, 100 steps each. It leaves
                       out what would notice gradients that mislead. RobustVLM's own ensemble has the same two parts.

The parts are torchattacks' (3.5.1), whose ensemble of the same name has other numbers (see `attacks.library`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from robustclip.attacks.library import Name
from robustclip.attacks.spec import AttackSpec
from robustclip.errors import UsageError

TARGETS: Final = 9
LIGHT_TARGETS: Final = 3
QUERIES: Final = 5000
FEWEST: Final[dict[Name, int]] = {"apgd": 2, "apgd-dlr": 3, "apgd-t": 4, "fab-t": 2, "square": 2}
"""Classes that an attack compares: the ratio divides by a difference to the third logit, its targeted form to the
fourth."""


@dataclass(frozen=True)
class Part:
    """One component attack with its steps (Square: queries) and targets."""

    attack: Name
    steps: int
    targets: int | None = None


def parts(spec: AttackSpec, classes: int) -> list[Part]:
    """Component attacks in order, each run on the images still classified correctly, for `classes` classes.

    There are never more targets than wrong classes. Raises UsageError for PGD, which needs no classifier, and where a
    part needs more classes.
    """
    found = _parts(spec, classes)
    fewest = max(FEWEST[part.attack] for part in found)
    if classes < fewest:
        fewer = f"take {spec.ball}@apgd-ce or {spec.ball}@square, or " if classes >= FEWEST["apgd"] else "take "
        raise UsageError(
            f"{spec} compares the logits of at least {fewest} labels, and there are {classes} to choose from: "
            f"{fewer}more labels"
        )
    return found


def _parts(spec: AttackSpec, classes: int) -> list[Part]:
    targets, light = min(TARGETS, classes - 1), min(LIGHT_TARGETS, classes - 1)
    match spec.kind:
        case "apgd-ce":
            return [Part("apgd", spec.steps)]
        case "apgd-dlr":
            return [Part("apgd-dlr", spec.steps)]
        case "apgd-t":
            return [Part("apgd-t", spec.steps, targets)]
        case "square":
            return [Part("square", spec.steps)]
        case "autoattack":
            first = [Part("apgd", spec.steps), Part("apgd-t", spec.steps, targets)]
            return [*first, Part("fab-t", spec.steps, targets), Part("square", QUERIES)]
        case "autoattack-light":
            return [Part("apgd", spec.steps), Part("apgd-t", spec.steps, light)]
        case _:
            raise UsageError(f"{spec} is PGD, and no attack of torchattacks: call attacks.pgd")
