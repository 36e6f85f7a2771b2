"""Ledger of attacked batches on disk, so that an interrupted evaluation resumes.

    attacked.jsonl   a first line with the setting, then one object for each image of each batch:
                     referee, weights (a hash of it), task, attack, round, id, rank, top

A round is a restart of PGD; other attacks have one round. The file is append-only. A truncated last line is dropped,
and a batch with a missing line is attacked again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from robustclip.errors import UsageError
from robustclip.evaluation.report import REPORT_FILE
from robustclip.evaluation.zeroshot import Predictions
from robustclip.referees.base import TwoTower
from robustclip.runs.files import is_file, naming, parse_json, plain, read_bytes

MOST: Final = 2**30  # bytes of it
LEDGER_FILE: Final = "attacked.jsonl"

Place = tuple[str, str, str, str, int]
"""Referee, weights, task, attack, round."""


def taken(out: Path | None, *, resume: bool) -> Iterator[UsageError]:
    """Faults of an output folder that holds another evaluation."""
    if out is not None and is_file(Path(out) / REPORT_FILE):
        yield UsageError(f"{out} already holds an evaluation: give another folder", "already_done")
    elif out is not None and not resume and is_file(Path(out) / LEDGER_FILE):
        message = f"{out} holds an interrupted evaluation: continue it with resume, or give another folder"
        yield UsageError(message, "interrupted")


class Ledger:
    """The outcomes under attack of the evaluation in `folder`."""

    def __init__(self, folder: Path, setting: Mapping[str, Any]) -> None:
        """Start a ledger, or continue the one in the folder.

        `setting` is all that outcomes depend on besides referee and attack. Raises UsageError if the folder's ledger
        has another setting, naming the differences, and for a file that is not a ledger.
        """
        self.path = folder / LEDGER_FILE
        self._outcomes: dict[Place, dict[str, tuple[int, list[int]]]] = {}
        values = plain(setting)
        header = {"setting": values, "sha256": _hash(values)}
        if is_file(self.path) and (lines := self._whole_lines()):
            self._check(lines[0], header)
            for line in lines[1:]:
                self._remember(line)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            self._append([header])

    def page(self, referee: str, weights: str, task: str, attack: str) -> Page:
        """The part of one referee under one attack."""
        return Page(self, referee, weights, task, attack)

    def recall(self, place: Place, ids: Sequence[str]) -> Predictions | None:
        """The stored predictions of these images; None unless all are stored."""
        stored = self._outcomes.get(place, {})
        if not all(name in stored for name in ids):
            return None
        ranks, tops = zip(*(stored[name] for name in ids), strict=True)
        return Predictions(torch.tensor(tops), torch.tensor(ranks))

    def keep(self, place: Place, ids: Sequence[str], predicted: Predictions) -> None:
        """Append the predictions of these images, with fsync."""
        names = ("referee", "weights", "task", "attack", "round")
        rows = zip(ids, predicted.ranks.tolist(), predicted.top.tolist(), strict=True)
        self._append(
            [dict(zip(names, place, strict=True)) | {"id": name, "rank": rank, "top": top} for name, rank, top in rows]
        )

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with naming(self.path), self.path.open("ab") as file:
            file.write(text.encode(errors="backslashreplace"))  # file names that are not UTF-8, as JSON's \udcXX
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[dict[str, Any]]:
        """All complete lines; a truncated last one is removed from the file."""
        content = read_bytes(self.path, MOST)
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            lines = [parse_json(line, self.path) for line in whole.split(b"\n")[:-1]]
        except UsageError as error:
            raise UsageError(f"{error}: give another folder, or remove it", "not_json") from error
        if not all(isinstance(line, dict) for line in lines):
            raise UsageError(
                f"{self.path} holds lines that are not outcomes: give another folder, or remove it", "not_an_outcome"
            )
        return lines

    def _check(self, written: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if written.get("sha256") == header["sha256"]:
            return
        before, now = written.get("setting"), header["setting"]
        before = before if isinstance(before, dict) else {}
        changes = [
            f"{name} {_brief(before.get(name))} then, {_brief(value)} now"
            for name, value in now.items()
            if before.get(name) != value
        ]
        raise UsageError(
            f"{self.path} was begun with another setting ({'; '.join(changes) or 'of another form'}): "
            "give the same, or another folder",
            "other_setting",
            changes=changes,
        )

    def _remember(self, line: Mapping[str, Any]) -> None:
        try:
            place = (line["referee"], line["weights"], line["task"], line["attack"], line["round"])
            outcome = (int(line["rank"]), [int(index) for index in line["top"]])
            self._outcomes.setdefault(place, {})[line["id"]] = outcome
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self.path} holds a line that is not an outcome ({error!r}): give another folder, or remove it",
                "not_an_outcome",
            ) from error


@dataclass(frozen=True)
class Page:
    """A ledger's outcomes of one referee under one attack."""

    ledger: Ledger
    referee: str
    weights: str
    task: str
    attack: str

    def recall(self, turn: int, ids: Sequence[str]) -> Predictions | None:
        """The stored predictions of these images in that round; None unless all are stored."""
        return self.ledger.recall(self._place(turn), ids)

    def keep(self, turn: int, ids: Sequence[str], predicted: Predictions) -> None:
        """Append predictions, with fsync."""
        self.ledger.keep(self._place(turn), ids, predicted)

    def _place(self, turn: int) -> Place:
        return self.referee, self.weights, self.task, self.attack, turn


def exact(referee: TwoTower) -> str:
    """A SHA-256 of everything that predictions depend on; unlike a fingerprint, it differs for a half-precision
    copy."""
    defence = referee.card.provenance.get("defended", "")  # its constants
    total = hashlib.sha256(f"{referee.logit_scale!r} {referee.preprocess.config()}{defence}".encode())
    for name, value in sorted(referee.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _hash(setting: object) -> str:
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()


def _brief(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."
