"""`--resume`: find the run to continue and restore its arguments.

    --resume FOLDER            that run
    --resume latest            the run of this recipe in runs/ that was started last
    --resume latest --out X    the run in X; a new one where there is none, so one command line can be queued for ever

Flags that are not given take the values that the run had, not the recipe's defaults.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from robustclip.errors import UsageError
from robustclip.runs.archive import runs_in
from robustclip.runs.files import holds_something, is_file
from robustclip.runs.folder import HOME, RECORD, Run

LATEST: Final = "latest"
PLACES: Final = ("out", "resume")
"""Arguments that say where a run is, which a run that goes on does not take over."""


def completed(given: Mapping[str, object], known: Collection[str], recipe: str) -> dict[str, object]:
    """The arguments of a call of `recipe`, with what `resume` among them brings along.

    Then `resume` is a folder, and `out` is left out; or, where a new run begins, the other way round. Arguments that
    the recipe no longer knows are not taken over. Where several processes train together, the main one looks.

    Raises UsageError where there is no such run, it is another recipe's, or it still runs.
    """
    resume = given.get("resume")
    if resume is None or "resume" not in known:
        return dict(given)
    from robustclip.runs.distributed import decided  # here, for it loads torch

    folder, recorded = decided(lambda: _found(str(resume), given.get("out"), recipe))
    arguments = {name: value for name, value in given.items() if name not in PLACES}
    if folder is None:
        return arguments | {"out": given["out"]}
    taken_over = {name: value for name, value in recorded.items() if name in known and name not in PLACES}
    return taken_over | arguments | {"resume": folder}


def _found(resume: str, out: object, recipe: str) -> tuple[Path | None, dict[str, Any]]:
    """The folder of the run to go on with and its arguments; no folder where one begins in `out`."""
    if resume == LATEST and out is not None and not holds_something(Path(str(out))):
        return None, {}
    run = _latest(recipe) if resume == LATEST and out is None else Run.open(_folder(resume, out))
    run.check_resumable(recipe)
    return run.folder, run.arguments


def _folder(resume: str, out: object) -> Path:
    if resume == LATEST:
        return Path(str(out))
    folder = Path(resume)
    if out is not None and Path(str(out)).resolve() != folder.resolve():
        raise UsageError(f"goes on in that folder: leave out --out {out}")
    if not folder.exists():
        near = HOME / folder
        meant = f"did you mean {near}?" if is_file(near / RECORD) else f"give a run's folder, or {LATEST}"
        raise UsageError(f"there is no such folder: {meant}")
    return folder


def _latest(recipe: str) -> Run:
    found = [run for run in runs_in(HOME) if run.called == recipe]
    if not found:
        raise UsageError(f"there is no run of {recipe} in {HOME}/: leave out --resume to start one, or give its folder")
    return max(found, key=lambda run: (run.started, (run.folder / RECORD).stat().st_mtime))
