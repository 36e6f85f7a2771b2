"""Launch scripts: the examples are what `plan --launch` prints, and each launcher's script trains."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from click.testing import CliRunner
from torch.distributed.run import get_args_parser

import robustclip
from robustclip.cli import app
from robustclip.errors import UsageError, coded
from robustclip.planning.settings import Launch, Launcher
from robustclip.recipes import available
from robustclip.signatures import parameters

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.sh"))
LAUNCHERS = ("accelerate", "torchrun", "slurm")

# SLURM of one machine: the tasks of a step, and what the script asks of the scheduler.
SRUN = """\
#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" > tasks
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "${code:-0}"
"""
SCONTROL = """\
#!/bin/bash
[[ $1 == requeue ]] && echo "$2" >> requeued || echo localhost
"""


def printed(*words: str) -> str:
    done = CliRunner().invoke(app, ["plan", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def checked(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_is_an_example_of_each_launcher() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(LAUNCHERS)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_what_its_first_comment_prints(example: Path) -> None:
    script = example.read_text()
    command = shlex.split(script.splitlines()[1].removeprefix("# "))
    assert command[:2] == ["robustclip", "plan"]
    assert printed(*command[2:]) == script, f"bash: {shlex.join(command)} > {example.relative_to(ROOT)}"
    checked(script)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("fsdp", [False, True])
def test_whatever_the_values_hold_they_arrive_as_they_are(
    launcher: str, nodes: int, fsdp: bool, tmp_path: Path
) -> None:
    odd = ["--name", "a 'b' \"$HOME\" `id` \n exit 3", "--sbu", "{00..11}.tar"]
    run = ["robustify", "emoji", *odd]
    script = Launch(run, 6, nodes, fsdp=fsdp).script(launcher, ["two\nlines"])  # type: ignore[arg-type]
    checked(script)
    program = tmp_path / "program"
    program.write_text('#!/bin/bash\nprintf "%s\\0" "$@" > words\n[[ -z $ACCELERATE_USE_FSDP ]] || touch fsdp\n')
    (tmp_path / "scontrol").write_text(SCONTROL)
    for name in ("accelerate", "torchrun", "srun"):
        (tmp_path / name).symlink_to(program)
    for path in (program, tmp_path / "scontrol"):
        path.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", "-c", script, "job", "1", "host"], cwd=tmp_path, env=environment, check=True)
    words = (tmp_path / "words").read_text().split("\0")[:-1]
    assert words[-len(run) :] == run
    assert (tmp_path / "fsdp").exists() or "--use_fsdp" in words or not fsdp
    if nodes == 3:  # what a machine is told: its rank and another's address, or that address only
        told = {"accelerate": ["1", "host"], "torchrun": ["1:29500"], "slurm": []}
        assert set(told[launcher]) <= set(words)


@pytest.mark.parametrize(
    ("launcher", "parser"), [("accelerate", launch_command_parser), ("torchrun", get_args_parser)], ids=LAUNCHERS[:2]
)
def test_a_launcher_takes_no_flag_of_a_recipe_for_its_own(
    launcher: Launcher, parser: Callable[[], ArgumentParser]
) -> None:
    for recipe in available("robustify"):
        flags = [f"--{parameter.name.replace('_', '-')}" for parameter in parameters(recipe.function)]
        run = ["robustify", recipe.name, *(word for flag in flags for word in (flag, "value"))]
        command = Launch(run, 6).script(launcher, []).partition("exec ")[2].replace("\\\n", "")
        words = shlex.split(command)[2 if launcher == "accelerate" else 1 :]
        found = parser().parse_args(words)
        assert (found.module, found.training_script, found.training_script_args) == (True, "robustclip", run)


@pytest.mark.parametrize("count", [1, 2])
def test_accelerate_takes_the_script_of_one_gpu_too(count: int) -> None:
    command = Launch(["robustify", "emoji"], count).script("accelerate", []).partition("exec ")[2]
    words = shlex.split(command.replace("\\\n", ""))[2:]
    found, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (found.num_processes, found.multi_gpu) == (count, count > 1)


def test_slurm_is_asked_for_the_numbers_of_the_run() -> None:
    script = Launch(["robustify", "emoji"], 12, 3, workers=5, hours=4.1).script("slurm", [])
    for asked in (
        "--nodes=3 ",
        "--ntasks-per-node=4 ",
        "--gpus-per-node=4 ",
        "--cpus-per-task=6\n",
        "--time=7:00:00\n",
    ):
        assert asked in script
    assert "--time=24:00:00\n" in Launch(["robustify", "emoji"], 1, hours=99).script("slurm", [])


def test_a_script_of_a_call_that_the_recipe_refuses_is_refused() -> None:
    with pytest.raises(UsageError, match="--laion is missing"):
        robustclip.plan("clipag-vit-b32", launch="slurm")
    with pytest.raises(UsageError, check=coded("not_divisible", near="--count 8 or --count 12")):
        robustclip.plan("emoji", launch="torchrun", count=10, per_node=4, batch_size=120, frozen_statistics=True)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_script_of_each_launcher_trains(launcher: str, tmp_path: Path) -> None:
    flags = ["--steps", "2", "--batch-size", "8", "--split", "judge-heldback", "--frozen-statistics"]
    flags += ["--evaluate-every", "0", "--device", "cpu", "--dtype", "float32"]
    script = printed("emoji", "--count", "2", "--launch", launcher, *flags)
    tools = tmp_path / "tools"
    tools.mkdir()
    modules = {"robustclip": "robustclip", "torchrun": "torch.distributed.run"}
    modules["accelerate"] = "accelerate.commands.accelerate_cli"
    programs = {name: f'#!/bin/bash\nexec {sys.executable} -m {module} "$@"\n' for name, module in modules.items()}
    for name, content in (programs | {"srun": SRUN, "scontrol": SCONTROL}).items():
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment | {"SLURM_JOB_ID": str(os.getpid())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "runs" / "emoji" / "run.json").read_text())
    assert record["status"] == "finished"
    assert (record["arguments"]["steps"], record["arguments"]["batch_size"]) == (2, 8)
    assert not (tmp_path / "requeued").exists()
