"""The papers' tables in small: with toy referees, so that they say nothing, and all is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustclip import recipes
from robustclip.data.emoji import embedded_prompts
from robustclip.data.images import load_image
from robustclip.errors import RunError
from robustclip.evaluation.generation.results import Column, Results
from robustclip.referees.registry import load_referee
from robustclip.referees.smoothed import fingerprint
from robustclip.synthesis import studio
from robustclip.synthesis.items import Named, load_prompts
from robustclip.synthesis.pictures import is_whole, read_facts
from robustclip.synthesis.prompts import Prompt

Reproduce = Callable[..., dict[str, Any]]


@pytest.fixture
def reproduce(toys: list[str], tmp_path: Path) -> Reproduce:
    """`reproduce("table1", ...)` in tmp_path / "run": the first toy is the control, the second is called robust."""
    control, robust, *judges = toys[:4]

    def call(table: str, **changed: object) -> dict[str, Any]:
        named = {"control": control, "robust": robust, "judges": judges, "device": "cpu", "dtype": "float32"}
        place = {} if "resume" in changed else {"out": tmp_path / "run"}
        return recipes.run(table, "evaluate", {"quick": True, **named, **place, **changed})  # type: ignore[no-any-return]

    return call


def pictures(folder: Path) -> dict[Path, int]:
    """Every picture that was painted, and when."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("images/*.png")}


@pytest.mark.slow  # each of the three is painted quickly by the tests of its own recipe
def test_table_1_has_the_frameworks_that_a_referee_is_plugged_into(
    reproduce: Reproduce, tmp_path: Path, toys: list[str]
) -> None:
    frameworks = ["strokes", "vqgan", "styler", "styler-pixels"]
    numbers = reproduce("table1", canvas=frameworks)
    folder = tmp_path / "run"
    control, robust, *judges = toys[:4]
    cells = {
        canvas: {f"{guide}, {views}, {canvas}" for guide in (control, robust) for views in ("no views", "views")}
        for canvas in frameworks
    }
    painted = cells["strokes"] | cells["vqgan"]
    starts = {"random strokes, unoptimised", "random codes, unoptimised"}
    results = Results.read(folder)
    restyled = cells["styler"] | cells["styler-pixels"] | {"contents, unoptimised"}
    assert set(results.rows) == painted | starts | restyled
    assert set(numbers) == {"out", *painted}
    assert len(results.rows[f"{robust}, views, strokes"].samples) == 12
    assert len(results.rows[f"{robust}, views, vqgan"].samples) == 2, "the slow ones are fewer"
    seconds = {name: row.seconds for name, row in results.rows.items() if row.seconds is not None}
    assert set(seconds) == painted | cells["styler"] | cells["styler-pixels"]
    assert all(took > 0 for took in seconds.values())
    compared = set(results.compared)
    assert (f"{robust}, no views, strokes", f"{control}, no views, strokes") in compared
    assert (f"{robust}, views, vqgan", "random codes, unoptimised") in compared
    for name in painted:
        metrics = {one.metric for one in results.columns(name)}
        assert metrics == {"R-Precision@10", "cosine"}
    assert set(results.columns(*restyled)) == {(metric, one) for metric in ("directional", "content") for one in judges}
    for judge in judges:
        of_contents = results.value("contents, unoptimised", Column("content", judge))
        assert of_contents.value == pytest.approx(1, abs=0.01)
    name = next(iter(cells["styler-pixels"]))
    assert results.rows[name].samples == results.rows[name.removesuffix("-pixels")].samples
    again = reproduce("table1", canvas=frameworks, resume=folder)
    assert again == numbers
    assert {name: Results.read(folder).rows[name].seconds for name in seconds} == seconds, "of those that painted"


def test_table_1_has_every_cell_and_its_start(reproduce: Reproduce, tmp_path: Path, toys: list[str]) -> None:
    numbers = reproduce("table1", canvas=["pixels"])
    folder = tmp_path / "run"
    control, robust, *judges = toys[:4]
    cells = [
        f"{guide}, {views}, pixels, from {init}"
        for init in ("mixture", "noise")
        for views in ("no views", "views")
        for guide in (control, robust)
    ]
    starts = [f"{guide}'s choice of mixture, unoptimised" for guide in (control, robust)] + ["noise, unoptimised"]
    results = Results.read(folder)
    assert set(results.rows) == {*cells, *starts}
    assert set(numbers) == {"out", *cells}
    assert results.setting["judges"] == {name: fingerprint(load_referee(name)) for name in judges}
    prompts = [one.prompt for one in embedded_prompts()[:12]]
    for row in results.rows.values():
        assert row.samples == prompts
    for cell in cells:
        first = results.rows[cell].columns[Column("R-Precision@10", judges[0])]
        assert numbers[cell] == pytest.approx(first.mean())
    compared = set(results.compared)
    expected = set()
    for cell in cells:
        guide, rest = cell.split(", ", 1)
        mixture = f"{guide}'s choice of mixture, unoptimised"
        expected.add((cell, mixture if cell.endswith("mixture") else "noise, unoptimised"))
        if guide == robust:
            expected.add((cell, f"{control}, {rest}"))
    assert compared == expected, "each with its start, the robust one with the control in its place"

    table = (folder / "table.txt").read_text()
    for name in (*cells, *starts):
        assert name in table
    assert load_image(folder / "contact_sheet.png").ndim == 3
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["recipe"]) == ("finished", "table1")
    assert record["numbers"] == {cell: pytest.approx(numbers[cell]) for cell in cells}

    made: dict[str, dict[str, Any]] = {}
    for cell_folder in sorted(path for path in (folder / "cells").iterdir() if path.is_dir()):
        found = [read_facts(path)["arguments"] for path in sorted((cell_folder / "images").iterdir())]
        assert len(found) == 12
        made[cell_folder.name] = found[0]
    assert len(made) == 8 + 3
    varied = ("referee", "augment", "canvas", "init", "steps")
    assert len({json.dumps({k: v for k, v in one.items() if k not in varied}) for one in made.values()}) == 1, (
        "cells differ in what is named alone"
    )
    named = [tuple(json.dumps(one[name]) for name in varied) for one in made.values()]
    assert len(set(named)) == 11
    assert {one["steps"] for name, one in made.items() if "unoptimised" in name} == {0}
    assert {one["steps"] for name, one in made.items() if "unoptimised" not in name} == {2}


@pytest.mark.slow
@pytest.mark.parametrize(("table", "changed"), [("table1", {"canvas": ["pixels"]}), ("table2", {})])
def test_a_table_that_was_stopped_paints_no_picture_twice(
    table: str, changed: dict[str, list[str]], reproduce: Reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted, original = [0], studio.paint_batch

    def until_the_third(*arguments: Any, **options: Any) -> Any:
        painted[0] += 1
        if painted[0] == 3:
            raise RunError("the power is gone")
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(studio, "paint_batch", until_the_third)
        with pytest.raises(RunError, match="the power is gone"):
            reproduce(table, **changed)
    folder = tmp_path / "run"
    before = pictures(folder)
    assert before
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    lost = next(iter(before))
    lost.write_bytes(lost.read_bytes()[:100])  # and this one was cut short

    numbers = reproduce(table, **changed, resume=folder)
    after = pictures(folder)
    assert [path for path in before if after[path] != before[path]] == [lost]
    assert all(map(is_whole, after))
    assert len(after) > len(before)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    whole = reproduce(table, **changed, out=tmp_path / "at once")
    assert {name: value for name, value in whole.items() if name != "out"} == {
        name: pytest.approx(value, abs=1e-2)  # those that were there before are judged from files of 8 bits
        for name, value in numbers.items()
        if name != "out"
    }
    assert {path.relative_to(folder) for path in after} == {
        path.relative_to(tmp_path / "at once") for path in pictures(tmp_path / "at once")
    }


def test_table_2_compares_sets_with_real_drawings(reproduce: Reproduce, tmp_path: Path, toys: list[str]) -> None:
    numbers = reproduce("table2")
    folder = tmp_path / "run"
    control, robust, *judges = toys[:4]
    sets = [f"mixture, {who}" for who in ("drawn blindly", f"{control}'s choice", f"{robust}'s choice")]
    sets += [control, robust]
    assert set(numbers) == {"out"} | {f"{metric}, {name}" for metric in ("frechet", "clipscore") for name in sets}
    assert len(pictures(folder)) == 5 * 6
    assert load_image(folder / "contact_sheet.png").ndim == 3
    table = (folder / "table.txt").read_text()
    for name in (*judges, *sets, "real drawings"):
        assert name in table
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["recipe"]) == ("finished", "table2")
    names = [one.prompt for one in embedded_prompts() if one.concept is not None][:6]
    lines = (folder / "sets" / "4" / "pictures.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == names


@pytest.mark.slow
@pytest.mark.parametrize("table", ["table1", "table2"])
def test_a_table_with_the_embedded_referees(table: str, tmp_path: Path) -> None:
    numbers = recipes.run(table, "evaluate", {"quick": True, "out": tmp_path / "run", "device": "cpu"})
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    assert any("emoji-robust" in name for name in numbers)


def test_a_resumed_table_reads_the_prompts_of_its_own_call(tmp_path: Path) -> None:
    subset = recipes.find("table1", "evaluate").module.subset
    for prompts in (["a cat", "a dog"], ["a house", "a tree"]):
        named = [Named(text.replace(" ", "-"), Prompt.literal(text)) for text in prompts]
        assert [one.prompt.title for one in load_prompts(subset(tmp_path, named, None))] == prompts
