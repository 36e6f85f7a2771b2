"""How a training run ends: a referee's folder that says where it came from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.folder import save_referee
from robustclip.runs import Run
from robustclip.threat import ThreatModel

REFEREE = "referee"
"""The folder inside a run's folder that holds what the run trained."""

OF_THIS_MACHINE = ("out", "resume")
"""Arguments that say where a run was written: no part of where weights come from."""


def save_trained(
    referee: TwoTower, run: Run, *, name: str, threat: ThreatModel | None, started_from: Card | None, samples: int
) -> dict[str, Any]:
    """Write the run's referee with its card, end the run, and return its numbers. Claims are measured later, on the
    exported file."""
    provenance = {key: run.record[key] for key in ("recipe", "arguments", "versions", "commit", "started")}
    provenance["arguments"] = _portable(provenance["arguments"])
    if "resumed" in run.record:
        again = run.record["resumed"]
        provenance["resumed"] = [time | {"arguments": _portable(time["arguments"])} for time in again]
    provenance |= run.record.get("notes", {}) | {"samples": samples}
    provenance["started_from"] = started_from and {"name": started_from.name, "weights": started_from.weights}
    card = replace(referee.card, name=name, threat=threat, provenance=provenance, claims=[], weights={})
    save_referee(referee, run.folder / REFEREE, card=card)
    numbers = {"samples": samples} | {key: value for line in run.metrics() for key, value in line.items()}
    run.finish(numbers)
    return numbers | {"run": str(run.folder)}


def _portable(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in OF_THIS_MACHINE}
