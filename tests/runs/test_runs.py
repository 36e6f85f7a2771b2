from __future__ import annotations

import json
import logging
import math
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import robustclip
from robustclip.errors import Interrupted, RunError, UsageError, coded
from robustclip.runs import folder as runs
from robustclip.runs.files import LOCK
from robustclip.runs.folder import Run, called_as, new_folder


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
    root = Path(robustclip.__file__).parents[2]
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert runs.commit() in (found.stdout.strip(), found.stdout.strip() + "-dirty", None)
    assert (runs.commit() is None) == (found.returncode != 0)


def test_an_existing_folder_is_refused_with_the_ways_out(run: Run) -> None:
    with pytest.raises(UsageError) as error:
        Run.create(run.folder, recipe="emoji", arguments={})
    assert str(error.value) == (
        f"{run.folder} exists and holds a run that is running: write elsewhere, e.g. --out {run.folder}-1"
    )
    run.fail("for a test")
    remove = f"or remove it (robustclip runs clean run --whole --folder {run.folder.parent})"
    go_on = re.escape(f"failed: write elsewhere, e.g. --out {run.folder}-1, resume it ({run.resumption}), {remove}")
    with pytest.raises(UsageError, match=go_on, check=coded("exists", folder=run.folder, status="failed")):
        Run.create(run.folder, recipe="emoji", arguments={})


def test_other_files_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert new_folder(tmp_path / "photos") == tmp_path / "photos"
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(UsageError, check=coded("exists", folder=tmp_path / "photos")):
        new_folder(tmp_path / "photos")
    with pytest.raises(UsageError, check=coded("exists", folder=tmp_path / "photos" / "a.png")):
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
    ("error", "status", "reason"),
    [
        (RuntimeError("the disk is full"), "failed", "RuntimeError: the disk is full"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (Interrupted(15, "stopped at step 3"), "interrupted", "Interrupted: stopped at step 3"),
    ],
)
def test_an_error_ends_the_run_and_passes_on(run: Run, error: BaseException, status: str, reason: str) -> None:
    ends_as = Interrupted if isinstance(error, KeyboardInterrupt) else type(error)
    with pytest.raises(ends_as) as ended, run:
        raise error
    if isinstance(error, KeyboardInterrupt):
        assert f"--resume {run.folder} goes on" in str(ended.value)
    assert record(run)["status"] == status
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
    (run.folder / ".run.json.1a2b3c4d.tmp").write_text("{")
    again = Run.start(None, run.folder, recipe="emoji", arguments={"steps": 6})
    again.trim(1)
    again.log(2, loss=1.0)
    assert record(again)["status"] == "running"
    assert "reason" not in record(again)
    assert again.record["arguments"]["steps"] == 3
    assert [resumed["arguments"] for resumed in again.record["resumed"]] == [{"steps": 6}]
    assert again.arguments == {"steps": 6}
    assert [line["step"] for line in again.metrics()] == [1, 2]
    assert [path.name for path in run.folder.glob(".*")] == [LOCK]
    again.finish()
    assert not list(run.folder.glob(".*"))


def test_only_its_own_recipe_goes_on_with_a_run(run: Run) -> None:
    run.fail("for a test")
    with pytest.raises(
        UsageError,
        match="robustclip robustify emoji --resume",
        check=coded("other_recipe", recipe="emoji", asked="clipag"),
    ):
        Run.start(None, run.folder, recipe="clipag", arguments={})
    with pytest.raises(UsageError, check=coded("two_folders", resume=run.folder, out="other")):
        Run.start("other", run.folder, recipe="emoji", arguments={})


def made_by(run: Run, **process: object) -> None:
    """Let record and lock say that another process has the run."""
    run.record["process"] |= process
    run.note()
    (run.folder / LOCK).write_text(json.dumps(run.record["process"]))


