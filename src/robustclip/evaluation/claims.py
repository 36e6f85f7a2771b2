"""Re-measure the claims of a referee's card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from robustclip.data.embedded import EMBEDDED_DATA
from robustclip.errors import UsageError
from robustclip.evaluation import maps, pag
from robustclip.evaluation.evaluate import evaluate
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card, Claim
from robustclip.referees.folder import load_referee_folder
from robustclip.referees.registry import entry_of, find
from robustclip.runs.files import sha256
from robustclip.signatures import typed

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

    if claim.name.startswith(PAG):
        return _measured_pag(referee, claim, device)

    task: Literal["zero-shot", "retrieval", "gradients", "maps", "faithfulness"]
    task = "retrieval" if "recall" in claim.name else "zero-shot" if claim.name.startswith("top-") else "gradients"
    how: dict[str, Any] = {}
    if (told := maps.told_by(claim.name)) is not None:
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

    told = pag.told_by(claim.name)
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


@dataclass(frozen=True)
class Verification:
    """What `verify` found: for each weight file whether its hash is the card's, and one claim measured again.

    `text_tower` is None where the text tower's weights are in the folder; `claim` and `measured` are None where the
    card claims nothing or it was not asked for.
    """

    name: str
    files: dict[str, bool]
    text_tower: bool | None
    claim: Claim | None = None
    measured: float | None = None

    @property
    def holds(self) -> bool:
        """Whether all hashes agree, and the measured value lies in the claim's interval."""
        hashes = all(self.files.values()) and self.text_tower is not False
        if self.claim is None or self.measured is None:
            return hashes
        return hashes and self.claim.low <= self.measured <= self.claim.high


@typed
def verify(
    name: Annotated[str, "name or folder"],
    *,
    measure: Annotated[bool, "measure one claim again, the cheapest"] = True,
    claim: Annotated[str | None, "the name of the claim to measure"] = None,
    device: str = "auto",
) -> Verification:
    """Compare the hashes of a referee's files with its card, and measure one of its claims again.

    Without `claim` the cheapest on embedded data: a clean one before an attacked one, fewer samples before more, a PAG
    score last; one on other data is measured when it is named. Raises UsageError for an unknown referee or claim.
    """
    entry = entry_of(name)
    card = entry.card
    chosen = cheapest(card, claim) if measure or claim else None
    files = {file: _has_hash(entry.folder / file, digest) for file, digest in card.weights.items()}
    if not all(files.values()):  # numbers of other weights would say nothing about the claim
        return Verification(card.name, files, None)
    named = card.text_tower
    referee = load_referee_folder(entry.folder, checked=False) if named or chosen else None
    text_tower = referee.text_tower.source() == named if referee and named else None
    if referee is None or chosen is None or text_tower is False:
        return Verification(card.name, files, text_tower)
    return Verification(card.name, files, text_tower, chosen, measured(referee, chosen, device))


def _has_hash(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest
