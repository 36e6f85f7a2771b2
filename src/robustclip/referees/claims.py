"""Measuring a card's claims again."""

from __future__ import annotations

import re
from typing import Any, Literal

from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card, Claim

EMBEDDED_DATA = "emoji/"
CONTROL, PAG, WORST = "random ", "PAG score", "worst "  # as the evaluation writes them; importing it would be long
_COUNTED = re.compile(r" of (\d{1,9}) labels$")
_STRONG = re.compile("@[a-z]")  # an attack with a name, of minutes where PGD takes seconds


def cheapest(card: Card, name: str | None = None) -> Claim | None:
    """The claim of that name that is cheapest to measure, or of all on embedded data; None where there is none.

    Raises UsageError for a name that no claim has.
    """
    claims = [
        claim for claim in card.claims if name == claim.name or (name is None and claim.data.startswith(EMBEDDED_DATA))
    ]
    if name is not None and not claims:
        names = sorted({claim.name for claim in card.claims})
        raise UsageError(f"{card.name} claims nothing named {name!r}; its claims: {', '.join(names) or 'none'}")
    return min(claims, key=_cost, default=None)


def _cost(claim: Claim) -> tuple[bool, int, int]:
    """Orders claims from cheap to dear. What stands beside a PAG score says nothing of the referee: the score itself
    comes before it."""
    attacked = claim.attack is not None and not claim.attack.startswith(CONTROL)
    pag = claim.name.startswith(PAG)
    of_maps = claim.name.endswith(")") and not pag  # minutes, where a rate takes seconds
    strong = attacked and _STRONG.search(claim.attack or "") is not None
    return pag or of_maps, (attacked != pag) + strong, claim.n


def measured(referee: TwoTower, claim: Claim, device: str) -> float:
    """The value of `claim` as it is found now. Raises UsageError where the claim does not say enough to measure it."""
    from robustclip.evaluation import evaluate

    if claim.name.startswith(PAG):
        return _measured_pag(referee, claim, device)
    from robustclip.evaluation.maps import told_by

    task: Literal["zero-shot", "retrieval", "gradients", "maps", "faithfulness"]
    task = "retrieval" if "recall" in claim.name else "zero-shot" if claim.name.startswith("top-") else "gradients"
    how: dict[str, Any] = {}
    if (told := told_by(claim.name)) is not None:
        task, how = told.task, {"method": told.method, "layer": told.layer}
    attack = [] if claim.attack is None else [claim.attack]
    if claim.attack is not None and claim.attack.startswith(WORST):
        raise UsageError(
            f"{claim.name!r} ({claim.attack}) is what several attacks left, and the claim does not name them: "
            "measure the claim of one attack"
        )
    report = evaluate(
        [referee],
        data=claim.data,
        tasks=[task],
        attack=attack,
        labels=_labels(claim.name),
        limit=claim.n,
        seed=claim.seed,
        device=device,
        **how,
    )
    return report.row(referee.card.name, claim.name, claim.attack or "clean").value


def _labels(name: str) -> Literal["all", "present"] | int:
    """Among which labels a metric of this name chooses, as `evaluate` takes it."""
    if (counted := _COUNTED.search(name)) is not None:
        return int(counted[1])
    return "present" if name.endswith("present") else "all"


def _measured_pag(referee: TwoTower, claim: Claim, device: str) -> float:
    """Only with referees that have a name here: a card that somebody sent must not choose what is read or fetched."""
    from robustclip.evaluation import evaluate
    from robustclip.evaluation.pag import told_by
    from robustclip.referees.registry import find

    told = told_by(claim.name)
    if told is None or any(find(name) is None for name in (told.judge, told.against) if name is not None):
        raise UsageError(f"{claim.name!r} tells of a referee that has no name on this machine: add it first")
    if claim.attack is None or claim.attack.startswith(CONTROL):
        raise UsageError(f"the card gives no perturbation for {claim.name!r}: there is nothing to measure again")
    report = evaluate(
        [referee],
        data=claim.data,
        tasks=["pag"],
        judge=told.judge,
        baseline=told.against,
        pag=claim.attack,
        limit=claim.n,
        seed=claim.seed,
        device=device,
    )
    kind: Literal["value", "difference"] = "value" if told.against is None else "difference"
    return report.row(referee.card.name, told.metric, claim.attack, kind).value
