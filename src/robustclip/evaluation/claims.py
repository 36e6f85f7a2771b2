"""Re-measure the claims of a referee's card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, cast

from robustclip.data.embedded import EMBEDDED_DATA
from robustclip.errors import UsageError
from robustclip.evaluation.evaluate import evaluate
from robustclip.evaluation.named import WORST, claims_of
from robustclip.evaluation.report import CLEAN, CONTROL
from robustclip.evaluation.sanity import DATA, Sanity, check
from robustclip.referees.base import TwoTower
from robustclip.referees.card import CARD_FILE, Card, Claim
from robustclip.referees.folder import load_referee_folder
from robustclip.referees.registry import entry_of, find, load_referee
from robustclip.runs.devices import pick_device
from robustclip.runs.files import sha256
from robustclip.signatures import typed

_STRONG = re.compile("@[a-z]")  # a named attack, which takes minutes where PGD takes seconds
HOW: Final = {
    "zero-shot": {"labels"},
    "retrieval": {"images"},
    "gradients": {"images"},
    "maps": {"method", "layer", "images"},
    "faithfulness": {"method", "layer", "images"},
    "pag": {"judge", "baseline"},
    "distance": set[str](),
}
"""Tasks that can be re-measured, with the arguments that a claim may set, besides `size`: an untrusted card must not
choose what is read or downloaded."""


def cheapest(card: Card, name: str | None = None) -> Claim | None:
    """The claim of that name, or without a name of those on embedded data, that is cheapest to measure; None if there
    is none. Raises UsageError for an unknown name."""
    claims = [
        claim for claim in card.claims if name == claim.name or (name is None and claim.data.startswith(EMBEDDED_DATA))
    ]
    if name is not None and not claims:
        names = sorted({claim.name for claim in card.claims})
        message = f"{card.name} has no claim {name!r}; its claims: {', '.join(names) or 'none'}"
        raise UsageError(message, "unknown_claim", given=name, claims=names)
    return min(claims, key=_cost, default=None)


def _cost(claim: Claim) -> tuple[bool, int, int]:
    """Sort key of claims by cost; a PAG score comes before its controls."""
    attacked = claim.attack is not None and not claim.attack.startswith(CONTROL)
    strong = attacked and _STRONG.search(claim.attack or "") is not None
    minutes = claim.task in ("pag", "maps", "faithfulness")  # other tasks take seconds
    return minutes, (attacked != (claim.task == "pag")) + strong, claim.n


def measured(referee: TwoTower, claim: Claim, device: str) -> float:
    """Re-measure the value of `claim`. Raises UsageError if the claim lacks the settings to do so, or has others."""
    task, how = claim.task, dict(claim.how)
    if task not in HOW or not set(how) <= HOW[task] | {"size"}:
        raise UsageError(
            f"{claim.name!r} cannot be measured again: it is of the task {task} with {how}; supported are "
            f"{', '.join(HOW)}",
            "not_measurable",
            task=task,
        )
    if any(find(str(how[name])) is None for name in ("judge", "baseline") if name in how):
        raise UsageError(
            f"{claim.name!r} needs a referee that is not registered on this machine: add it first", "unknown_referee"
        )
    attack: dict[str, Any] = {"attack": [] if claim.attack is None else [claim.attack]}
    if task == "pag":
        if claim.attack is None or claim.attack.startswith(CONTROL):
            message = f"the card gives no perturbation for {claim.name!r}: it cannot be measured again"
            raise UsageError(message, "not_measurable", task=task)
        attack = {"pag": claim.attack}
    elif claim.attack is not None and claim.attack.startswith(WORST):
        raise UsageError(
            f"{claim.name!r} ({claim.attack}) is the worst case of several attacks that the claim does not name: "
            "measure the claim of one attack",
            "several_attacks",
            attack=claim.attack,
        )
    report = evaluate(
        [referee],
        data=claim.data,
        tasks=cast("Any", [task]),
        limit=cast("Any", how.pop("images", claim.n)),
        seed=claim.seed,
        device=device,
        **attack,
        **cast("Any", how),
    )
    again = claims_of(report, referee.card.name)
    matching = [one.value for one in again if (one.name, one.attack) == (claim.name, claim.attack)]
    if not matching:
        names = ", ".join(dict.fromkeys(f"{one.name} ({one.attack or CLEAN})" for one in again))
        raise UsageError(f"{claim.name!r} ({claim.attack or CLEAN}) is not among its task's metrics: {names}")
    return matching[0]


@dataclass(frozen=True)
class Verification:
    """Result of `verify`: for each weight file whether its hash is the card's, and one re-measured claim.

    `text_tower` is None where the text tower's weights are in the folder; `claim` and `measured` are None where the
    card claims nothing or it was not asked for, and so is `sanity`.
    """

    name: str
    files: dict[str, bool]
    text_tower: bool | None
    claim: Claim | None = None
    measured: float | None = None
    sanity: Sanity | None = None

    @property
    def holds(self) -> bool:
        """Whether all hashes agree, the measured value lies in the claim's interval, and no fault was found."""
        hashes = all(self.files.values()) and self.text_tower is not False
        if self.sanity is not None and self.sanity.cause is not None:
            return False
        if self.claim is None or self.measured is None:
            return hashes
        return hashes and self.claim.low <= self.measured <= self.claim.high


@typed
def verify(
    name: Annotated[str, "name or folder"],
    *,
    measure: Annotated[bool, "re-measure one claim, the cheapest"] = True,
    claim: Annotated[str | None, "name of the claim to re-measure"] = None,
    sanity: Annotated[bool, "classify 200 labelled images, to tell whether it was loaded wrong"] = False,
    data: Annotated[str | Path, "images of the sanity check: emoji/SPLIT, or a folder of class folders"] = DATA,
    device: str = "auto",
) -> Verification:
    """Check the hashes of a referee's files against its card, and re-measure one of its claims.

    Without `claim` it takes the cheapest on embedded data: clean before attacked, fewer samples before more, PAG scores
    last. A claim on other data must be named. With `sanity`, no claim is measured unless it is named: labelled images
    tell a wrong activation or normalisation, a text tower of another model and a permuted head
    (`evaluation.sanity.check`); then `name` may be all that `load_referee` takes by name. Raises UsageError for an
    unknown referee or claim.
    """
    if sanity and find(name) is None and not (Path(name) / CARD_FILE).is_file():
        loaded = load_referee(name, device=device)
        return Verification(loaded.card.name, {}, None, sanity=check(loaded, data=data))
    entry = entry_of(name)
    card = entry.card
    chosen = cheapest(card, claim) if claim or (measure and not sanity) else None
    files = {file: _has_hash(entry.folder / file, digest) for file, digest in card.weights.items()}
    if not all(files.values()):  # measuring other weights would not test the claim
        return Verification(card.name, files, None)
    named = card.text_tower
    referee = load_referee_folder(entry.folder, checked=False) if named or chosen or sanity else None
    text_tower = referee.text_tower.source() == named if referee and named else None
    found = check(referee.to(pick_device(device)), data=data) if referee and sanity else None
    if referee is None or chosen is None or text_tower is False:
        return Verification(card.name, files, text_tower, sanity=found)
    return Verification(card.name, files, text_tower, chosen, measured(referee, chosen, device), found)


def _has_hash(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest
