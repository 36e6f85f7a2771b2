"""Nothing lost: real processes that are killed, stopped, run out of disk, or find their checkpoints damaged, and go on
with `--resume latest` to the very weights, averages, moments, buffers and metrics of a run that was left alone."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from robustclip.runs import checkpoint

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).with_name("toy_training.py")
SOURCE = Path(__file__).parents[2] / "src"
STEPS, EVALUATE_EVERY, CHECKPOINT_EVERY = 24, 6, 4
LINES = STEPS + STEPS // EVALUATE_EVERY
PR_CAPBSET_DROP = 24  # of <linux/prctl.h>
PATIENCE = 300  # seconds that a process may take on a machine with other work

Condition = Callable[[], bool]


def start(folder: Path, *flags: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, *options.pop("launch", ["-m", "robustclip"]), "robustify", str(RECIPE)]
    command += ["--out", str(folder), "--resume", "latest", *flags]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | options.pop("env", {})
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def finish(folder: Path, *flags: str, **options: Any) -> tuple[int, str]:
    """(exit code, stderr) of a run that is left alone."""
    with start(folder, *flags, **options) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def strike(folder: Path, number: signal.Signals, when: Condition, *flags: str) -> tuple[int, str]:
    """Start a run and send it a signal as soon as `when` holds; (exit code, stderr), 0 where it ended before."""
    with start(folder, *flags) as process:
        until = time.monotonic() + PATIENCE
        while process.poll() is None and not when():
            assert time.monotonic() < until
            time.sleep(0.0005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def metrics(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def drafts(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob(".checkpoint-*.tmp"))


def assert_same_run(folder: Path, reference: Path) -> None:
    """Bit for bit: the referee, everything in the last and the best checkpoint, and the metrics, but for clocks."""
    assert record(folder)["status"] == "finished"
    ours, theirs = (load_file(run / "referee" / "image_tower.safetensors") for run in (folder, reference))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (folder, reference)]
    assert names[0] == names[1]
    for name in names[0]:
        assert_equal(*(checkpoint.load(run / "checkpoints" / name) for run in (folder, reference)), name)
    assert timeless(metrics(folder)) == timeless(metrics(reference))


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict) and "stream" in ours:  # a place in the data, told from the start of a chunk of samples
        assert place(ours) == place(theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for name in ours.keys() - {"seconds"}:
            assert_equal(ours[name], theirs[name], f"{where}/{name}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f"{where}/{index}")
    else:
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, where


def place(position: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """How many samples were drawn, and which of them were usable."""
    return position["stream"]["draws"] + position["taken"], position["met"]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "data_wait")} for line in lines]


@dataclass(frozen=True)
class Reference:
    """A run that nothing happened to."""

    folder: Path
    seconds: float


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """The run on these data that is left alone, made once."""

    @cache
    def made(data: str) -> Reference:
        folder = tmp_path_factory.mktemp("reference") / data
        began = time.monotonic()
        code, errors = finish(folder, "--data", data)
        assert code == 0, errors
        state = checkpoint.load(checkpoint.checkpoints(folder / "checkpoints")[-1])
        assert {"tower", "ema", "optimizer", "schedule", "alarm", "data", "best"} <= state.keys()
        assert [line["step"] for line in metrics(folder) if "loss" in line] == list(range(1, STEPS + 1))
        return Reference(folder, time.monotonic() - began)

    return made


# A kind of moment: (when to strike, whether it was struck in time), for a run that may have been killed before.
Moment = Callable[[Path, random.Random, float], tuple[Condition, Condition]]


def before_the_first_checkpoint(folder: Path, draw: random.Random, seconds: float) -> tuple[Condition, Condition]:
    lines = draw.randrange(CHECKPOINT_EVERY)
    return (
        lambda: (folder / "run.json").exists() and len(metrics(folder)) >= lines,
        lambda: not checkpoint.checkpoints(folder / "checkpoints"),
    )


def while_a_checkpoint_is_written(folder: Path, draw: random.Random, seconds: float) -> tuple[Condition, Condition]:
    step = CHECKPOINT_EVERY * draw.randint(1, 2)

    def written() -> bool:
        return any((folder / "checkpoints").glob(f".checkpoint-{step:08d}.pt.*.tmp"))

    return written, written


def during_the_evaluation(folder: Path, draw: random.Random, seconds: float) -> tuple[Condition, Condition]:
    step = EVALUATE_EVERY * draw.randint(2, 3)

    def evaluated() -> bool:  # what comes after this line, and before the line of accuracies
        lines = metrics(folder)
        return bool(lines) and lines[-1]["step"] == step and "loss" in lines[-1]

    return evaluated, evaluated


def at_a_random_moment(folder: Path, draw: random.Random, seconds: float) -> tuple[Condition, Condition]:
    moment = time.monotonic() + draw.uniform(0, seconds)
    return lambda: time.monotonic() >= moment, lambda: True


def somewhere_in_a_step(folder: Path, draw: random.Random, seconds: float) -> tuple[Condition, Condition]:
    before = len(metrics(folder))
    lines, delay = draw.randint(before, before + 8), draw.uniform(0, 0.1)
    met: list[float] = []

    def passed() -> bool:
        if not met and len(metrics(folder)) >= min(lines, LINES) and record(folder)["process"]["pid"] != pid:
            met.append(time.monotonic() + delay)
        return bool(met) and time.monotonic() >= met[0]

    pid = record(folder)["process"]["pid"] if folder.exists() else 0
    return passed, lambda: True


MOMENTS: tuple[Moment, ...] = (
    before_the_first_checkpoint,
    while_a_checkpoint_is_written,
    during_the_evaluation,
    somewhere_in_a_step,
    at_a_random_moment,
)


def kill(folder: Path, moment: Moment, draw: random.Random, seconds: float, *flags: str) -> None:
    """Kill a run at a moment of this kind; a kill that came late is taken back."""
    before = folder.with_name("before")
    for _ in range(10):
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists():
            shutil.copytree(folder, before)
        when, in_time = moment(folder, draw, seconds)
        code, errors = strike(folder, signal.SIGKILL, when, *flags)
        if code == -signal.SIGKILL and in_time():
            return
        assert code in (0, -signal.SIGKILL), errors
        shutil.rmtree(folder)
        if before.exists():
            shutil.copytree(before, folder)
    pytest.fail(f"no process was met {moment.__name__}")


@pytest.mark.parametrize(
    ("data", "seed"), [("drawings", 0), ("drawings", 1), ("drawings", 2), ("shards", 3), ("shards", 4)]
)
def test_a_run_that_is_killed_five_times_ends_as_if_it_was_not(
    tmp_path: Path, reference: Callable[[str], Reference], data: str, seed: int
) -> None:
    whole = reference(data)
    folder, draw = tmp_path / "run", random.Random(seed)
    for moment in MOMENTS:
        kill(folder, moment, draw, whole.seconds, "--data", data)
        print(f"killed {moment.__name__} with {len(metrics(folder))} lines of metrics")
    saved = checkpoint.step_of(checkpoint.checkpoints(folder / "checkpoints")[-1])
    kept = [line for line in metrics(folder) if line["step"] <= saved]
    assert kept
    code, errors = finish(folder)
    assert code == 0, errors
    assert metrics(folder)[: len(kept)] == kept, "it went on from its last checkpoint: even clocks are as they were"
    assert_same_run(folder, whole.folder)


@pytest.mark.parametrize(("data", "number"), [("drawings", signal.SIGINT), ("shards", signal.SIGTERM)])
def test_a_signal_is_answered_with_a_checkpoint(
    tmp_path: Path, reference: Callable[[str], Reference], data: str, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    code, errors = strike(folder, number, lambda: len(metrics(folder)) >= 5, "--data", data)
    assert code == 128 + number, errors
    (saved,) = [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder / "checkpoints")][-1:]
    assert f"stopped at step {saved} of {STEPS}, after a checkpoint" in errors
    assert f"--resume {folder}" in errors
    assert "Traceback" not in errors
    assert record(folder)["status"] == "interrupted"
    assert metrics(folder)[-1]["step"] == saved
    code, errors = finish(folder)
    assert code == 0, errors
    assert_same_run(folder, reference(data).folder)


TWO_PROCESSES = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: true
mixed_precision: 'no'
num_machines: 1
num_processes: 2
main_process_port: 0
"""


