"""The rehearsals at full size: where they stop, and their parts in small."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from robustclip.errors import RunError, coded

TOOLS = Path(__file__).parents[2] / "tools"
FULL = [
    RunError("step 1 ran out of memory", "out_of_memory"),
    RuntimeError("CUDA out of memory"),
    BrokenProcessPool("killed"),
]


@pytest.mark.parametrize("error", FULL, ids=["training", "torch", "killed"])
def test_no_batch_beyond_the_first_that_does_not_fit_is_tried(error: Exception) -> None:
    from rehearse import until_full

    tried = []

    def row_of(size: int) -> str:
        tried.append(size)
        if size > 8:
            raise error
        return f"row {size}"

    assert list(until_full([4, 8, 16, 32], row_of)) == [(4, "row 4"), (8, "row 8"), (16, None)]
    assert tried == [4, 8, 16]


def test_other_errors_end_a_rehearsal() -> None:
    from rehearse import until_full

    def row_of(_: int) -> str:
        raise RunError("no images", "no_images")

    with pytest.raises(RunError, check=coded("no_images")):
        list(until_full([4, 8], row_of))


@pytest.mark.slow
def test_a_training_is_rehearsed_in_small() -> None:
    done = subprocess.run([sys.executable, str(TOOLS / "rehearse.py"), "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("2 | ")]
    speed, memory = float(row[1]), float(row[3])
    assert speed > 0
    assert 0.05 < memory < 20
    assert 0.3 < float(row[6]) < 30


@pytest.mark.slow
@pytest.mark.parametrize("part", ["clipag", "explain"])
def test_pictures_are_rehearsed_in_small(part: str) -> None:
    command = [sys.executable, str(TOOLS / "rehearse_pictures.py"), "--quick", "--parts", part, "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(f"{part} | ")]
    _, planned, memory, of_plan = (float(cell.split()[0]) for cell in row[1:])
    assert planned > 0
    assert 0 <= memory < 20
    assert 0 < of_plan < 20
