"""Metrics of a run (JSON lines, TensorBoard, experiment trackers), and validation of its run.json.

    metrics.jsonl   one object a line: step, seconds since the start, numbers
    tensorboard/    the same as curves, and pictures of gradients; a file for each start of the run

Experiment trackers (Weights & Biases, trackio, MLflow, ...) get the same through accelerate, if their names are given:

    ROBUSTCLIP_TRACKERS=wandb,trackio robustclip robustify clipag-vit-b32 ...

A tracker is configured by its own variables (WANDB_PROJECT, MLFLOW_TRACKING_URI).

run.json may come from another version or an untrusted source. Lines of metrics are written unbuffered; on a full disk,
partial lines are removed.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from robustclip.errors import RunError, UsageError
from robustclip.runs.files import parse_json, plain, read_json, read_text, write_text
from robustclip.runs.plain import first_of

if TYPE_CHECKING:
    import numpy as np
    from tensorboard.compat.proto.event_pb2 import Event

if TYPE_CHECKING:
    import numpy as np

Status = Literal["running", "interrupted", "killed", "finished", "failed"]
"""A run stopped by a signal is interrupted; one whose process ended without a record is killed."""

RECORD: Final = "run.json"
ROBUSTIFY: Final = "robustify"
"""The command whose runs resume from checkpoints; others resume from their finished files."""


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


class _Start(BaseModel):
    """Fields that each start of a run adds to its record."""

    model_config = ConfigDict(strict=True)

    arguments: dict[str, Any]
    started: Annotated[str, AfterValidator(_moment)]


class _Record(_Start):
    """The fields of run.json that are read back."""

    recipe: str
    status: Status
    verb: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]*$")] = ROBUSTIFY
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
        raise UsageError(f"{folder} is not a run's folder: it has no {RECORD}", "not_a_run", folder=folder)
    try:
        record: dict[str, Any] = read_json(path)
    except UsageError as error:
        raise UsageError(
            f"{path} is not readable ({error}): the run must be made again", "not_a_record", path=path, faults=[error]
        ) from error
    if not (isinstance(record, dict) and {"recipe", "status", "arguments", "started"} <= record.keys()):
        message = f"{path} is not a run's record: it must name recipe, status, arguments and started"
        raise UsageError(message, "not_a_record", path=path)
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        raise UsageError(f"{path} is not a run's record ({first_of(error)})", "not_a_record", path=path) from error
    return record


LINES: Final = "metrics.jsonl"
MOST: Final = 2**30  # bytes of it
LARGEST: Final = 1e300  # of its numbers, so that means and spans of them are finite
CURVES: Final = "tensorboard"


class Metrics:
    """The numbers of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._began = time.monotonic()
        self._purged_from: int | None = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a line (non-finite numbers become null), and a point to each curve. Raises OSError."""
        line = {"step": step, "seconds": round(time.monotonic() - self._began, 3), **numbers}
        _append(self.folder / LINES, (json.dumps(plain(line)) + "\n").encode())
        _append(self._curves, _summary(step, numbers))

    def log_image(self, step: int, name: str, image: np.ndarray[Any, Any]) -> None:
        """Add a picture (H,W,3), uint8, to TensorBoard's. Raises OSError."""
        _append(self._curves, _summary(step, {name: image}))

    def lines(self) -> list[dict[str, Any]]:
        """All lines but a truncated last one. Raises UsageError for any other invalid line."""
        path = self.folder / LINES
        if not os.path.lexists(path):
            return []
        lines = []
        for number, text in enumerate(read_text(path, MOST).split("\n")[:-1], 1):  # the last has no end yet
            line = parse_json(text, f"{path}, line {number},")
            if (
                not isinstance(line, dict)
                or type(line.get("step")) is not int
                or not all(map(_is_number, line.values()))
            ):
                raise UsageError(f"{path}, line {number}, is not a step and its numbers: remove it")
            lines.append(line)
        return lines

    def trim(self, step: int, *, write: bool = True) -> None:
        """Drop metrics after `step`, also from the curves (on disk only with `write`); the clock continues from the
        last line."""
        left = [line for line in self.lines() if line["step"] <= step]
        self._began = time.monotonic() - (left[-1].get("seconds") or 0.0 if left else 0.0)
        self._purged_from = step + 1
        if write and (self.folder / LINES).exists():
            write_text(self.folder / LINES, "".join(json.dumps(line) + "\n" for line in left))

    @cached_property
    def _curves(self) -> Path:
        """This start's event file, with TensorBoard's header."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder = self.folder / CURVES
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"events.out.tfevents.{time.time_ns() // 1000}.{platform.node()}.{os.getpid()}"
        events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if self._purged_from is not None:
            restart = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=time.time(), step=self._purged_from, session_log=restart))
        _append(path, _records(events))
        return path


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < LARGEST)


def _summary(step: int, shown: Mapping[str, float | np.ndarray[Any, Any]]) -> bytes:
    """An event of numbers and pictures, by name."""
    from PIL import Image
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    def value(name: str, one: float | np.ndarray[Any, Any]) -> Summary.Value:
        if isinstance(one, float | int):
            return Summary.Value(tag=name, simple_value=one)
        Image.fromarray(one).save(file := io.BytesIO(), format="png")
        height, width, channels = one.shape
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue())
        return Summary.Value(tag=name, image=image)

    values = [value(name, one) for name, one in shown.items()]
    return _records([Event(wall_time=time.time(), step=step, summary=Summary(value=values))])


def _records(events: Iterable[Event]) -> bytes:
    """Serialise events in TensorBoard's format. Its own writer works in a thread, which a full disk ends with a
    traceback."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _append(path: Path, content: bytes) -> None:
    """Append all of `content` to a file, or nothing. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)
            raise


VARIABLE: Final = "ROBUSTCLIP_TRACKERS"
PROJECT: Final = "robustclip"

_log = logging.getLogger("robustclip")


def requested() -> list[str]:
    """Names of the trackers to open. Raises UsageError for an unknown one and for one whose package is missing."""
    names = list(dict.fromkeys(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()))
    if not names:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    known = [name for name in map(str, LOGGER_TYPE_TO_CLASS) if name != str(LoggerType.TENSORBOARD)]
    built_in = [str(one) for one in LoggerType]
    installed = [str(one) for one in get_available_trackers()]
    for name in names:
        if name not in known:
            message = f"{VARIABLE}={name}: there are {', '.join(known)}; TensorBoard's curves are always written"
            raise UsageError(message, "unknown_tracker", tracker=name)
        if name in built_in and name not in installed:
            message = f"{VARIABLE}={name}: the tracker's package is not installed: pip install {name}"
            raise UsageError(message, "not_installed", tracker=name)
    return names


class Trackers:
    """The trackers of a run. A tracker that fails to start raises RunError; one that fails later is dropped with a
    warning, and training continues."""

    def __init__(self, names: list[str], folder: Path, arguments: Mapping[str, Any]) -> None:
        self._opened: list[Any] = []
        if not names:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # trackers ask it for the main process
        for name in names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            try:
                tracker = kind(PROJECT, **({"logging_dir": str(folder)} if kind.requires_logging_directory else {}))
                tracker.start()
                tracker.store_init_configuration({"run": str(folder), **arguments})
            except Exception as error:
                self.finish()
                message = f"the tracker {name} does not start ({error}): leave it out of {VARIABLE}"
                raise RunError(message, "tracker_not_started", tracker=name) from error
            self._opened.append(tracker)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers to each tracker's curves."""
        self._each(lambda one: one.log(dict(numbers), step=step))

    def log_image(self, step: int, name: str, image: np.ndarray[Any, Any]) -> None:
        """Add a picture (H,W,3), uint8, to each tracker that takes pictures."""
        self._each(lambda one: one.log_images({name: image[None]}, step=step) if hasattr(one, "log_images") else None)

    def finish(self) -> None:
        self._each(lambda one: one.finish())

    def _each(self, call: Callable[[Any], None]) -> None:
        for one in [*self._opened]:
            try:
                call(one)
            except Exception as error:  # a service that is gone must not end days of training
                _log.warning(f"the tracker {one.name} failed ({error}) and gets nothing more")
                self._opened.remove(one)
