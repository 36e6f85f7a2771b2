"""The command line as a user meets it: exit codes and what it prints, mostly in real processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import robustclip
from robustclip import recipes
from robustclip.cli import app, main
from robustclip.commands import TypedCommand
from robustclip.errors import RunError, coded

RECIPE = '''
from __future__ import annotations
import os, time
from pathlib import Path
from typing import Annotated, Any, Literal
from pydantic import FilePath, PositiveInt
from robustclip.errors import Interrupted, RunError
from robustclip.runs.folder import RunFolder


def faults(norm: str, eps: float):
    if norm == "linf" and eps >= 1:
        yield f"--eps {eps} looks as if given in /255: write --eps {eps / 255:.4f}"


def recipe(
    *,
    steps: Annotated[PositiveInt, "updates of the tower"] = 5,
    step_size: float = 0.5,
    norm: Literal["l2", "linf"] = "l2",
    eps: float = 1.5,
    tasks: list[Literal["zero-shot", "retrieval"]] = ["zero-shot"],
    texts: list[str] = [],
    captions: FilePath | None = None,
    channels_last: bool = True,
    quick_gelu: bool | None = None,
    fail: str = "",
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Pretend to train. It takes no time.

        robustclip robustify toy.py --steps 3

    Raises what it is told to.
    """
    if fail == "run":
        raise RunError("the loss became nan at step 2")
    if fail == "stop":
        raise Interrupted(15, "stopped at step 2 of 5, after a checkpoint")
    if fail == "bug":
        raise KeyError("tower")
    if fail == "module":
        import wonderful_module
    if fail == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    given = {"tasks": tasks, "texts": texts, "channels_last": channels_last}
    return {"steps": steps, "loss": 1 / 3, "nan": float("nan"), **given}
