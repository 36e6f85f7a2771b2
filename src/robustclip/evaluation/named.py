"""The referees of an evaluation, named uniquely, and their signed cards; settings that its tasks share, and names of
their controls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.attacks.spec import AttackSpec
from robustclip.data.examples import Examples
from robustclip.errors import UsageError, faults_of
from robustclip.evaluation.ledger import Ledger
from robustclip.evaluation.pag import minus
from robustclip.evaluation.report import CLEAN, CONTROL, Report, Row
from robustclip.evaluation.zeroshot import Candidates
from robustclip.referees.base import TwoTower
from robustclip.referees.card import CARD_FILE, Card, Claim
from robustclip.referees.registry import find, load_referee
from robustclip.runs.files import check_new_file, check_writable, clashes

RefereeLike = str | Path | TwoTower


def output_faults(out: Path | None, csv: Path | None, *, overwrite: bool) -> Iterator[str | UsageError]:
    """Faults of a call's output folder and CSV file: not writable, existing, or in one another."""
    checks: list[Callable[[], object]] = []
    checks += [partial(check_writable, out, folder=True)] if out is not None else []
    checks += [partial(check_new_file, csv, overwrite=overwrite)] if csv is not None else []
    yield from faults_of(checks)
    yield from clashes({"out": out, "csv": csv})


@dataclass(frozen=True)
class NamedReferee:
    """A referee with its name in the report, and its folder if it was loaded from one."""

    name: str
    referee: TwoTower
    folder: Path | None


def load_named(referees: Sequence[RefereeLike], *, device: torch.device) -> list[NamedReferee]:
    """Load each referee onto `device`, named by its card; referees with equal card names are named as given.

    Raises UsageError for no referee, and for duplicates.
    """
    if not referees:
        raise UsageError("evaluate() needs at least one referee: see robustclip referees list", "no_referee")
    loaded = [
        NamedReferee(referee.card.name, referee, _folder(one)) for one in referees for referee in [_load(one, device)]
    ]
    cards = [each.name for each in loaded]
    loaded = [
        each
        if cards.count(each.name) == 1 or isinstance(one, TwoTower)
        else NamedReferee(str(one), each.referee, each.folder)
        for one, each in zip(referees, loaded, strict=True)
    ]
    names = [each.name for each in loaded]
    if twice := [name for name in names if names.count(name) > 1]:
        message = f"two referees are called {twice[0]!r}: give each once, and give folders where names are shared"
        raise UsageError(message, "name_twice", name=twice[0])
    return loaded


def sign_cards(measured: Sequence[NamedReferee], report: Report) -> None:
    """Write the values of `report` into the referees' cards as claims.

    Recall from captions to images is signed for whole sets only, since its n counts captions and cannot identify a
    subset of images.
    """
    for one in measured:
        folder = folder_to_sign(one)
        card = Card.load(folder)
        whole = report.setting["limit"] is None
        card.sign([claim for claim in claims_of(report, one.name) if whole or "text to image" not in claim.name])
        card.save(folder)


UNSIGNED: Final = ("corruptions", "edits")
"""Tasks that `claims.verify` does not measure again. Their clean rows have the names of other tasks' claims."""


def claims_of(report: Report, referee: str) -> list[Claim]:
    """The values of `report` for a referee as claims, without controls and `UNSIGNED` tasks; a PAG score keeps its
    controls (clean rate, rate under noise of its norm, and paired difference to the baseline)."""
    return [
        Claim(
            name=minus(row.metric, row.against) if row.kind == "difference" else row.metric,
            value=row.value,
            low=row.low,
            high=row.high,
            n=row.n,
            seed=row.seed,
            data=report.setting["data"],
            attack=None if row.attack == CLEAN else row.attack,
            date=datetime.now(UTC).date().isoformat(),
            task=row.task,
            how=_how(row, report.setting) | ({"size": size} if (size := report.setting.get("resized_to")) else {}),
        )
        for row in report.rows
        if row.referee == referee
        and row.task not in UNSIGNED
        and (
            row.task == "pag"
            or (row.kind == "value" and not row.reference and (row.attack == CLEAN or row.attack in report.threats))
        )
    ]


def _how(row: Row, setting: dict[str, Any]) -> dict[str, str | int | None]:
    """The arguments of `evaluate` that determine a row, besides data, attack, number of samples and seed; and the
    number of images, where the samples are captions, or images of which the metric is defined for some only."""
    images = {} if row.n == setting["images"] else {"images": setting["images"]}
    match row.task:
        case "zero-shot":
            return {"labels": setting["labels"]}
        case "maps" | "faithfulness":
            return {"method": setting["method"], "layer": setting["layer"]} | images
        case "pag":
            judge = {"judge": setting["judge"]["name"]}
            return judge | ({"baseline": row.against} if row.kind == "difference" else {})
    return images


def folder_to_sign(one: NamedReferee) -> Path:
    """The referee's folder. Raises UsageError if it has none, or if it is read-only."""
    if one.folder is None:
        message = f"cannot sign {one.name}: it has no folder with a card; export it, and give the folder's name"
        raise UsageError(message, "no_folder_to_sign", referee=one.name)
    if not os.access(one.folder, os.W_OK) or not os.access(one.folder / CARD_FILE, os.W_OK):
        raise UsageError(f"cannot sign {one.name}: {one.folder} is read-only; copy it, and give the copy")
    return one.folder


def _load(one: RefereeLike, device: torch.device) -> TwoTower:
    return one.to(device) if isinstance(one, TwoTower) else load_referee(one, device=str(device))


def _folder(one: RefereeLike) -> Path | None:
    if isinstance(one, TwoTower):
        return None
    entry = find(str(one))
    folder = Path(one) if entry is None else entry.folder
    return folder if (folder / CARD_FILE).is_file() else None


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
