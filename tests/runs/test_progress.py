from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import pytest
from rich.console import Console

from robustclip.runs import progress
from robustclip.runs.progress import TrainingProgress, watched


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is one second later."""
    ticks = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


def test_without_a_terminal_the_last_step_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    stream = io.StringIO()
    with TrainingProgress(total=3, console=Console(file=stream)) as bar:
        for step in range(3):
            bar.advance(images=2, loss=step / 2)
    assert stream.getvalue().splitlines() == ["training 3/3  loss 1.000  0.0 images/s  ETA 0:00"]


def test_without_a_terminal_a_line_comes_every_so_often(monkeypatch: pytest.MonkeyPatch, clock: None) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 4.0)
    stream = io.StringIO()
    with TrainingProgress(total=10, console=Console(file=stream)) as bar:
        for _ in range(10):
            bar.advance(images=2)
    steps = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert 2 <= len(steps) < 10
    assert steps[-1] == "10/10"


def test_long_loops_say_how_far_they_are_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress, "LINE_EVERY", 4.0)
    for _ in watched(range(10), "cats: 10 images"):
        now += 1.5
    assert capsys.readouterr().err.splitlines() == [
        "cats: 10 images",
        "cats: 10 images, 3/10  ETA 0:10",
        "cats: 10 images, 6/10  ETA 0:06",
        "cats: 10 images, 9/10  ETA 0:02",
    ]


def test_speed_and_eta_are_those_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with TrainingProgress(total=4000, console=Console(file=io.StringIO())) as bar:
        assert bar.images_per_second == 0
        assert bar.eta is None
        for _ in range(progress.WINDOW):
            now += 100.0  # a slow start is forgotten
            bar.advance(images=8)
        for _ in range(progress.WINDOW):
            now += 2.0
            bar.advance(images=8)
        assert bar.images_per_second == 4
        assert bar.eta == 3900 * 2
        assert "ETA 2:10:00" in bar.describe()


def test_the_wait_for_data_is_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)

    def slow() -> Iterator[int]:
        nonlocal now
        while True:
            now += 1.0
            yield 0

    with TrainingProgress(total=10, console=Console(file=io.StringIO())) as bar:
        for _ in zip(range(4), bar.fed(slow()), strict=False):
            now += 3.0
            bar.advance(images=8)
        assert bar.data_wait == 4 / 16
        assert "25% waiting for data" in bar.describe()


def test_a_resumed_run_starts_where_it_was() -> None:
    with TrainingProgress(total=10, start=7, console=Console(file=io.StringIO())) as bar:
        bar.advance(images=1)
        assert bar.step == 8


def test_in_a_terminal_there_is_a_bar_with_the_numbers() -> None:
    stream = io.StringIO()
    with TrainingProgress(total=2, console=Console(file=stream, force_terminal=True, width=160)) as bar:
        bar.advance(images=4, loss=1.25)
        bar.show(clean_similarity=0.31, adversarial_similarity=0.12)
        bar.advance(images=4, loss=1.0)
    shown = stream.getvalue()
    assert "2/2" in shown
    assert "loss 1.000  clean sim 0.310  adv sim 0.120" in shown


def test_what_is_made_once_in_the_first_step_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with TrainingProgress(total=12, console=Console(file=io.StringIO())) as bar:
        now += 20.0
        bar.advance(images=1)
        assert bar.eta is None
        now += 2.0
        bar.advance(images=1)
        assert bar.eta == 10 * 2