def test_two_processes_that_are_killed_together_go_on_together(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO_PROCESSES)
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "two.yaml"), "-m", "robustclip"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    flags = ["--data", "shards", "--frozen-statistics"]  # statistics of a share would not be those of the batch
    code, errors = finish(whole, *flags, launch=launch)
    assert code == 0, errors
    with start(folder, *flags, launch=launch, start_new_session=True) as process:
        while process.poll() is None and len(metrics(folder)) < 10:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert record(folder)["status"] == "running"
    assert checkpoint.checkpoints(folder / "checkpoints")
    code, errors = finish(folder, launch=launch)
    assert code == 0, errors
    assert len(record(folder)["resumed"]) == 1
    assert_same_run(folder, whole)


RESTARTABLE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # as in the scripts of `robustclip plan --launch torchrun`


def torchrun(processes: int, restarts: int) -> list[str]:
    agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*agent, f"--max-restarts={restarts}", "-m", "robustclip"]


def kill_one(folder: Path, rank: int, *flags: str, restarts: int, **environment: str) -> tuple[int, str]:
    """Kill one of two processes after ten steps, and leave the rest to the launcher; (exit code, stderr)."""
    with start(folder, *flags, launch=torchrun(2, restarts), env=RESTARTABLE | environment) as process:
        until = time.monotonic() + PATIENCE
        while len(metrics(folder)) < 10:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.001)
        (struck,) = (one for one in psutil.Process(process.pid).children() if one.environ().get("RANK") == str(rank))
        struck.kill()
        _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


