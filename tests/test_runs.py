from __future__ import annotations

import json
import logging
import math
import re
import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import robustclip
from robustclip import runs
from robustclip.errors import UsageError
from robustclip.runs import Run, new_folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", recipe="emoji", arguments={"steps": 3, "out": Path("x"), "sizes": (1, 2)})


def record(run: Run) -> dict[str, object]:
    return dict(json.loads((run.folder / "run.json").read_text()))


def test_a_run_says_what_was_asked_and_with_what(run: Run) -> None:
    written = record(run)
    assert written["recipe"] == "emoji"
    assert written["status"] == "running"
    assert written["arguments"] == {"steps": 3, "out": "x", "sizes": [1, 2]}
    assert isinstance(written["versions"], dict)
    assert written["versions"]["robustclip"] == robustclip.__version__
    assert {"python", "torch", "timm"} <= written["versions"].keys()


def test_the_commit_is_the_checkouts() -> None:
    root = Path(runs.__file__).parents[2]
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert runs.commit() in (found.stdout.strip(), found.stdout.strip() + "-dirty", None)
    assert (runs.commit() is None) == (found.returncode != 0)


def test_metrics_are_lines_as_soon_as_they_are_logged(run: Run) -> None:
    run.log(1, loss=2.5)
    run.log(2, loss=math.nan, accuracy=0.5)
    first, second = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], first["loss"]) == (1, 2.5)
    assert first["seconds"] >= 0
    assert (second["step"], second["loss"], second["accuracy"]) == (2, None, 0.5)
    assert run.metrics() == [first, second]


def test_metrics_are_curves_too(run: Run) -> None:
    run.log(1, loss=2.5)
    run.log(2, loss=1.5)
    run.finish()
    curves = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("loss")] == [(1, 2.5), (2, 1.5)]


def test_an_existing_folder_is_refused_with_the_ways_out(run: Run) -> None:
    with pytest.raises(UsageError) as error:
        Run.create(run.folder, recipe="emoji", arguments={})
    assert str(error.value) == (
        f"{run.folder} exists and holds a run that is running: "
        f"write elsewhere, e.g. --out {run.folder}-1, or remove it (rm -r {run.folder})"
    )


def test_other_files_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert new_folder(tmp_path / "photos") == tmp_path / "photos"
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(UsageError, match="photos exists and is not empty: write elsewhere"):
        new_folder(tmp_path / "photos")
    with pytest.raises(UsageError, match=r"a\.png exists and is not empty"):
        new_folder(tmp_path / "photos" / "a.png")


def test_a_run_without_a_folder_takes_the_next_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [Run.create(None, recipe="emoji", arguments={}).folder for _ in range(2)]
    assert folders == [Path("runs/emoji-1"), Path("runs/emoji-2")]


def test_the_context_finishes_a_run(run: Run) -> None:
    with run:
        run.note(data={"images": 3})
        run.note(threat="L2")
    assert record(run)["status"] == "finished"
    assert record(run)["notes"] == {"data": {"images": 3}, "threat": "L2"}


def test_numbers_given_in_the_context_stay(run: Run) -> None:
    with run:
        run.finish({"loss": 0.5, "best": math.inf})
    assert record(run)["numbers"] == {"loss": 0.5, "best": None}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("the disk is full"), "RuntimeError: the disk is full"), (KeyboardInterrupt(), "KeyboardInterrupt")],
)
def test_an_error_fails_the_run_and_passes_on(run: Run, error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)), run:
        raise error
    assert record(run)["status"] == "failed"
    assert record(run)["reason"] == reason


def test_a_warning_is_said_and_kept(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "robustclip"):
        run.warn("overfits")
        run.warn("still does")
    assert caplog.messages == ["overfits", "still does"]
    assert record(run)["warnings"] == ["overfits", "still does"]


def test_a_run_goes_on(run: Run) -> None:
    run.log(1, loss=2.0)
    run.fail("interrupted")
    again = Run.start(None, run.folder, recipe="emoji", arguments={"steps": 6})
    again.log(2, loss=1.0)
    assert record(again)["status"] == "running"
    assert "reason" not in record(again)
    assert again.record["arguments"]["steps"] == 3
    assert [resumed["arguments"] for resumed in again.record["resumed"]] == [{"steps": 6}]
    assert [line["step"] for line in again.metrics()] == [1, 2]


def test_only_its_own_recipe_goes_on_with_a_run(run: Run) -> None:
    with pytest.raises(
        UsageError, match=re.escape("is a run of emoji, not of clipag: robustclip robustify emoji --re")
    ):
        Run.start(None, run.folder, recipe="clipag", arguments={})
    with pytest.raises(UsageError, match="goes on in that folder: leave out --out other"):
        Run.start("other", run.folder, recipe="emoji", arguments={})


def test_start_without_resume_is_a_new_run(tmp_path: Path) -> None:
    assert Run.start(tmp_path / "new", None, recipe="emoji", arguments={}).status == "running"


def test_a_folder_without_a_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run's folder: it has no run\.json"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text('{"recipe": ')
    with pytest.raises(UsageError, match=r"run\.json is not readable .*: the run must be made again"):
        Run.open(tmp_path)


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustclip.distributed.is_main", lambda: False)
    with Run.create(tmp_path / "run", recipe="emoji", arguments={}) as run:
        run.log(1, loss=1.0)
        run.note(data="none")
    assert not run.folder.exists()
