"""Runs on the disk: what a list says of each, what `show` shows, and what `clean` removes and never touches."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from robustclip.cli import app
from robustclip.errors import UsageError, coded
from robustclip.runs import archive
from robustclip.runs.archive import Summary
from robustclip.runs.folder import Run
from robustclip.runs.processes import this_process


def make(name: str, status: str = "finished", steps: int = 3, home: str = "runs") -> Run:
    """A run's folder as training leaves it: metrics, two checkpoints and the best one, a referee."""
    run = Run.create(Path(home) / name, recipe="emoji", arguments={"steps": 1500, "seed": 1})
    run.note(steps=10)
    for step in range(1, steps + 1):
        run.log(step, loss=4.0 / step, clean_accuracy=step / 10)
    run.checkpoints.mkdir()
    for file in ("checkpoint-00000002.pt", "checkpoint-00000003.pt", "best-00000002.pt"):
        (run.checkpoints / file).write_bytes(bytes(1000))
    (run.folder / "referee").mkdir()
    (run.folder / "referee" / "card.json").write_text("{}")
    match status:
        case "finished":
            run.finish({"loss": 4.0 / steps})
        case "running":
            pass
        case "killed":
            run.record["process"]["born"] -= 60
            run.note()
        case "elsewhere":
            run.record["process"] = this_process() | {"host": "node7"}
            run.note()
        case _:
            run.fail("as told", status)  # type: ignore[arg-type]
    return run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*words: str) -> Result:
    return CliRunner().invoke(app, ["runs", *words, "--json", "out.json", "--overwrite"])


def written() -> Any:
    return json.loads(Path("out.json").read_text())