SHARED = ["--data", "shards", "--frozen-statistics"]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that is left alone."""
    folder = tmp_path_factory.mktemp("two") / "run"
    code, errors = finish(folder, *SHARED, launch=torchrun(2, 0))
    assert code == 0, errors
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_the_launcher_restarts_both_when_one_is_killed(tmp_path: Path, of_two: Path, rank: int) -> None:
    code, errors = kill_one(tmp_path / "run", rank, *SHARED, restarts=1)
    assert code == 0, errors
    assert len(record(tmp_path / "run")["resumed"]) == 1
    assert_same_run(tmp_path / "run", of_two)


def test_when_one_is_killed_the_other_ends_and_both_can_be_started_again(tmp_path: Path, of_two: Path) -> None:
    folder = tmp_path / "run"
    code, _ = kill_one(folder, 1, *SHARED, restarts=0)
    assert code != 0
    assert record(folder)["status"] in ("failed", "running", "interrupted")
    code, errors = finish(folder, launch=torchrun(2, 0))
    assert code == 0, errors
    assert_same_run(folder, of_two)


FSDP = {"ACCELERATE_USE_FSDP": "true"}


@pytest.mark.parametrize(
    ("before", "after"), [({}, {}), (FSDP, {}), (FSDP, {"launch": torchrun(4, 0), "env": RESTARTABLE | FSDP})]
)
def test_drawings_go_on_with_another_number_of_processes_to_the_same_weights(
    tmp_path: Path, before: dict[str, str], after: dict[str, Any]
) -> None:
    """Their batches are a function of the step; only the order of sums differs. FSDP makes whole checkpoints."""
    flags = ["--data", "drawings", "--frozen-statistics", "--dropout", "0", "--dtype", "float64"]
    code, _ = kill_one(tmp_path / "run", 1, *flags, restarts=0, **before)
    assert code != 0
    for folder, how in ((tmp_path / "run", after), (tmp_path / "whole", {})):
        code, errors = finish(folder, *([] if folder.exists() else flags), **how)
        assert code == 0, errors
    ours, theirs = (load_file(tmp_path / run / "referee" / "image_tower.safetensors") for run in ("run", "whole"))
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, rtol=1e-8, atol=1e-12)


def test_shards_go_on_with_another_number_of_processes_in_the_same_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, _ = kill_one(folder, 1, *SHARED, restarts=0)
    assert code != 0
    before = checkpoint.load(checkpoint.checkpoints(folder / "checkpoints")[-1])
    code, errors = finish(folder)
    assert code == 0, errors
    (warning,) = (line for line in record(folder)["warnings"] if "processes" in line)
    assert "by 2 processes and continues with 1" in warning
    assert [line["step"] for line in metrics(folder) if "loss" in line] == list(range(1, STEPS + 1))
    after = checkpoint.load(checkpoint.checkpoints(folder / "checkpoints")[-1])
    (position,) = after["data"]
    samples = 16 * (STEPS - before["step"])
    former = [place["stream"]["sources"]["emoji"] for place in before["data"]]
    shares = position["stream"]["shares"]["emoji"]
    assert [share["place"] for share in shares] == [[0, 2], [1, 2]]
    assert shares[0]["at"][2] + position["taken"] == former[0][2] + samples, "no sample of the epoch was passed over"
    assert shares[1]["at"] == former[1]
    usable = sum(place["met"]["emoji"]["usable"] for place in before["data"])
    assert position["met"]["emoji"]["usable"] == usable + samples


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run that was killed after its second checkpoint."""
    folder = tmp_path / "run"

    def two_are_written() -> bool:
        return len(checkpoint.checkpoints(folder / "checkpoints")) == 2

    strike(folder, signal.SIGKILL, two_are_written)
    assert two_are_written()
    return folder


