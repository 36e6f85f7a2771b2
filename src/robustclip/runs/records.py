"""Validated reading of run.json."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from robustclip.errors import UsageError
from robustclip.runs.files import read_json
from robustclip.runs.plain import first_of

Status = Literal["running", "interrupted", "killed", "finished", "failed"]
"""A run that was stopped by a signal is interrupted; one whose process is gone without a word, killed."""

RECORD: Final = "run.json"
ROBUSTIFY: Final = "robustify"
"""The command whose runs go on from checkpoints; others go on from the files that they have made."""


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


class _Start(BaseModel):
    """What a start of a run leaves in its record."""

    model_config = ConfigDict(strict=True)

    arguments: dict[str, Any]
    started: Annotated[str, AfterValidator(_moment)]


class _Record(_Start):
    """The parts of run.json that are read again, and their types."""

    recipe: str
    status: Status
    room: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]*$")] = ROBUSTIFY
    called: str = ""
    process: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    warnings: list[str] = []
    resumed: list[_Start] = []
    reason: str = ""
    ended: str = ""


def read_record(folder: Path) -> dict[str, Any]:
    """Read run.json of `folder`. Raises UsageError if it is missing or has wrong types."""
    path = folder / RECORD
    if not os.path.lexists(path):
        raise UsageError(f"{folder} is not a run's folder: it has no {RECORD}")
    try:
        record: dict[str, Any] = read_json(path)
    except UsageError as error:
        raise UsageError(f"{path} is not readable ({error}): the run must be made again") from error
    if not (isinstance(record, dict) and {"recipe", "status", "arguments", "started"} <= record.keys()):
        raise UsageError(f"{path} is not a run's record: it must name recipe, status, arguments and started")
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        raise UsageError(f"{path} is not a run's record ({first_of(error)})") from error
    return record
