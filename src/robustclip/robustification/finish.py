"""End of a training run: write the referee folder with provenance; select the best checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import RunError, UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.folder import load_referee_folder, save_referee
from robustclip.runs import checkpoint, distributed
from robustclip.runs.folder import Run

Which = Literal["best", "last"]

REFEREE = "referee"
"""The folder inside a run's folder that holds what the run trained."""

OF_THIS_MACHINE = ("out", "resume")
"""Arguments that say where a run was written: no part of where weights come from."""


def save_trained(
    referee: TwoTower, run: Run, *, name: str, threat: ThreatModel | None, started_from: Card | None, samples: int
) -> dict[str, Any]:
    """Write the trained referee with its card, finish the run, and return its numbers. Claims are measured later, on
    the exported files.
    """
    provenance = {key: run.record[key] for key in ("recipe", "arguments", "versions", "commit", "started")}
    provenance["arguments"] = _portable(provenance["arguments"])
    if "resumed" in run.record:
        again = run.record["resumed"]
        provenance["resumed"] = [time | {"arguments": _portable(time["arguments"])} for time in again]
    provenance |= run.record.get("notes", {}) | {"samples": samples}
    provenance["started_from"] = started_from and {"name": started_from.name, "weights": started_from.weights}
    card = replace(referee.card, name=name, threat=threat, provenance=provenance, claims=[], weights={})
    if distributed.is_main():
        save_referee(referee, run.folder / REFEREE, card=card)
    numbers = {"samples": samples} | {key: value for line in run.metrics() for key, value in line.items()}
    run.finish(numbers)
    return numbers | {"run": str(run.folder)}


def referee_at(folder: Path, which: Which) -> TwoTower:
    """The referee of the finished run in `folder`: "last" is the one that it wrote at its end, "best" has the averaged
    weights of the checkpoint with the highest accuracy on the probe, and makes no claims, which nobody measured.

    Raises UsageError where the run has not written its referee, or kept no best checkpoint; RunError where a file is
    not readable.
    """
    run = Run.open(folder)
    if not (folder / REFEREE / CARD_FILE).is_file():
        raise UsageError(
            f"{folder} holds no trained referee (the run is {run.status}): it is written at {folder / REFEREE} when a "
            f"run ends; let the run finish, or go on with it ({run.resumption})"
        )
    referee = load_referee_folder(folder / REFEREE)
    if which == "last":
        return referee
    path = checkpoint.best(run.checkpoints)
    if path is None:
        raise UsageError(
            f"{folder} kept no best checkpoint: none was measured (--evaluate-every), or runs clean removed it; "
            "use --checkpoint last"
        )
    saved = checkpoint.load(path)
    try:
        referee.image_tower.load_state_dict(saved["ema"])
    except (KeyError, RuntimeError) as error:
        raise RunError(f"{path} does not hold the tower that {folder / REFEREE} describes") from error
    chosen = {"checkpoint": {"which": "best", "step": saved["step"], "accuracy": saved.get("best")}}
    referee.card = replace(referee.card, claims=[], weights={}, provenance=referee.card.provenance | chosen)
    return referee


def _portable(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in OF_THIS_MACHINE}