def test_a_full_disk_ends_the_run_and_costs_nothing(killed: Path, reference: Callable[[str], Reference]) -> None:
    last = checkpoint.checkpoints(killed / "checkpoints")[-1]

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    code, errors = finish(killed, preexec_fn=small_files_only)
    assert code == 1
    assert "could not be written (File too large): the last good one is " + str(last) in errors
    assert f"then resume with --resume {killed}" in errors
    assert "Traceback" not in errors
    assert checkpoint.checkpoints(killed / "checkpoints")[-1] == last
    assert record(killed)["status"] == "failed"
    code, errors = finish(killed)
    assert code == 0, errors
    assert_same_run(killed, reference("drawings").folder)


def test_a_checkpoint_cut_short_is_told_and_the_one_before_is_taken(
    killed: Path, reference: Callable[[str], Reference]
) -> None:
    before, last = checkpoint.checkpoints(killed / "checkpoints")
    os.truncate(last, last.stat().st_size // 2)
    code, errors = finish(killed)
    assert code == 0, errors
    assert f"{last} is not a readable checkpoint" in errors
    assert "resuming from the one before it" in errors
    (warning,) = record(killed)["warnings"]
    assert last.name in warning
    assert checkpoint.step_of(before) == CHECKPOINT_EVERY
    assert_same_run(killed, reference("drawings").folder)


def without_roots_privilege() -> None:
    """Make rights count for root too: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH it is a user like others."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_a_folder_that_may_only_be_read_is_left_as_it_is(killed: Path, reference: Callable[[str], Reference]) -> None:
    before = contents(killed)
    folders = [killed, *(path for path in killed.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    code, errors = finish(killed, preexec_fn=without_roots_privilege)
    assert code == 1, errors
    assert f"{killed} cannot be written to (Permission denied): no run can go on there" in errors
    code, errors = finish(killed / "new", preexec_fn=without_roots_privilege)
    assert code == 1, errors
    assert f"no run can be kept in {killed / 'new'} (Permission denied): write elsewhere" in errors
    assert contents(killed) == before
    for folder in folders:
        folder.chmod(0o755)
    code, errors = finish(killed)
    assert code == 0, errors
    assert_same_run(killed, reference("drawings").folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
