"""Rows of a study: made once, measured once, left out where time is short, and gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustclip.data.images import load_image, save_image
from robustclip.errors import UsageError, coded
from robustclip.evaluation.generation.grids import Columns, Study, folder_name, resumed_rows
from robustclip.evaluation.generation.results import Column, Results
from robustclip.runs.folder import Run

PROMPTS = ["red", "green"]
BRIGHT = Column("bright")


class Recorded:
    """Makes and measures plain pictures, and counts how often it is asked to."""

    def __init__(self) -> None:
        self.made, self.measured = 0, 0

    def make(self, folder: Path) -> Tensor:
        self.made += 1
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for place, prompt in enumerate(PROMPTS):
            if not (folder / "images" / f"{prompt}.png").exists():
                save_image(torch.full((3, 8, 8), float(place)), folder / "images" / f"{prompt}.png")
        return torch.stack([load_image(folder / "images" / f"{prompt}.png") for prompt in PROMPTS])

    def measure(self, images: Tensor) -> Columns:
        self.measured += 1
        return {BRIGHT: (images.mean(dim=(1, 2, 3)) > 0.5).numpy()}


def study(folder: Path, judge: str = "one", budget: float | None = None) -> Study:
    place = {"resume": folder} if folder.exists() else {"resume": None, "folder": folder}
    arguments = {"cells": ["first"], "judge": judge}
    run = Run.start(place.get("folder"), place["resume"], recipe="grid", arguments=arguments, verb="reproduce")
    return Study(run, Results(), {"judge": judge}, budget)


def test_a_row_is_made_and_measured_once(tmp_path: Path) -> None:
    recorded = Recorded()
    first = study(tmp_path / "run")
    first.row("first", PROMPTS, recorded.make, recorded.measure)
    numbers = first.finish(BRIGHT)
    assert numbers == {"out": str(tmp_path / "run"), "first": 0.5}
    assert (recorded.made, recorded.measured) == (1, 1)
    for file in ("table.txt", "table.md", "results.json", "contact_sheet.png", "cells/first.json"):
        assert (tmp_path / "run" / file).is_file(), file
    seconds = first.results.rows["first"].seconds

    again = study(tmp_path / "run")
    again.row("first", PROMPTS, recorded.make, recorded.measure)
    assert again.finish(BRIGHT) == numbers
    assert recorded.measured == 1
    assert again.results.rows["first"].seconds == seconds, "of what was made"

    (tmp_path / "run" / "cells" / "first" / "images" / "green.png").unlink()
    mended = study(tmp_path / "run")
    mended.row("first", PROMPTS, recorded.make, recorded.measure)
    mended.finish(BRIGHT)
    assert recorded.measured == 2, "something was made anew"

    other = study(tmp_path / "run", judge="two")
    other.row("first", PROMPTS, recorded.make, recorded.measure)
    other.finish(BRIGHT)
    assert recorded.measured == 3, "by another judge"


def test_what_is_made_need_not_be_pictures(tmp_path: Path) -> None:
    calls = []

    def train(folder: Path) -> Path:
        calls.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    for _ in range(2):
        one = study(tmp_path / "run", budget=10.0)
        assert one.row("first", PROMPTS, train, lambda folder: {BRIGHT: [float(folder.exists())] * 2}) is not None
        assert one.finish(BRIGHT)["first"] == 1
    assert len(calls) == 2, "it says itself that it is done"
    assert one.results.rows["first"].seconds is not None


def test_a_budget_leaves_out_what_would_end_late(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = Recorded()
    short = study(tmp_path / "run", budget=1e-9)
    assert short.row("bound", PROMPTS, recorded.make, recorded.measure, timed=False) is not None
    assert short.row("first", PROMPTS, recorded.make, recorded.measure) is None
    assert short.left == ["first"]
    assert short.finish(BRIGHT) == {"out": str(tmp_path / "run"), "bound": 0.5}
    assert short.run.record["notes"]["left"] == ["first"]
    assert "--resume" in capsys.readouterr().err
    whole = study(tmp_path / "run")
    whole.row("first", PROMPTS, recorded.make, recorded.measure)
    whole.finish(BRIGHT)
    ended = study(tmp_path / "run", budget=1e-9)
    assert ended.row("first", PROMPTS, recorded.make, recorded.measure) is not None, "what is there costs nothing"
    ended.finish(BRIGHT)
    shutil.rmtree(tmp_path / "run" / "cells" / "first")
    lost = study(tmp_path / "run", budget=1e-9)
    assert lost.row("first", PROMPTS, recorded.make, recorded.measure) is None, "what is lost does"
    lost.finish(BRIGHT)


def test_rows_of_a_resumed_run(tmp_path: Path) -> None:
    study(tmp_path / "run").run.finish()
    asked = {"cells": ["second", "first"], "judge": "one"}
    assert resumed_rows(tmp_path / "run", asked, same=["judge"], rows="cells") == ["first", "second"]
    with pytest.raises(UsageError, check=coded("other_arguments", argument="judge", before="one", now="two")):
        resumed_rows(tmp_path / "run", asked | {"judge": "two"}, same=["judge"], rows="cells")


@pytest.mark.parametrize("name", ["../../etc, views", "..", "/root's/x"])
def test_a_row_stays_in_its_run(name: str) -> None:
    assert "/" not in folder_name(name)
    assert not folder_name(name).startswith(".")
    assert folder_name("emoji-robust's choice, no views") == "emoji-robusts-choice_no-views"
