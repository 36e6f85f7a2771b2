from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.folder import Run
from robustclip.runs.records import VARIABLE, requested


class Recorder(GeneralTracker):
    """A tracker as a user registers one with accelerate; it keeps its calls."""

    name = "recorder"
    requires_logging_directory = False
    calls: ClassVar[list[tuple[Any, ...]]] = []
    fails_at: ClassVar[str | None] = None

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self) -> None:
        return None

    def _add(self, what: str, *given: Any) -> None:
        if what == self.fails_at:
            raise ConnectionError("no network")
        self.calls.append((what, *given))

    def start(self) -> None:
        self._add("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._add("arguments", values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._add("log", step, values)

    def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._add("images", step, {name: image.shape for name, image in values.items()})

    def finish(self) -> None:
        self._add("finish")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)  # accelerate >= 1.15: register_tracker_class
    monkeypatch.setenv(VARIABLE, "recorder")
    Recorder.calls, Recorder.fails_at = [], None
    return Recorder


def logged(folder: Path) -> Run:
    with Run.create(folder, recipe="toy", arguments={"lr": 0.5}) as run:
        run.log(1, loss=2.5)
        run.log_image(2, "gradients", np.zeros((4, 6, 3), np.uint8))
    return run


def test_a_run_reports_to_its_trackers(recorder: type[Recorder], tmp_path: Path) -> None:
    logged(tmp_path / "run")
    assert recorder.calls == [
        ("start",),
        ("arguments", {"run": str(tmp_path / "run"), "lr": 0.5}),
        ("log", 1, {"loss": 2.5}),
        ("images", 2, {"gradients": (1, 4, 6, 3)}),
        ("finish",),
    ]


def test_a_tracker_that_does_not_start_ends_the_run_before_its_work(recorder: type[Recorder], tmp_path: Path) -> None:
    recorder.fails_at = "start"
    with pytest.raises(RunError, check=coded("tracker_not_started", tracker="recorder")):
        Run.create(tmp_path / "run", recipe="toy", arguments={})
    assert not (tmp_path / "run" / ".lock").exists()
    assert Run.open(tmp_path / "run").status == "failed"


def test_a_tracker_that_fails_later_is_dropped_and_the_run_goes_on(recorder: type[Recorder], tmp_path: Path) -> None:
    recorder.fails_at = "log"
    run = logged(tmp_path / "run")
    assert run.status == "finished"
    assert [line["loss"] for line in run.metrics()] == [2.5]
    assert [call[0] for call in recorder.calls] == ["start", "arguments"]


def test_there_are_no_trackers_unless_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert requested() == []


@pytest.mark.parametrize("name", ["wandbb", "tensorboard"])
def test_an_unknown_tracker_is_refused_before_a_folder_is_made(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(UsageError, check=coded("unknown_tracker", tracker=name)):
        Run.create(tmp_path / "run", recipe="toy", arguments={})
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    monkeypatch.setenv(VARIABLE, "wandb")
    with pytest.raises(UsageError, match="pip install wandb"):
        requested()
