"""A run's folder: what was asked, with what, and how it went. A line is on disk as soon as it is written.

    run.json        recipe, arguments, versions, commit, status, notes, warnings, and the numbers of a finished run
    metrics.jsonl   one object a line: step, seconds since the start, numbers
    tensorboard/    the same numbers as curves
    checkpoints/    see robustclip.robustification.checkpoint

Where several processes train together, the main one writes.
"""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator
from pydantic_core import to_jsonable_python

import robustclip
from robustclip.errors import UsageError
from robustclip.files import write_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Status = Literal["running", "finished", "failed"]

HOME: Final = Path("runs")
RECORD: Final = "run.json"
METRICS: Final = "metrics.jsonl"
PACKAGES: Final = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "webdataset", "numpy")

_log = logging.getLogger("robustclip")


def new_folder(folder: Path) -> Path:
    """`folder` itself, where it is free or empty. Raises UsageError with the ways out where a run would be lost."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    holds = f"holds a run that is {Run.open(folder).status}" if (folder / RECORD).is_file() else "is not empty"
    raise UsageError(
        f"{folder} exists and {holds}: write elsewhere, e.g. --out {_free(folder)}, or remove it (rm -r {folder})"
    )


RunFolder = Annotated[Path, AfterValidator(new_folder)]
"""The type of an `out` flag: a folder that a new run may take."""


class Run:
    """A run's folder. As a context it ends the run: failed where an error leaves the block, else finished."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record
        self._began = time.monotonic()

    @cached_property
    def _writes(self) -> bool:
        from robustclip.distributed import is_main  # here, so that an `out` flag alone loads no torch

        return is_main()

    @classmethod
    def create(cls, folder: str | Path | None, *, recipe: str, arguments: Mapping[str, object]) -> Run:
        """Start a run in a new folder; where `folder` is None, in runs/<recipe>-<number>.

        Raises UsageError where the folder exists already and is not empty.
        """
        folder = _free(HOME / recipe) if folder is None else new_folder(Path(folder))
        record = {
            "recipe": recipe,
            "status": "running",
            "arguments": plain(arguments),
            "versions": versions(),
            "commit": commit(),
            "started": _now(),
        }
        run = cls(folder, record)
        run._save()
        return run

    @classmethod
    def start(
        cls, folder: str | Path | None, resume: str | Path | None, *, recipe: str, arguments: Mapping[str, object]
    ) -> Run:
        """A new run, or with `resume` the run of that folder, to go on where its last checkpoint is.

        Raises UsageError where that run was made by another recipe, and where both folders are given.
        """
        if resume is None:
            return cls.create(folder, recipe=recipe, arguments=arguments)
        if folder is not None:
            raise UsageError(f"--resume {resume} goes on in that folder: leave out --out {folder}")
        run = cls.open(resume)
        if run.record["recipe"] != recipe:
            raise UsageError(
                f"{resume} is a run of {run.record['recipe']}, not of {recipe}: "
                f"robustclip robustify {run.record['recipe']} --resume {resume}"
            )
        for outcome in ("reason", "ended", "numbers"):
            run.record.pop(outcome, None)
        again = {"started": _now(), "arguments": plain(arguments), "versions": versions(), "commit": commit()}
        run.record |= {"status": "running", "resumed": [*run.record.get("resumed", []), again]}
        run._save()
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run that exists, as it is. Raises UsageError for a folder that holds none."""
        path = Path(folder) / RECORD
        try:
            return cls(Path(folder), json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UsageError(f"{folder} is not a run's folder: it has no {RECORD}") from error
        except json.JSONDecodeError as error:
            raise UsageError(f"{path} is not readable ({error}): the run must be made again") from error

    @property
    def status(self) -> Status:
        return cast("Status", self.record["status"])

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.folder / "checkpoints"

    def log(self, step: int, **numbers: float) -> None:
        """Add a line to metrics.jsonl, where a number that isn't finite is null, and a point to each curve."""
        if not self._writes:
            return
        line = {"step": step, "seconds": round(time.monotonic() - self._began, 3), **numbers}
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line)) + "\n")
        for name, value in numbers.items():
            self._curves.add_scalar(name, value, step)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.folder / METRICS
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def note(self, **facts: object) -> None:
        """Add facts to run.json, e.g. what the data were."""
        self.record["notes"] = self.record.get("notes", {}) | plain(facts)
        self._save()

    def warn(self, message: str) -> None:
        """Say it (on stderr, unless logging is set up otherwise), and keep it in run.json."""
        _log.warning(message)
        self.record["warnings"] = [*self.record.get("warnings", []), message]
        self._save()

    def finish(self, numbers: Mapping[str, object] | None = None) -> None:
        """The run is done, and these are its numbers."""
        self._end("finished", numbers=plain(numbers or {}))

    def fail(self, reason: str) -> None:
        """The run is over, and it isn't done."""
        self._end("failed", reason=reason)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(f"{type(error).__name__}: {error}".removesuffix(": "))
        elif self.status == "running":
            self.finish()

    @cached_property
    def _curves(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), flush_secs=10)

    def _end(self, status: Status, **outcome: object) -> None:
        self.record |= {"status": status, "ended": _now(), **outcome}
        self._save()
        if "_curves" in vars(self):
            self._curves.close()

    def _save(self) -> None:
        if self._writes:
            write_json(self.folder / RECORD, self.record)


def plain(values: object) -> Any:
    """The same in JSON's types: paths and objects as text, dataclasses as objects, NaN and infinity as null."""
    return to_jsonable_python(values, inf_nan_mode="null", fallback=str)


def versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    installed = {package: metadata.version(package) for package in PACKAGES}
    return {"robustclip": robustclip.__version__, "python": platform.python_version(), **installed}


def commit() -> str | None:
    """The commit of the checkout that this code runs from, "-dirty" where files differ from it; None outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit yet
        return None


def _free(folder: Path) -> Path:
    """<folder>-1, or the first number after it that is not taken."""
    return next(path for number in count(1) if not (path := Path(f"{folder}-{number}")).exists())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
