"""Ledger of attacked batches on disk, so that an interrupted evaluation resumes.

    attacked.jsonl   a first line with the setting, then one object for each image of each batch:
                     referee, weights (a hash of it), task, attack, round, id, rank, top

A round is a restart of PGD, or the only one of other attacks. Lines are only added. A last line that was cut short is
forgotten, and a batch of which a line is missing is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from robustclip.errors import UsageError
from robustclip.evaluation.zeroshot import Predictions
from robustclip.referees.base import TwoTower
from robustclip.runs.files import is_file, naming, parse_json, plain, read_bytes

MOST: Final = 2**30  # bytes of it
LEDGER_FILE: Final = "attacked.jsonl"

Place = tuple[str, str, str, str, int]
"""Referee, weights, task, attack, round."""


class Ledger:
    """The outcomes under attack of the evaluation in `folder`."""

    def __init__(self, folder: Path, setting: Mapping[str, Any]) -> None:
        """Begin one, or go on with the one that is there.

        `setting` is all that outcomes depend on besides referee and attack. Raises UsageError where another was
        written with a different one, saying in what they differ, and for a file that is no ledger.
        """
        self.path = folder / LEDGER_FILE
        self._found: dict[Place, dict[str, tuple[int, list[int]]]] = {}
        told = plain(setting)
        header = {"setting": told, "sha256": _hash(told)}
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
        """What was found of these images, or None unless all of them were done."""
        known = self._found.get(place, {})
        if not all(name in known for name in ids):
            return None
        ranks, tops = zip(*(known[name] for name in ids), strict=True)
        return Predictions(torch.tensor(tops), torch.tensor(ranks))

    def keep(self, place: Place, ids: Sequence[str], answered: Predictions) -> None:
        """Write down what was found of these images; on disk when it returns."""
        names = ("referee", "weights", "task", "attack", "round")
        rows = zip(ids, answered.ranks.tolist(), answered.top.tolist(), strict=True)
        self._append(
            [dict(zip(names, place, strict=True)) | {"id": name, "rank": rank, "top": top} for name, rank, top in rows]
        )

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with naming(self.path), self.path.open("ab") as file:
            file.write(text.encode(errors="backslashreplace"))  # names of files that are not UTF-8, as JSON's \udcXX
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[dict[str, Any]]:
        """All lines; what a stopped process left of another is cut off, so that the next has a line of its own."""
        content = read_bytes(self.path, MOST)
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            lines = [parse_json(line, self.path) for line in whole.split(b"\n")[:-1]]
        except UsageError as error:
            raise UsageError(f"{error}: give another folder, or remove it") from error
        if not all(isinstance(line, dict) for line in lines):
            raise UsageError(f"{self.path} holds lines that are no outcomes: give another folder, or remove it")
        return lines

    def _check(self, written: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if written.get("sha256") == header["sha256"]:
            return
        before, now = written.get("setting"), header["setting"]
        before = before if isinstance(before, dict) else {}
        told = [
            f"{name} {_brief(before.get(name))} then, {_brief(value)} now"
            for name, value in now.items()
            if before.get(name) != value
        ]
        raise UsageError(
            f"{self.path} was begun with another setting ({'; '.join(told) or 'of another form'}): "
            "give the same, or another folder"
        )

    def _remember(self, line: Mapping[str, Any]) -> None:
        try:
            place = (line["referee"], line["weights"], line["task"], line["attack"], line["round"])
            self._found.setdefault(place, {})[line["id"]] = (int(line["rank"]), [int(index) for index in line["top"]])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self.path} holds a line that is no outcome ({error!r}): give another folder, or remove it"
            ) from error


@dataclass(frozen=True)
class Page:
    """What a ledger holds of one referee under one attack."""

    ledger: Ledger
    referee: str
    weights: str
    task: str
    attack: str

    def recall(self, turn: int, ids: Sequence[str]) -> Predictions | None:
        """What these images were found to be in that round, or None unless all of them were done."""
        return self.ledger.recall(self._place(turn), ids)

    def keep(self, turn: int, ids: Sequence[str], answered: Predictions) -> None:
        """Write down what was found; on disk when it returns."""
        self.ledger.keep(self._place(turn), ids, answered)

    def _place(self, turn: int) -> Place:
        return self.referee, self.weights, self.task, self.attack, turn


def exact(referee: TwoTower) -> str:
    """A sha256 of all that its answers depend on; unlike a fingerprint, another one for a half-precision copy."""
    total = hashlib.sha256(f"{referee.logit_scale!r} {referee.preprocess.config()}".encode())
    for name, value in sorted(referee.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _hash(setting: object) -> str:
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()


def _brief(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."