'''


@pytest.fixture
def toy(tmp_path: Path) -> str:
    path = tmp_path / "toy.py"
    path.write_text(RECIPE)
    return str(path)


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a command of this process would answer: torch is loaded here already, which takes a process seconds."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, pytest.raises(SystemExit) as end:
        main(list(arguments))
    code = end.value.code if isinstance(end.value.code, int) else 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def robustclip_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "robustclip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_success_is_0_and_the_numbers_are_written_for_people_and_programs(toy: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / "numbers.json"
    done = robustclip_command("robustify", toy, "--steps", "3", "--step-size=1e-2", "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "steps: 3\nloss: 0.3333\n" in done.stdout
    numbers = json.loads(file.read_text())
    assert (numbers["steps"], numbers["loss"], numbers["nan"]) == (3, 1 / 3, None)


def test_flags_that_take_several_values(toy: str, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    flags = ["--tasks", "zero-shot,retrieval", "--texts", "a cat, a dog", "--texts", "b", "--no-channels-last"]
    assert called("robustify", toy, *flags, "--json", str(file)).returncode == 0
    numbers = json.loads(file.read_text())
    assert numbers["tasks"] == ["zero-shot", "retrieval"]
    assert numbers["texts"] == ["a cat, a dog", "b"], "commas belong to a text"
    assert numbers["channels_last"] is False


def test_commas_belong_to_names_and_folders(tmp_path: Path) -> None:
    said = called("explain", "--referees", "one,two", "--images", "emoji/scenes", "--out", str(tmp_path / "out"))
    assert (said.returncode, "'one,two'" in said.stderr) == (2, True), said.stderr


@pytest.mark.parametrize(
    ("flags", "texts", "tasks"),
    [
        (["--texts", "a cat, or", "-5", "--steps", "3"], ["a cat, or", "-5"], ["zero-shot"]),
        (["--texts", "a", "--steps", "3", "--texts", "b", "c"], ["a", "b", "c"], ["zero-shot"]),
        (["--tasks", "retrieval", "zero-shot", "--texts=a", "--steps", "3"], ["a"], ["retrieval", "zero-shot"]),
    ],
    ids=["several", "again", "with ="],
)
def test_where_nothing_is_positional_a_flag_takes_all_up_to_the_next(
    flags: list[str], texts: list[str], tasks: list[str], toy: str, tmp_path: Path
) -> None:
    file = tmp_path / "numbers.json"
    done = CliRunner().invoke(app, ["robustify", toy, *flags, "--json", str(file)])
    assert done.exit_code == 0, done.output
    numbers = json.loads(file.read_text())
    assert (numbers["texts"], numbers["tasks"], numbers["steps"]) == (texts, tasks, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--steps", "3", "--texts"], "--texts"), (["--texts=a", "b"], "b: unexpected argument")],
    ids=["no value", "a value too many"],
)
def test_a_flag_without_a_value_and_a_value_without_a_flag_are_faults(flags: list[str], message: str, toy: str) -> None:
    done = called("robustify", toy, *flags)
    assert done.returncode == 2
    assert message in done.stderr


def test_all_faults_of_a_call_come_at_once_and_exit_with_2(toy: str, tmp_path: Path) -> None:
    flags = ["--stpes", "3", "--steps", "ten", "--norm", "l3", "--captions", "nowhere", "--out", str(tmp_path)]
    done = robustclip_command(
        "robustify", toy, *flags, "--step-sizes=3", "--wonder", "--quik", "x", "extra", "--seed", "1.5"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines() == [
        f"robustclip: 10 faults in the call of robustclip robustify {toy}",
        "  --stpes: unknown flag; did you mean --steps?",
        "  --step-sizes: unknown flag; did you mean --step-size?",
        "  --wonder: unknown flag",
        "  --quik: unknown flag; did you mean --quick?",
        "  extra: unexpected argument",
        "  --steps 'ten': should be a valid integer, unable to parse string as an integer (default: 5)",
        "  --norm 'l3': should be 'l2' or 'linf' (default: l2)",
        "  --captions 'nowhere': path does not point to a file",
        "  --seed '1.5': should be a valid integer, unable to parse string as an integer (default: 0)",
        f"  --out '{tmp_path}': {tmp_path} exists and is not empty: write elsewhere, e.g. --out {tmp_path}-1",
        f"Its flags: robustclip robustify {toy} --help",
    ]


def test_faults_of_an_evaluation_come_at_once_whatever_their_kind() -> None:
    done = called("evaluate", "x", "--limit", "0", "--attack", "l9:3@2", "--device", "tpu", "--dtypes", "a")
    assert done.returncode == 2
    for fault in ("--dtypes: unknown flag", "--attack 'l9:3@2'", "--limit '0'", "unknown device 'tpu'"):
        assert fault in done.stderr


def test_a_config_file_is_read_below_the_flags_and_written_by_print_config(toy: str, tmp_path: Path) -> None:
    file, numbers = tmp_path / "run.yaml", tmp_path / "numbers.json"
    shown = called("robustify", toy, "--steps", "3", "--eps", "4/255", "--texts", "a cat, a dog", "--print-config")
    assert shown.returncode == 0, shown.stderr
    assert "steps: 3\n" in shown.stdout
    assert "eps: 4/255\n" in shown.stdout
    file.write_text(shown.stdout)
    done = called("robustify", toy, "--config", str(file), "--steps", "4", "--json", str(numbers))
    assert done.returncode == 0, done.stderr
    found = json.loads(numbers.read_text())
    assert (found["steps"], found["texts"]) == (4, ["a cat, a dog"])
    assert called("robustify", toy, "--config", str(file), "--print-config").stdout == shown.stdout
    assert robustclip.robustify(toy, config=file)["steps"] == 3
    file.write_text("stps: 3\nnorm: l3\n")
    faulty = called("robustify", toy, "--config", str(file), "--eps", "x")
    assert faulty.returncode == 2
    for fault in ("stps=: unknown argument; did you mean steps=", "--norm 'l3'", "--eps 'x'"):
        assert fault in faulty.stderr
    assert "--config 'nowhere'" in called("robustify", toy, "--config", "nowhere").stderr


def test_an_illegal_pair_is_a_fault_of_the_call(toy: str) -> None:
    done = called("robustify", toy, "--norm", "linf", "--eps", "4")
    assert done.returncode == 2
    assert "--eps 4.0 looks as if given in /255: write --eps 0.0157" in done.stderr


def test_negative_numbers_are_values(toy: str) -> None:
    done = called("robustify", toy, "--steps", "-3")
    assert "--steps '-3': should be greater than 0" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["robustfy"], "No such command 'robustfy'"),
        (["robustify", "emojy"], "unknown recipe 'emojy'"),
        (["robustify", "nowhere/toy.py"], "there is no recipe file nowhere/toy.py"),
        (["export"], "--name is missing"),
        (["evaluate", "x", "--limit", "0", "--attacks", "y"], "2 faults in the call of robustclip evaluate"),
        (["referees", "show", "no-such-referee"], "there is no referee 'no-such-referee'"),
        (["synthesize", "clipagg", "a cat"], "unknown recipe 'clipagg'"),
        (["synthesize", "clipag", "a cat", "--size", "0", "--init", "x.png", "--steps", "-1"], "3 faults in the call"),
        (["reproduce", "table3"], "unknown recipe 'table3'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_faults_of_a_call_exit_with_2_and_say_why(arguments: list[str], message: str) -> None:
    done = called(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("run", "robustclip: the loss became nan at step 2"),
        ("bug", "robustclip: KeyError: 'tower' (--traceback shows where)"),
        ("module", "robustclip: the module wonderful_module is not installed: pip install wonderful-module"),
    ],
)
def test_a_fault_of_the_run_exits_with_1_and_without_a_traceback(toy: str, failure: str, message: str) -> None:
    done = robustclip_command("robustify", toy, "--fail", failure)
    assert done.returncode == 1
    assert done.stderr == message + "\n"


def test_the_traceback_is_shown_when_asked_for(toy: str) -> None:
    assert "Traceback" in robustclip_command("robustify", toy, "--fail", "bug", "--traceback").stderr
    assert "Traceback" in robustclip_command("robustify", toy, "--fail", "bug", ROBUSTCLIP_TRACEBACK="1").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_exits_with_128_and_the_signal(toy: str, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "robustclip", "robustify", toy, "--fail", "wait"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs ignore
    with subprocess.Popen(command, preexec_fn=heard, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert errors.strip() == "robustclip: interrupted"


def test_a_run_that_was_stopped_exits_with_128_and_the_signal(toy: str) -> None:
    done = robustclip_command("robustify", toy, "--fail", "stop")
    assert done.returncode == 143
    assert done.stderr == "robustclip: stopped at step 2 of 5, after a checkpoint\n"


def test_help_shows_each_flag_with_its_meaning_and_default(toy: str) -> None:
    shown = robustclip_command("robustify", toy, "--help").stdout
    assert "Pretend to train. It takes no time." in shown
    assert "\n      robustclip robustify toy.py --steps 3\n" in shown
    assert "Raises" not in shown
    assert "updates of the tower  [default: 5]" in shown
    assert "--norm l2|linf" in shown
    assert "--quick-gelu / --no-quick-gelu" in shown
    for flag in ("--json", "--device", "--dtype", "--seed", "--quick"):
        assert flag in shown


def test_help_is_fast_and_lists_the_verbs() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = robustclip_command("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0
    for verb in ("demo", "doctor", "evaluate", "export", "referees", "robustify", "runs"):
        assert f"\n  {verb} " in shown.stdout
    assert after.ru_utime - before.ru_utime < 0.5  # seconds of CPU, which other work on the machine does not stretch


def test_listing_recipes_runs_none(toy: str) -> None:
    shown = robustclip_command("robustify", "--help")
    assert shown.returncode == 0
    for recipe in recipes.available("robustify"):
        assert recipe.name in shown.stdout


def test_pictures_are_painted_and_told_of(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "numbers.json"
    done = robustclip_command(
        *("synthesize", "clipag", "a green turtle", "a cat:1.0 | badly drawn:-0.3", "--quick", "--seeds", "3,5"),
        *("--device", "cpu", "--out", str(run), "--json", str(file)),
    )
    assert done.returncode == 0, done.stderr
    assert str(run) in done.stdout
    names = ["a-green-turtle-s3", "a-green-turtle-s5", "a-cat-s3", "a-cat-s5"]
    assert sorted(path.stem for path in (run / "images").iterdir()) == sorted(names)
    numbers = json.loads(file.read_text())
    assert [one["id"] for one in numbers["each"]] == names
    assert numbers["pictures"] == 4


@pytest.mark.slow
def test_a_mixture_is_fitted_painted_from_and_judged(tmp_path: Path) -> None:
    mixture, run, file = tmp_path / "mine.safetensors", tmp_path / "run", tmp_path / "numbers.json"
    faulty = robustclip_command("mixture", "fit", "nowhere", "--out", "x.png", "--components", "0")
    assert faulty.returncode == 2
    assert "--components '0'" in faulty.stderr
    fitted = robustclip_command(
        *("mixture", "fit", "emoji/guide-styles", "--out", str(mixture), "--components", "5", "--limit", "100"),
    )
    assert fitted.returncode == 0, fitted.stderr
    painted = robustclip_command(
        *("synthesize", "clipag", "a green turtle", "a house", "--quick", "--device", "cpu", "--init", str(mixture)),
        *("--out", str(run), "--referee", "emoji-robust", "--referee", "emoji-vanilla=0.5"),
    )
    assert painted.returncode == 0, painted.stderr
    picture = run / "images" / "a-house-s0.png"
    picture.unlink()
    again = robustclip_command("synthesize", "clipag", "--resume", str(run))
    assert again.returncode == 0, again.stderr
    assert picture.is_file()

    own = robustclip_command("judge", str(run), "--judge", "emoji-robust", "--metrics", "cosine")
    assert own.returncode == 2
    assert "judge with another one" in own.stderr
    other = robustclip_command("judge", str(run), "--judge", "emoji-judge", "--metrics", "cosine", "--json", str(file))
    assert other.returncode == 0, other.stderr
    assert "emoji-judge" in other.stdout
    assert file.is_file()


def test_the_version() -> None:
    assert robustclip_command("--version").stdout == f"robustclip, version {robustclip.__version__}\n"


def test_doctor_writes_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    done = robustclip_command("doctor", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "To get what is missing" in done.stdout or "Nothing is missing." in done.stdout
    assert json.loads(file.read_text())["packages"]["torch"]["remedy"] is None


def test_a_dry_run_checks_the_call_and_does_nothing(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    calls = [
        ("robustify", toy, "--steps", "3"),
        ("robustify", "emoji", "--steps", "10"),
        ("synthesize", "clipag", "a cat", "--init", "photo.png", "--out", "new"),
        ("evaluate", "emoji-robust", "--limit", "2", "--json", "numbers.json"),
        ("explain", "--referees", "emoji-robust", "--images", "photo.png", "--texts", "a cat"),
        ("mixture", "fit", "emoji/unseen-styles", "--out", "mine.safetensors"),
        ("reproduce", "ablation"),
    ]
    before = set(tmp_path.iterdir())
    answers = [called(*call, "--dry-run") for call in calls]
    for call, answer in zip(calls, answers, strict=True):
        assert answer.returncode == 0, (call, answer.stderr)
        assert "nothing was run" in answer.stdout
    assert set(tmp_path.iterdir()) == before
    assert "time of the run" in answers[1].stdout  # the plan's answer
    assert "reads init: photo.png" in answers[2].stdout
    assert "writes out: new" in answers[2].stdout
    assert "writes json: numbers.json" in answers[3].stdout
    assert called("evaluate", "emoji-robust", "--limit", "many", "--dry-run").returncode == 2


def test_ends_of_runs_name_the_next_command(tmp_path: Path) -> None:
    file, run = tmp_path / "mine.safetensors", tmp_path / "run"
    few = ("--limit", "8", "--components", "2", "--size", "4")
    fitted = called("mixture", "fit", "emoji/unseen-styles", *few, "--out", str(file))
    assert fitted.returncode == 0, fitted.stderr
    assert f"next: robustclip synthesize clipag 'a cat' --init {file}" in fitted.stdout
    painted = called("synthesize", "clipag", "a cat", "--quick", "--device", "cpu", "--out", str(run))
    assert painted.returncode == 0, painted.stderr
    assert f"next: robustclip judge {run}" in painted.stdout
    assert "1 picture," in painted.stdout
    again = called("synthesize", "clipag", "--resume", str(run))
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stderr


@pytest.mark.parametrize(
    ("raised", "words", "less"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), ["--views", "3"], {"views": 3}),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ["--dtype", "float16"], {"views": 8}),
        (MemoryError(), [], {"views": 8}),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_a_lack_of_memory_names_the_flags_that_need_less(
    raised: Exception, words: list[str], less: dict[str, int]
) -> None:
    error = CliRunner().invoke(failing(raised), words).exception
    assert error is not None
    assert coded("out_of_memory", batch_size=32, **less)(error)
    assert ("--dtype bfloat16" in str(error)) == ("--dtype" not in words)


@pytest.mark.parametrize(
    "raised", [RuntimeError("CUDA error: misaligned address"), RunError("the disk is out of memory", "full")], ids=type
)
def test_other_errors_of_torch_and_of_runs_stay_as_they_are(raised: Exception) -> None:
    assert CliRunner().invoke(failing(raised), []).exception is raised


def failing(error: Exception) -> TypedCommand:
    def paint(*, batch_size: int = 32, views: int = 8, size: int | None = None, dtype: str = "auto") -> None:
        raise error

    return TypedCommand("paint", lambda: paint, summary="", show=str)
