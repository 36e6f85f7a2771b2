"""`robustclip runs`: list, show and clean runs."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from robustclip.errors import RunError, UsageError, raise_faults
from robustclip.runs.files import is_draft, is_file, is_folder
from robustclip.runs.folder import HOME, RECORD, Run
from robustclip.runs.processes import is_alive


def _no_file(path: Path) -> Path:
    if os.path.lexists(path) and not is_folder(path):
        raise UsageError("is not a folder")
    return path


Home = Annotated[Path, "folder of runs", AfterValidator(_no_file)]
Name = Annotated[str, "run name (its folder's name)"]


@dataclass(frozen=True)
class Summary:
    """One line of `runs list`."""

    name: str
    recipe: str
    status: str
    step: int
    steps: int | None
    loss: float | None
    started: datetime
    size: int  # bytes, of all files in its folder

    @classmethod
    def of(cls, run: Run) -> Summary:
        lines = run.metrics()
        notes = run.record.get("notes", {})
        if "pictures" in notes:  # the progress of a painting run is its finished pictures
            step, steps = sum(1 for _ in run.folder.glob("images/*.png")), notes["pictures"]
        else:
            step, steps = lines[-1]["step"] if lines else 0, notes.get("steps", run.arguments.get("steps"))
        if type(steps) is not int:
            steps = None
        losses = [line["loss"] for line in lines if line.get("loss") is not None]
        return cls(
            name=run.folder.name,
            recipe=run.called,
            status=run.status,
            step=step,
            steps=steps,
            loss=losses[-1] if losses else None,
            started=datetime.fromisoformat(run.started),
            size=size(run.folder),
        )

    @property
    def age(self) -> float:
        """Seconds since its last start."""
        return (datetime.now(UTC) - self.started).total_seconds()

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "started": self.started.isoformat()}

    @classmethod
    def unreadable(cls, folder: Path) -> Summary:
        began = datetime.fromtimestamp(0, UTC)
        with suppress(OSError):
            began = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        return cls(folder.name, "", "unreadable", 0, None, None, began, size(folder))


@dataclass(frozen=True)
class Freed:
    """Files that were removed, or would be."""

    files: dict[str, list[Path]]  # of each run
    size: int
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        files = {name: [str(path) for path in paths] for name, paths in self.files.items()}
        return {"removed": files, "bytes": self.size, "dry_run": self.dry_run}


def list_runs(*, folder: Home = HOME) -> list[Summary]:
    """List the runs of a folder, newest last.

    A run whose process ended without a record has the status killed; `--resume` continues it.
    """
    return sorted(map(_summary, records(folder)), key=lambda run: run.started)


def show(
    name: Annotated[str, "run name, or path of its folder"],
    *,
    folder: Home = HOME,
) -> Run:
    """Show a run: arguments, metrics, curves and warnings.

    Raises UsageError if `name` is neither a run's name in `folder` nor its path.
    """
    if _is_name(name):
        return _run(name, folder)
    if "\0" in name or not os.path.lexists(Path(name) / RECORD):
        raise UsageError(
            f"{name[:200]!r} is not a run's name (in {folder}/), nor the folder of a run", "not_a_run", name=name
        )
    return Run.open(name)


def clean(
    names: Annotated[list[str] | None, "run names; default: all finished runs"] = None,
    *,
    whole: Annotated[bool, "remove the named runs entirely"] = False,
    best: Annotated[bool, "also remove the best checkpoint"] = False,
    dry_run: Annotated[bool, "only list what would be removed"] = False,
    folder: Home = HOME,
) -> Freed:
    """Remove the checkpoints of finished runs (referees and metrics are kept), or with --whole the named runs.

      robustclip runs clean --dry-run
      robustclip runs clean emoji-1 emoji-2 --whole

    Unfinished runs keep their checkpoints for resumption: they are skipped, or refused if named. Runs that may be
    running are never changed.

    Raises UsageError for unknown names and for runs that are protected.
    """
    if names is not None:  # no names of a list are no runs
        runs = _removable(names, folder, whole=whole)
    else:
        runs = [run for run in runs_in(folder) if run.status == "finished" and not run.folder.is_symlink()]
    files = {run.folder.name: [run.folder] if whole else _checkpoints(run, best=best) for run in runs}
    paths = [path for paths in files.values() for path in paths]
    freed = Freed({name: paths for name, paths in files.items() if paths}, sum(map(size, paths)), dry_run)
    if not dry_run:
        for path in paths:
            _remove(path)
    return freed


def faults(names: list[str] | None, whole: bool) -> Iterator[str]:
    if whole and not names:
        yield "--whole removes the runs that you name: give names, e.g. robustclip runs clean emoji-1 --whole"


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() or path.is_symlink() else path.rglob("*")
    return sum(map(_bytes, files))


def _summary(record: Path) -> Summary:
    try:
        return Summary.of(Run.open(record.parent))
    except (ValueError, OSError):  # a foreign or unreadable record
        return Summary.unreadable(record.parent)


def _bytes(file: Path) -> int:
    with suppress(OSError):  # a running process may remove its drafts meanwhile
        status = file.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size
    return 0


def _is_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..") and "\\" not in name and "\0" not in name


def _run(name: str, home: Path) -> Run:
    """The run of that name. Raises UsageError for a path and for an unknown name."""
    if not _is_name(name):
        message = f"{name!r} is not a run's name, but a path: give the name in {home}/ alone, or --folder DIR"
        raise UsageError(message, "not_a_run", name=name)
    if not is_file(home / name / RECORD):
        there = ", ".join(run.folder.name for run in runs_in(home)) or "none"
        raise UsageError(f"there is no run {name[:200]!r} in {home}/: there are {there}", "no_such_run", name=name)
    return Run.open(home / name)


def _removable(names: list[str], home: Path, *, whole: bool) -> list[Run]:
    """The runs of these names. Raises one UsageError for all unknown or protected ones."""
    runs: list[Run] = []
    refused: list[str] = []
    for name in dict.fromkeys(names):
        try:
            runs.append(_run(name, home))
            refused.extend(_refused(runs[-1], whole=whole))
        except UsageError as error:
            refused.append(str(error))
    raise_faults("runs clean, which removed nothing", refused)
    return runs


def _refused(run: Run, *, whole: bool) -> Iterator[str]:
    if run.folder.is_symlink():
        yield f"{run.folder} is a link, and what it leads to may be another's: remove it by hand"
    elif run.status == "running":
        alive = is_alive(run.record.get("process", {}))
        where = "" if alive else f", or was when it was last seen (on {run.record.get('process', {}).get('host')})"
        yield f"{run.folder} is running{where}: stop it first"
    elif run.status != "finished" and not whole:
        yield f"{run.folder} is {run.status} and needs what it holds to go on ({run.resumption}): --whole removes it"


def _checkpoints(run: Run, *, best: bool) -> list[Path]:
    if run.checkpoints.is_symlink():
        return []
    patterns = ["checkpoint-*.pt", *(["best-*.pt"] if best else [])]
    saved = [path for pattern in patterns for path in run.checkpoints.glob(pattern)]
    return sorted([*saved, *filter(is_draft, run.checkpoints.glob(".*"))])


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path} could not be removed ({error.strerror or error})") from error


def records(home: Path) -> list[Path]:
    """The run.json files in the sub-folders of a folder, by name."""
    try:
        return [folder / RECORD for folder in sorted(home.iterdir()) if os.path.lexists(folder / RECORD)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{home} cannot be read ({error.strerror}): give another folder") from error


def runs_in(home: Path) -> list[Run]:
    """The runs in a folder, by name; unreadable records are skipped."""
    runs = []
    for path in records(home):
        try:
            runs.append(Run.open(path.parent))
        except UsageError:
            continue
    return runs
