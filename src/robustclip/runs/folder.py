"""Run folders: arguments, environment and status of a run.

    run.json        recipe, its verb, arguments, versions, commit, status, process, notes, warnings, and the numbers of
                    a finished run
    metrics.jsonl   its numbers over the steps, and
    tensorboard/    the same as curves: see robustclip.runs.records
    checkpoints/    see robustclip.runs.checkpoint
    .lock           the process that writes here, from the run's start to its end: see robustclip.runs.processes

Where several processes train together, the main one writes.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

from pydantic import AfterValidator

import robustclip
from robustclip.errors import Interrupted, RunError, UsageError
from robustclip.runs import terminal
from robustclip.runs.files import (
    free,
    holds_something,
    is_file,
    is_folder,
    plain,
    reason,
    remove_drafts,
    write_json,
)
from robustclip.runs.processes import is_alive, lock, number_of, this_process, unlock
from robustclip.runs.records import RECORD as RECORD
from robustclip.runs.records import ROBUSTIFY, Metrics, Trackers, read_record
from robustclip.runs.records import Status as Status
from robustclip.runs.records import requested as requested_trackers

if TYPE_CHECKING:
    import numpy as np

HOME: Final = Path("runs")
PACKAGES: Final = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "webdataset", "numpy")

_log = logging.getLogger("robustclip")
_called_as: ContextVar[str | None] = ContextVar("called_as", default=None)


@contextmanager
def _unlocking(folder: Path) -> Iterator[None]:
    """Context manager: release the folder's lock if the block raises."""
    try:
        yield
    except BaseException:
        unlock(folder)
        raise


@contextmanager
def called_as(recipe: str) -> Iterator[None]:
    """Context manager: runs started in the block record this recipe name; of nested blocks the outermost counts."""
    token = _called_as.set(_called_as.get() or recipe)
    try:
        yield
    finally:
        _called_as.reset(token)


def new_folder(folder: Path) -> Path:
    """Return `folder` if it is free or empty, else raise UsageError with the alternatives."""
    if os.environ.get("RANK", "0") != "0":  # rank 0 checks, and may already have created it
        return folder
    if not holds_something(folder):
        return folder
    run = Run.open(folder) if is_file(folder / RECORD) else None
    state = "is not empty" if is_folder(folder) else "is not a folder"
    advice = f"write elsewhere, e.g. --out {free(folder)}"
    if run is not None:
        state = f"holds a run that is {run.status}"
        advice += "" if run.status in ("running", "finished") else f", resume it ({run.resumption})"
        advice += "" if run.status == "running" else f", or remove it ({run.removal})"
    raise UsageError(f"{folder} exists and {state}: {advice}", "exists", folder=folder, status=run and run.status)


RunFolder = Annotated[Path, AfterValidator(new_folder)]
"""The type of an `out` flag: a folder that a new run may take."""

ResumeFrom = Path
"""The type of a `resume` flag, which `robustclip.recipes` resolves to a folder before a recipe is called."""


