from __future__ import annotations

import io
import math
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robustclip.errors import UsageError, coded
from robustclip.runs.records import LINES, Metrics


def curve(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    curves = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(point.step, point.value) for point in curves.Scalars(name)]


def test_lines_are_there_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    assert metrics.lines() == []
    metrics.log(1, {"loss": 2.5})
    metrics.log(2, {"loss": math.nan, "accuracy": 0.5})
    first, second = Metrics(tmp_path).lines()
    assert (first["step"], first["loss"]) == (1, 2.5)
    assert 0 <= first["seconds"] <= second["seconds"]
    assert (second["step"], second["loss"], second["accuracy"]) == (2, None, 0.5)


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.log(1, {"loss": 2.5})
    metrics.log(2, {"loss": 1.5, "accuracy": 0.5})
    assert curve(tmp_path) == [(1, 2.5), (2, 1.5)]
    assert curve(tmp_path, "accuracy") == [(2, 0.5)]


def test_tensorboard_reads_the_pictures(tmp_path: Path) -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    Metrics(tmp_path).log_image(5, "gradients", picture)
    (shown,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("gradients")
    assert (shown.step, shown.height, shown.width) == (5, 2, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), picture)


def test_a_run_that_goes_on_writes_again_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    first = Metrics(tmp_path)
    for step in range(1, 6):
        first.log(step, {"loss": float(step)})
    with (tmp_path / LINES).open("a") as file:
        file.write('{"step": 6, "lo')  # the line at which it was killed
    assert [line["step"] for line in first.lines()] == [1, 2, 3, 4, 5]
    again = Metrics(tmp_path)
    again.trim(3)
    assert [line["step"] for line in again.lines()] == [1, 2, 3]
    again.log(4, {"loss": 40.0})
    assert [line["step"] for line in again.lines()] == [1, 2, 3, 4]
    assert curve(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_the_clock_goes_on_where_the_lines_end(tmp_path: Path) -> None:
    (tmp_path / LINES).write_text('{"step": 1, "seconds": 100.0}\n{"step": 2, "seconds": 200.0}\n')
    metrics = Metrics(tmp_path)
    metrics.trim(1)
    metrics.log(2, {})
    assert 100 <= metrics.lines()[-1]["seconds"] < 110


def test_who_may_not_write_only_reads(tmp_path: Path) -> None:
    Metrics(tmp_path).log(1, {"loss": 1.0})
    Metrics(tmp_path).trim(0, write=False)
    assert len(Metrics(tmp_path).lines()) == 1
    Metrics(tmp_path).trim(0)
    assert Metrics(tmp_path).lines() == []


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / LINES).write_text('{"step": 1}\nloss 3\n{"step": 2}\n')
    with pytest.raises(UsageError, match=r"metrics\.jsonl, line 2", check=coded("not_json")):
        Metrics(tmp_path).lines()


def log_much(metrics: Metrics) -> None:
    for step in range(4, 100):
        metrics.log(step, {"loss": 1.0})


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in range(1, 4):
        metrics.log(step, {"loss": 1.0})
    size = max((tmp_path / LINES).stat().st_size, *(p.stat().st_size for p in (tmp_path / "tensorboard").iterdir()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
    try:
        with pytest.raises(OSError, match="No space left on device"):
            log_much(metrics)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    written = len(metrics.lines())
    assert (tmp_path / LINES).read_text().count("\n") == written
    assert (tmp_path / LINES).read_text().endswith("}\n")
    metrics.log(100, {"loss": 0.5})
    assert metrics.lines()[-1]["step"] == 100
    assert curve(tmp_path)[-1] == (100, 0.5)