def test_a_run_that_still_runs_cannot_go_on(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    assert run.status == "running"
    with pytest.raises(UsageError, check=coded("still_running", process=os.getpid())):
        Run.start(None, run.folder, recipe="emoji", arguments={})
    made_by(run, born=run.record["process"]["born"] - 60)
    assert Run.open(run.folder).status == "killed"
    Run.start(None, run.folder, recipe="emoji", arguments={})
    assert f"was left locked by process {os.getpid()}, which is gone: taken over" in caplog.messages[0]
    made_by(run, host="node7")
    assert Run.open(run.folder).status == "running"
    Run.start(None, run.folder, recipe="emoji", arguments={})
    assert "was last seen running on node7: make sure that it does not run there any more" in caplog.messages[1]


def ended(work: Callable[[], object]) -> int:
    """The exit status of a forked process that does this work: 0, 2 for a fault of the call, 1 for any other."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except UsageError:
        code = 2
    finally:
        os._exit(code)


@pytest.mark.parametrize("there", [False, True], ids=["new", "an empty folder"])
def test_of_processes_that_begin_in_one_folder_at_once_one_gets_it(tmp_path: Path, there: bool) -> None:
    os.environ.pop("RANK", None)
    for number in range(4):
        folder, go = tmp_path / str(number), tmp_path / f"go-{number}"
        if there:
            folder.mkdir()

        def work(folder: Path = folder, go: Path = go) -> None:
            while not go.exists():
                pass
            Run.create(folder, recipe="emoji", arguments={})

        children = [ended(work) for _ in range(2)]
        go.touch()
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        assert codes == [0, 2]
        assert Run.open(folder).status == "killed"
        assert sorted(path.name for path in folder.iterdir()) == [LOCK, "run.json"]


def test_of_processes_that_go_on_with_one_run_at_once_one_does(tmp_path: Path) -> None:
    for number in range(3):
        folder, go = tmp_path / str(number), tmp_path / f"go-{number}"
        os.waitpid(ended(partial(Run.create, folder, recipe="emoji", arguments={})), 0)  # and dies

        def work(folder: Path = folder, go: Path = go) -> None:
            while not go.exists():
                pass
            Run.start(None, folder, recipe="emoji", arguments={})
            time.sleep(0.3)  # or the other one finds it killed again

        children = [ended(work) for _ in range(3)]
        go.touch()
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        assert codes == [0, 2, 2]
        assert len(Run.open(folder).record["resumed"]) == 1


def test_a_run_gives_its_folder_back_when_it_ends(run: Run) -> None:
    assert json.loads((run.folder / LOCK).read_text())["pid"] == os.getpid()
    with pytest.raises(UsageError, check=coded("still_running")):
        Run.start(None, run.folder, recipe="emoji", arguments={})
    run.fail("for a test")
    assert not (run.folder / LOCK).exists()
    with Run.start(None, run.folder, recipe="emoji", arguments={}):
        assert (run.folder / LOCK).exists()
    assert not (run.folder / LOCK).exists()


@pytest.mark.parametrize("place", ["/dev/null", "/dev/full", "/", "."])
def test_nobody_is_told_to_remove_what_is_no_run(place: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.folder.parent)
    with pytest.raises(UsageError) as error:
        new_folder(Path(place))
    assert not re.search(r"\brm\b|remove it|runs clean", str(error.value))


def test_a_run_that_paints_goes_on_by_its_own_command(tmp_path: Path) -> None:
    with called_as("synthesize/clipag"):
        run = Run.start(tmp_path / "run", None, recipe="clipag", arguments={}, verb="synthesize")
    assert record(run)["verb"] == "synthesize"
    assert run.resumption == f"robustclip synthesize clipag --resume {run.folder}"
    run.finish()
    assert not run.checkpoints.exists()
    again = Run.start(None, run.folder, recipe="clipag", arguments={}, verb="synthesize")  # pictures may be missing
    assert again.status == "running"
    assert again.verb == "synthesize"


def test_a_run_of_an_ablation_has_two_names(tmp_path: Path) -> None:
    with called_as("clipag-linf"), called_as("clipag-vit-b32"):
        run = Run.create(tmp_path / "run", recipe="clipag-vit-b32", arguments={})
    run.fail("for a test")
    assert (record(run)["recipe"], record(run)["called"]) == ("clipag-vit-b32", "clipag-linf")
    assert run.resumption == f"robustclip robustify clipag-linf --resume {run.folder}"
    for name in ("clipag-linf", "clipag-vit-b32"):
        run.check_resumable(name)
    with pytest.raises(UsageError, check=coded("other_recipe", recipe="clipag-linf", asked="emoji")):
        run.check_resumable("emoji")
    with called_as("clipag-vit-b32"):
        plain = Run.create(tmp_path / "plain", recipe="clipag-vit-b32", arguments={})
    assert "called" not in record(plain)


def test_start_without_resume_is_a_new_run(tmp_path: Path) -> None:
    assert Run.start(tmp_path / "new", None, recipe="emoji", arguments={}).status == "running"


def test_a_folder_without_a_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("not_a_run", folder=tmp_path)):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text('{"recipe": ')
    with pytest.raises(UsageError, check=coded("not_a_record", path=tmp_path / "run.json")):
        Run.open(tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"status": "finished"}'])
def test_a_record_of_something_else_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, check=coded("not_a_record", path=tmp_path / "run.json")):
        Run.open(tmp_path)


def test_a_folder_in_which_a_run_was_killed_at_once_is_free(tmp_path: Path) -> None:
    (tmp_path / ".run.json.1a2b3c4d.tmp").write_text("{")
    assert new_folder(tmp_path) == tmp_path


def test_only_the_main_process_writes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustclip.runs.distributed.is_main", lambda: False)
    before = record(run)
    with Run(run.folder, run.record) as other:
        other.log(1, loss=1.0)
        other.note(data="none")
    assert record(run) == before
    assert sorted(path.name for path in run.folder.iterdir()) == [LOCK, "run.json"]


def test_only_the_main_process_looks_whether_a_folder_is_free(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert new_folder(run.folder) == run.folder


def test_a_full_disk_is_said_once_and_ends_no_run(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    size = (run.folder / "run.json").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, before[1]))
    try:
        for step in range(30):
            run.log(step, loss=1.0)
        run.note(fact="x" * size)
        run.warn("slow")
        with pytest.raises(RunError, match="what ended it"), run:
            raise RunError("what ended it")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.messages) == 2
    assert re.search(r"run cannot be written to \(.+\): not all is recorded", caplog.messages[0])
    assert caplog.messages[1] == "slow"
    assert Run.open(run.folder).record["status"] == "running"
    assert run.metrics()


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_run_that_takes_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, check=coded("not_written", path="/proc/self/run")):
        Run.create("/proc/self/run", recipe="emoji", arguments={})
