"""`accelerate launch` of a recipe on two CPU processes, plain and with FSDP: the same run as by one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from robustclip.cli import app

RECIPE = Path(__file__).with_name("toy_training.py")
SETTINGS = ["--steps", "8", "--evaluate-every", "4", "--dtype", "float64", "--frozen-statistics", "--dropout", "0"]
ARGUMENTS = ["robustify", str(RECIPE), *SETTINGS]  # dropout would be another one in each process
TWO_PROCESSES = """\
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
use_cpu: true
mixed_precision: 'no'
num_machines: 1
num_processes: 2
main_process_port: 0
"""
KINDS = {
    "data-parallel": TWO_PROCESSES.format(kind="MULTI_GPU"),
    "fsdp": TWO_PROCESSES.format(kind="FSDP") + "fsdp_config:\n  fsdp_version: 2\n",
}
THREADS = """\
import atexit
from pathlib import Path

atexit.register(lambda: print(sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))))

import torch
from robustclip.runs import distributed


def step():
    tower = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    distributed.shard(tower)
    distributed.whole(tower.state_dict())
    tower(torch.ones(2, 4)).sum().backward()

assert distributed.count() == 2
step()
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", *command], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process, this one."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done = CliRunner().invoke(app, [*ARGUMENTS, "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "data_wait")} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data-parallel", "fsdp"])
def test_two_processes_make_the_same_run(alone: Path, tmp_path: Path, kind: str) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(KINDS[kind])
    out = tmp_path / "run"
    launch = ["accelerate.commands.launch", "--config_file", str(config), "-m", "robustclip"]
    done = run(*launch, *ARGUMENTS, "--accumulate", "2", "--out", str(out))
    assert done.stdout.count("samples: 128") == 1  # one process speaks
    found, expected = (load_file(path / "referee" / "image_tower.safetensors") for path in (out, alone))
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=1e-8, atol=1e-12)
    for line, reference in zip(metrics(out), metrics(alone), strict=True):
        assert line == pytest.approx(reference, rel=1e-8)
    checkpoints = [
        torch.load(max((path / "checkpoints").glob("checkpoint-*")), weights_only=True) for path in (out, alone)
    ]
    torch.testing.assert_close(
        checkpoints[0]["optimizer"]["state"], checkpoints[1]["optimizer"]["state"], rtol=1e-6, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names of threads are read from /proc")
def test_threads_of_the_process_group_end_before_the_interpreter(tmp_path: Path) -> None:
    """One that frees a tensor later aborts the process, after the run's last file was written."""
    (tmp_path / "two.yaml").write_text(KINDS["fsdp"])
    (tmp_path / "threads.py").write_text(THREADS)
    launch = ["accelerate.commands.launch", "--config_file", str(tmp_path / "two.yaml")]
    assert run(*launch, str(tmp_path / "threads.py")).stdout.split() == ["0", "0"]