class Run:
    """A run's folder. As a context manager it sets the final status: interrupted or failed after an error, else
    finished."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record
        self._metrics = Metrics(folder)
        self._trackers = Trackers([], folder, {})
        self._mute = False

    @cached_property
    def _writes(self) -> bool:
        from robustclip.runs.distributed import is_main  # here, so that an `out` flag alone loads no torch

        return is_main()

    @classmethod
    def create(
        cls, folder: str | Path | None, *, recipe: str, arguments: Mapping[str, object], verb: str = ROBUSTIFY
    ) -> Run:
        """Start a run in a new folder; default runs/<recipe>-<number>. `verb` is the recipe's command.

        Raises UsageError if the folder exists and is not empty or for unknown trackers, RunError if the folder cannot
        be written or a tracker does not start.
        """
        from robustclip.runs.distributed import decided

        trackers = requested_trackers()

        def begin() -> tuple[Path, dict[str, Any]]:
            try:
                place = _claim(HOME / recipe) if folder is None else new_folder(Path(folder))
                lock(place)
                with _unlocking(place):
                    new_folder(place)  # again, now that it is locked
                    run = cls(place, {"recipe": recipe, "verb": verb, "status": "running", **_start_record(arguments)})
                    if (name := _called_as.get()) not in (None, recipe):
                        run.record["called"] = name
                    run._save()
            except (OSError, RunError) as error:
                at = HOME if folder is None else folder
                raise RunError(
                    f"no run can be kept in {at} ({reason(error)}): write elsewhere with --out", "not_written", path=at
                ) from error
            return run.folder, run.record

        return cls(*decided(begin))._tracked(trackers)

    @classmethod
    def start(
        cls,
        folder: str | Path | None,
        resume: str | Path | None,
        *,
        recipe: str,
        arguments: Mapping[str, object],
        verb: str = ROBUSTIFY,
    ) -> Run:
        """Create a run, or with `resume` reopen the folder's run; the same in all processes.

        Raises UsageError if that run is of another recipe or still running, and if both folders are given.
        """
        from robustclip.runs.distributed import decided

        if resume is None:
            return cls.create(folder, recipe=recipe, arguments=arguments, verb=verb)
        if folder is not None:
            message = f"--resume {resume} resumes in that folder: leave out --out {folder}"
            raise UsageError(message, "two_folders", resume=resume, out=folder)
        trackers = requested_trackers()

        def reopen() -> tuple[Path, dict[str, Any]]:
            cls.open(resume).check_resumable(recipe)
            try:
                lock(Path(resume), elsewhere=True)
                with _unlocking(Path(resume)):
                    run = cls.open(resume)  # again, now that it is locked
                    if run.status == "finished":
                        run.check_resumable(recipe)
                        terminal.note(f"{run.folder} is finished: only missing or newly requested parts are done")
                    remove_drafts(run.folder)
                    for outcome in ("reason", "ended", "numbers"):
                        run.record.pop(outcome, None)
                    again = _start_record(arguments)
                    run.record |= {"status": "running", "process": again.pop("process")}
                    run.record["resumed"] = [*run.record.get("resumed", []), again]
                    run._save()
            except (OSError, RunError) as error:
                raise RunError(f"{resume} cannot be written to ({reason(error)}): no run can go on there") from error
            return run.folder, run.record

        return cls(*decided(reopen))._tracked(trackers)

    def _tracked(self, names: list[str]) -> Run:
        """Open the trackers in the main process; the run has failed where one does not start."""
        if self._writes and names:
            try:
                self._trackers = Trackers(names, self.folder, self.arguments)
            except RunError as error:
                self.fail(str(error))
                raise
        return self

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open an existing run. Raises UsageError if there is none."""
        return cls(Path(folder), read_record(Path(folder)))

    @property
    def status(self) -> Status:
        if self.record["status"] == "running" and is_alive(self.record.get("process", {})) is False:
            return "killed"
        return cast("Status", self.record["status"])

    @property
    def called(self) -> str:
        """The name the recipe was called by: a preset's, where `recipe` is its base."""
        return str(self.record.get("called", self.record["recipe"]))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the run's last start."""
        return dict([self.record, *self.record.get("resumed", [])][-1]["arguments"])

    @property
    def verb(self) -> str:
        """The recipe's command: robustify, synthesize."""
        return str(self.record.get("verb", ROBUSTIFY))

    @property
    def started(self) -> str:
        """When it was last started, as ISO 8601 in UTC."""
        return str([self.record, *self.record.get("resumed", [])][-1]["started"])

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def resumption(self) -> str:
        """The command that resumes this run."""
        called = quote(self.called.removeprefix(f"{self.verb}/"))
        return f"robustclip {quote(self.verb)} {called} --resume {quote(str(self.folder))}"

    @property
    def removal(self) -> str:
        """The command that removes this run."""
        home, name = quote(str(self.folder.absolute().parent)), quote(self.folder.absolute().name)
        return f"robustclip runs clean {name} --whole" + ("" if self.folder.parent == HOME else f" --folder {home}")

    def check_resumable(self, recipe: str) -> None:
        """Raise UsageError if the run is not of `recipe` (by either of its names), is still running, or is a finished
        training run without checkpoints."""
        if recipe not in (self.record["recipe"], self.called):
            raise UsageError(
                f"{self.folder} is a run of {self.called}, not of {recipe}: {self.resumption}",
                "other_recipe",
                recipe=self.called,
                asked=recipe,
            )
        if self.status == "finished" and self.verb == ROBUSTIFY and not any(self.checkpoints.glob("*.pt")):
            message = f"{self.folder} is finished and has no checkpoints any more: start a new run"
            raise UsageError(message, "no_checkpoints", folder=self.folder)
        if self.status != "running":
            return
        process = self.record.get("process", {})
        if is_alive(process):
            raise UsageError(
                f"{self.folder} is still running, as process {process['pid']}: stop it first, or wait",
                "still_running",
                process=process["pid"],
            )
        where = f"running on {process['host']}" if "host" in process else "running"
        _log.warning(f"{self.folder} was last seen {where}: make sure that it does not run there any more")

    def log(self, step: int, **numbers: float) -> None:
        """Add a line to the run's metrics and a point to each curve. If the disk is full, the run warns once and
        continues."""
        if self._writes:
            with self._tolerant():
                self._metrics.log(step, numbers)
            self._trackers.log(step, numbers)

    def log_image(self, step: int, name: str, image: np.ndarray[Any, Any]) -> None:
        """Add a picture (H,W,3), uint8, to TensorBoard's and to the trackers."""
        if self._writes:
            with self._tolerant():
                self._metrics.log_image(step, name, image)
            self._trackers.log_image(step, name, image)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl but a truncated last one. Raises UsageError for an invalid one."""
        return self._metrics.lines()

    def trim(self, step: int) -> None:
        """Drop metrics recorded after `step` updates, before resuming there."""
        self._metrics.trim(step, write=self._writes)

    def note(self, **facts: object) -> None:
        """Add facts to run.json, e.g. about the data."""
        self.record["notes"] = self.record.get("notes", {}) | plain(facts)
        with self._tolerant():
            self._save()

    def warn(self, message: str) -> None:
        """Log a warning, and record it in run.json."""
        _log.warning(message)
        self.record["warnings"] = [*self.record.get("warnings", []), message]
        with self._tolerant():
            self._save()

    def finish(self, numbers: Mapping[str, object] | None = None) -> None:
        """Record the status finished, with the run's numbers."""
        self._end("finished", numbers=plain(numbers or {}))

    def fail(self, reason: str, status: Status = "failed") -> None:
        """Record that the run ended early, and why."""
        with self._tolerant():  # a full disk must not hide the error that ended the run
            self._end(status, reason=reason)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            reported = (
                type(error).__name__ if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
            )
            self.fail(reported.removesuffix(": "), "interrupted" if stopped else "failed")
            if isinstance(error, KeyboardInterrupt) and self._writes:
                raise Interrupted(number_of(error), f"stopped: {self.resumption} goes on") from error
        elif self.record["status"] == "running":
            self.finish()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RunError) as error:
            if not self._mute:
                _log.warning(f"{self.folder} cannot be written to ({reason(error)}): not all is recorded")
            self._mute = True

    def _end(self, status: Status, **outcome: object) -> None:
        self.record |= {"status": status, "ended": _now(), **outcome}
        try:
            self._save()
        finally:
            if self._writes:
                unlock(self.folder)
                self._trackers.finish()

    def _save(self) -> None:
        if self._writes:
            write_json(self.folder / RECORD, self.record)


def versions() -> dict[str, str]:
    """Versions of the libraries that determine results."""
    installed = {package: metadata.version(package) for package in PACKAGES}
    return {"robustclip": robustclip.__version__, "python": platform.python_version(), **installed}


def commit() -> str | None:
    """The commit of the checkout that this code runs from, "-dirty" where files differ from it; None outside one."""
    root = Path(robustclip.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit yet
        return None


def _start_record(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Fields that each start of a run records."""
    environment = {"versions": versions(), "commit": commit()}
    return {"arguments": plain(arguments)} | environment | {"started": _now(), "process": this_process()}


def _claim(folder: Path) -> Path:
    """Create the first free <folder>-<number>, atomically."""
    while True:
        path = free(folder)
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