def files(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


ALL = ["best-00000002.pt", "checkpoint-00000002.pt", "checkpoint-00000003.pt"]


def test_a_line_for_each_run() -> None:
    for status in ("finished", "killed", "running", "interrupted", "failed"):
        make(f"a-{status}", status)
    (Path("runs") / "notes").mkdir()
    (Path("runs") / "broken").mkdir()
    (Path("runs") / "broken" / "run.json").write_text('{"recipe": ')
    shown = command("list")
    assert shown.exit_code == 0, shown.exception
    lines = {line.split()[0]: " ".join(line.split()) for line in shown.stdout.splitlines()}
    assert set(lines) == {"run", "a-finished", "a-killed", "a-running", "a-interrupted", "a-failed", "broken"}
    assert lines["a-killed"].startswith("a-killed emoji killed 3/10 1.333 ")
    assert lines["a-killed"].endswith("kB")
    assert "unreadable" in lines["broken"]
    (killed,) = [run for run in written() if run["name"] == "a-killed"]
    assert (killed["status"], killed["step"], killed["steps"], killed["loss"]) == ("killed", 3, 10, 4 / 3)
    assert killed["size"] == sum(path.stat().st_size for path in Path("runs/a-killed").rglob("*") if path.is_file())


def test_metrics_that_are_not_readable_do_not_hide_the_other_runs() -> None:
    make("good")
    (make("odd").folder / "metrics.jsonl").write_text("loss\n")
    assert {run.name: run.status for run in archive.list_runs()} == {"good": "finished", "odd": "unreadable"}


def test_no_runs_are_no_fault() -> None:
    assert command("list").exit_code == 0
    assert written() == []
    assert command("clean").exit_code == 0


def test_a_run_is_shown() -> None:
    run = make("emoji-1", "killed", steps=100)
    run.warn("overfits")
    shown = command("show", "emoji-1").stdout
    assert "runs/emoji-1: emoji, killed" in shown
    assert "to resume: robustclip robustify emoji --resume runs/emoji-1" in shown
    assert "  steps: 1500\n" in shown
    (curve,) = [line for line in shown.splitlines() if line.startswith("  loss")]
    assert curve.split()[1] == "█▃▂▂▂▂" + "▁" * 34
    assert curve.endswith("4 to 0.04")
    assert "warning: overfits" in shown
    assert written()["status"] == "killed"
    assert len(written()["metrics"]) == 100


def test_a_run_of_another_folder() -> None:
    make("emoji-1", home="elsewhere")
    assert "emoji, finished" in command("show", "emoji-1", "--folder", "elsewhere").stdout


@pytest.mark.parametrize("name", ["../runs/emoji-1", "runs/emoji-1", "..", ".", "", "emoji-1/", "/tmp", "a\\b"])
def test_a_name_never_leads_out_of_the_folder(name: str) -> None:
    run = make("emoji-1")
    result = command("clean", name, "--whole")
    assert isinstance(result.exception, UsageError)
    assert "is not a run's name, but a path: give the name in runs/ alone, or --folder DIR" in str(result.exception)
    assert files(run) == ALL


def test_a_run_is_shown_by_the_path_that_it_ended_with(here: Path) -> None:
    run = make("emoji-1", home="elsewhere")
    for path in (str(run.folder), f"{run.folder}/", str(run.folder.absolute()), "./elsewhere/emoji-1"):
        assert "emoji, finished" in command("show", path).stdout
    (here / "empty").mkdir()
    for name in ("./empty", "elsewhere/no", "a/b\\c", "..", "/"):
        with pytest.raises(UsageError, check=coded("not_a_run", name=name)):
            archive.show(name)


RECORD = {"recipe": "emoji", "status": "finished", "arguments": {}, "started": "2025-01-31T00:00:00+00:00"}


def put(name: str, record: object, metrics: str = "") -> None:
    """A run's folder with this record, text or values."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record if isinstance(record, str) else json.dumps(record))
    if metrics:
        (folder / "metrics.jsonl").write_text(metrics)


ODD: dict[str, object] = {
    "deep": '{"recipe": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep-inside": RECORD | {"notes": {"x": json.loads("[" * 400 + "]" * 400)}},
    "status-number": RECORD | {"status": 5},
    "status-unknown": RECORD | {"status": "dreaming"},
    "arguments-list": RECORD | {"arguments": [1]},
    "notes-list": RECORD | {"notes": ["pictures"]},
    "resumed-text": RECORD | {"resumed": ["x"]},
    "resumed-bare": RECORD | {"resumed": [{}]},
    "warnings-text": RECORD | {"warnings": "x"},
    "process-list": RECORD | {"process": [1]},
    "room-command": RECORD | {"verb": "robustify; rm x"},
    "no-zone": RECORD | {"started": "2025-01-31T00:00:00"},
    "digits": '{"recipe": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("name", ODD)
def test_a_record_from_outside_that_is_odd_is_one_line_of_the_list(name: str) -> None:
    put(name, ODD[name])
    make("good")
    assert {run.name: run.status for run in archive.list_runs()} == {name: "unreadable", "good": "finished"}
    for verb in (["show", name], ["clean", name, "--whole"], ["clean"]):
        result = command(*verb)
        assert result.exit_code == 0 if verb == ["clean"] else isinstance(result.exception, UsageError), verb
    with pytest.raises(UsageError, check=coded("not_a_record", path=Path("runs") / name / "run.json")):
        Run.start(None, Path("runs") / name, recipe="emoji", arguments={})


@pytest.mark.parametrize(
    "line", ["[]", '{"loss": 1}', '{"step": "x"}', '{"step": 1, "loss": NaN}', '{"step": 1, "loss": 1e400}', "[" * 9999]
)
def test_lines_of_metrics_that_are_odd_are_named(line: str) -> None:
    put("odd", RECORD, '{"step": 1, "loss": 2}\n' + line + "\n")
    assert [run.status for run in archive.list_runs()] == ["unreadable"]
    with pytest.raises(UsageError, match=r"metrics\.jsonl, line 2"):
        archive.show("odd").metrics()


@pytest.mark.parametrize("file", ["run.json", "metrics.jsonl"])
def test_nobody_waits_for_a_pipe_in_a_runs_folder(file: str) -> None:
    put("pipe", RECORD)
    (Path("runs") / "pipe" / file).unlink(missing_ok=True)
    os.mkfifo(Path("runs") / "pipe" / file)
    assert [run.status for run in archive.list_runs()] == ["unreadable"]
    assert isinstance(command("show", "pipe").exception, UsageError)
    if file == "run.json":
        with pytest.raises(UsageError, check=coded("not_a_file", path=Path("runs/pipe/run.json"))):
            Run.start(None, "runs/pipe", recipe="emoji", arguments={})


@pytest.mark.parametrize(
    "evil", ["\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "\u202eturned", "a\rb", "[bold red]x[/]"]
)
def test_what_a_record_says_is_shown_and_not_obeyed(evil: str) -> None:
    record = RECORD | {
        "recipe": evil,
        "reason": evil,
        "warnings": [evil],
        "arguments": {evil: evil},
        "status": "failed",
    }
    put("evil", record, json.dumps({"step": 1, evil: 1.0}) + "\n")
    for verb in (["list"], ["show", "evil"]):
        result = command(*verb)
        assert result.exit_code == 0, result.exception
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", result.output)
    assert evil.encode("unicode_escape").decode() in result.output


def test_a_list_of_what_cannot_be_looked_into_says_so(here: Path) -> None:
    (here / "file").touch()
    for record in ("folder", "link", "loop"):
        (Path("runs") / record).mkdir(parents=True)
    (Path("runs") / "folder" / "run.json").mkdir()
    (Path("runs") / "link" / "run.json").symlink_to("nowhere")
    (Path("runs") / "loop" / "run.json").symlink_to("run.json")
    make("good")
    assert {run.name: run.status for run in archive.list_runs()} == {
        "folder": "unreadable",
        "link": "unreadable",
        "loop": "unreadable",
        "good": "finished",
    }


def test_a_run_that_is_not_there() -> None:
    make("emoji-1")
    with pytest.raises(UsageError, check=coded("no_such_run", name="emoji-2")):
        archive.show("emoji-2")


def test_checkpoints_of_finished_runs_go_and_all_else_stays() -> None:
    runs = {status: make(status, status) for status in ("finished", "killed", "running", "interrupted", "elsewhere")}
    (runs["finished"].checkpoints / ".checkpoint-00000004.pt.1a2b3c4d.tmp").write_bytes(bytes(500))
    before = {path for path in Path("runs/finished").rglob("*") if path.is_file()}
    said = command("clean", "--dry-run").stdout
    assert said == "finished: would remove 3 checkpoints\nwould free 2.5 kB\n"
    assert {path for path in Path("runs/finished").rglob("*") if path.is_file()} == before
    said = command("clean").stdout
    assert said == "finished: removed 3 checkpoints\nfreed 2.5 kB\n"
    assert written()["bytes"] == 2500
    assert files(runs.pop("finished")) == ["best-00000002.pt"]
    assert {path.name for path in before - set(Path("runs/finished").rglob("*"))} == {
        ".checkpoint-00000004.pt.1a2b3c4d.tmp",
        "checkpoint-00000002.pt",
        "checkpoint-00000003.pt",
    }
    assert all(files(run) == ALL for run in runs.values())
    assert command("clean", "--best").stdout == "finished: removed 1 checkpoint\nfreed 1.0 kB\n"


def test_an_empty_list_of_names_is_no_run() -> None:
    run = make("finished", "finished")
    assert archive.clean([]).files == {}
    Path("none.yaml").write_text("names: []")
    assert command("clean", "--config", "none.yaml").stdout == "freed 0 bytes\n"
    assert files(run) == ALL


def test_named_runs_are_refused_where_they_still_need_what_they_have() -> None:
    runs = [make(status, status) for status in ("finished", "killed", "running", "elsewhere")]
    result = command("clean", "finished", "killed", "running", "elsewhere", "none")
    told = str(result.exception)
    assert "4 faults in the call of runs clean, which removed nothing" in told
    assert "runs/killed is killed and needs what it holds to go on (robustclip robustify emoji --resume" in told
    assert "runs/running is running: stop it first" in told
    assert "runs/elsewhere is running, or was when it was last seen (on node7): stop it first" in told
    assert "there is no run 'none'" in told
    assert all(files(run) == ALL for run in runs)


def test_whole_runs_go_by_name_only() -> None:
    killed, running = make("killed", "killed"), make("running", "running")
    assert "--whole removes the runs that you name" in str(command("clean", "--whole").exception)
    assert "runs/running is running" in str(command("clean", "running", "--whole").exception)
    assert running.folder.exists()
    assert command("clean", "killed", "--whole", "--dry-run").stdout.startswith("killed: would remove all of it\n")
    assert killed.folder.exists()
    assert command("clean", "killed", "--whole").stdout.startswith("killed: removed all of it\nfreed ")
    assert not killed.folder.exists()


def test_links_are_not_followed() -> None:
    other = make("other", home="elsewhere")
    Path("runs").mkdir()
    Path("runs/link").symlink_to(other.folder.resolve(), target_is_directory=True)
    assert archive.clean().files == {}
    for flags in ([], ["--whole"]):
        assert "runs/link is a link" in str(command("clean", "link", *flags).exception)
    mine = make("mine")
    for path in mine.checkpoints.iterdir():
        path.unlink()
    mine.checkpoints.rmdir()
    mine.checkpoints.symlink_to(other.checkpoints.resolve(), target_is_directory=True)
    assert archive.clean(["mine"]).files == {}
    assert files(other) == ALL


def test_a_finished_run_that_was_cleaned_does_not_begin_again() -> None:
    run = make("emoji-1")
    archive.clean(["emoji-1"], best=True)
    with pytest.raises(UsageError, check=coded("no_checkpoints", folder=run.folder)):
        Run.start(None, run.folder, recipe="emoji", arguments={})


def test_a_run_that_paints_counts_its_pictures(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "clipag-1", recipe="clipag", verb="synthesize", arguments={"steps": 100})
    run.note(pictures=3)
    (run.folder / "images").mkdir()
    (run.folder / "images" / "a-cat-s0.png").write_bytes(b"")
    summary = Summary.of(Run.open(run.folder))
    assert (summary.step, summary.steps) == (1, 3)
