"""The section on Referee-Can-Play: its tables, and what it says of them, from results as the recipe writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import publish_inversion
import pytest
import torch

from robustclip.data.images import save_image
from robustclip.errors import UsageError
from robustclip.evaluation.generation.compositional import Verdict
from robustclip.evaluation.generation.inversion_table import InversionTable
from robustclip.evaluation.intervals import Interval

SETTING = {
    "steps": 160,
    "copies": 8,
    "sampling_steps": 50,
    "score": "matching",
    "reader": "emoji-blip2",
    "model": "emoji-diffusion",
}
CELLS = {"decoded noise": 0, "real scenes": 19, "both": 12, "vlm": 18, "sample-7.5": 2, "vlm-copies-0": 17}


def write_run(folder: Path, cells: dict[str, int], seeds: int | list[int] = 1, **changed: object) -> Path:
    """A run whose cells have the first so many of 20 pictures (a seed) right."""
    named = seeds if isinstance(seeds, list) else list(range(seeds))
    seeds = len(named)
    table = InversionTable(["one", "two"], [f"prompt {number}" for number in range(20) for _ in range(seeds)])
    for cell, right in cells.items():
        hits = torch.arange(20 * seeds) < right * seeds
        table.add(cell, dict.fromkeys(("one", "two"), Verdict(hits, hits, hits, hits)))
        table.values[cell] = {"L": np.full(20 * seeds, 1.5), "L augmented": np.full(20 * seeds, 2.5)}
    if "both" in cells:
        table.seconds["both"] = 3.14
    folder.mkdir()
    table.save(folder, {**SETTING, "seeds": named, **changed})
    save_image(torch.rand(3, 8, 8), folder / "contact_sheet.png")
    return folder


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(publish_inversion, "DOCS", tmp_path / "docs")
    path = tmp_path / "docs" / "results.md"
    path.write_text("# Results\n\nWhat was there.\n")
    return path


def row(page: Path, start: str, title: str = "") -> list[str]:
    text = page.read_text()
    part = text[text.index(title) :]
    (found, *_) = [line for line in part.splitlines() if line.startswith(f"| {start}")]
    return found.strip("| ").split(" | ")


def test_tables_and_what_they_say(page: Path, tmp_path: Path) -> None:
    publish_inversion.main([write_run(tmp_path / "run", CELLS)])
    text = page.read_text()
    assert text.startswith("# Results\n\nWhat was there.\n\n<!-- inversion")
    assert "160 steps, 8 copies" in text
    assert "wins against 29 others" in " ".join(text.split())
    both = row(page, "both", "### What pulls")
    assert both[1:3] == ["20", "60 (39 to 78)"]
    assert both[-2:] == ["3.1", "0.8162 / 0.6209 / 0.7202"]
    assert row(page, "real scenes", "### What pulls")[2].startswith("95 (")
    assert row(page, "decoded noise", "### What pulls")[2].startswith("0 (")
    assert row(page, "vlm-copies-0", "The guide's own losses")[1:] == ["1.50 (1.50 to 1.50)", "2.50 (2.50 to 2.50)"]
    assert row(page, "Alg. 1 is above the model's own pictures (")[-1] == "yes"
    assert row(page, "the referee alone is above Alg. 1")[2].startswith("+30 (")
    assert row(page, "copies help the referee alone")[-1] == "in direction; an interval reaches 0"
    assert "Of 4 comparisons 3 hold by all judges with intervals above 0, 1 in direction alone, and in 0 the" in text
    assert "What we asked" not in text, "no cell answers it"
    assert "is void" not in text
    assert "Table 9" not in text
    assert (page.parent / "results-inversion.webp").is_file()
    before = text
    publish_inversion.main([tmp_path / "run"])
    assert page.read_text() == before, "in its own place"
    page.write_text(before + "\nWhat came after.\n")
    publish_inversion.main([tmp_path / "run"])
    assert page.read_text() == before + "\nWhat came after.\n"


def test_rows_are_of_the_pictures_that_all_of_them_have(page: Path, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "three", {"both": 10, "sample-7.5": 2, "real scenes": 19}, seeds=3),
        write_run(tmp_path / "one", {"noise-0": 3}),
        write_run(tmp_path / "more", {"noise-0.4": 5}),
    ]
    publish_inversion.main(runs)
    assert row(page, "both", "### What pulls")[1] == "60"
    noise = {name: row(page, name, "### Noise")[1:3] for name in ("both", "noise-0", "noise-0.4")}
    assert {name: cells[0] for name, cells in noise.items()} == dict.fromkeys(noise, "20"), "of the seed that all have"
    assert noise["both"][1].startswith("50 (")
    assert noise["noise-0.4"][1].startswith("25 (")
    assert row(page, "Alg. 1 is above the model's own pictures (")[1] == "60"
    assert row(page, "noise of 0.2 is above none")[1:3] == ["20", "+35 (+15 to +55)"]


def test_seeds_are_put_together_wherever_they_were_run(tmp_path: Path) -> None:
    """And a later run's word on a picture is the last."""
    runs = [write_run(tmp_path / "first", {"both": 12, "noise-0": 3}), write_run(tmp_path / "again", {"noise-0": 7})]
    for seed, right in ((1, 4), (2, 6)):
        runs.append(write_run(tmp_path / f"seed {seed}", {"both": right}, seeds=[seed]))
    _, pool = publish_inversion.read(runs)
    table = pool.table(["both"])
    assert table.rate("both", "one", "right").n == 60
    assert table.hits["both"]["one"]["right"].sum() == 12 + 4 + 6
    assert table.values["both"]["L"].tolist() == [1.5] * 60
    assert table.prompts.count("prompt 3") == 3, "one prompt, so that its seeds stay together in a bootstrap"
    assert table.seconds["both"] == pytest.approx(3.14)
    assert pool.table(["both", "noise-0"]).hits["both"]["one"]["right"].sum() == 12
    assert pool.table(["noise-0"]).hits["noise-0"]["one"]["right"].sum() == 7


def test_cells_without_a_picture_in_common_are_no_table(page: Path, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", {"both": 12}), write_run(tmp_path / "b", {"noise-0": 3}, seeds=[1])]
    with pytest.raises(UsageError, match="noise-0, both have no prompt and seed in common"):
        publish_inversion.main(runs)


def test_another_tool_can_keep_the_section() -> None:
    section = f"{publish_inversion.BEGIN}\nbody\n{publish_inversion.END}"
    assert publish_inversion.own_part(f"# Results\n\n{section}\n") == section
    assert publish_inversion.own_part("# Results\n") == ""


def test_judges_who_see_nothing_are_named(page: Path, tmp_path: Path) -> None:
    publish_inversion.main([write_run(tmp_path / "run", CELLS | {"real scenes": 1})])
    assert "**one finds the captions of real scenes no surer than by chance" in page.read_text()


def test_runs_of_another_measurement_are_refused(page: Path, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", CELLS), write_run(tmp_path / "b", CELLS, steps=80)]
    with pytest.raises(UsageError, match=r"b differs from .*a in steps"):
        publish_inversion.main(runs)
    page.write_text(f"{publish_inversion.BEGIN}\n")
    with pytest.raises(UsageError, match="put it where the section ends"):
        publish_inversion.main(runs[:1])


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ([(0.1, 0.3), (0.2, 0.4)], "yes"),
        ([(0.1, 0.3), (-0.1, 0.4)], "in direction; an interval reaches 0"),
        ([(-0.3, -0.1), (-0.4, -0.2)], "no, the opposite"),
        ([(-0.3, -0.1), (-0.4, 0.2)], "opposite in direction; an interval reaches 0"),
        ([(0.1, 0.3), (-0.4, -0.2)], "not told apart"),
        ([(0.0, 0.0), (0.0, 0.0)], "not told apart"),
    ],
)
def test_verdicts(bounds: list[tuple[float, float]], words: str) -> None:
    assert publish_inversion.verdict([Interval((low + high) / 2, low, high, 9) for low, high in bounds]) == words


def test_every_cell_of_the_recipe_has_a_table() -> None:
    from robustclip.recipes import find

    cells = set(find("inversion", "evaluate").module.CELLS)
    assert {cell for row in publish_inversion.TABLES.values() for cell in row} == cells
    assert {name for one in publish_inversion.CLAIMS for name in (one.cell, one.against)} <= cells
    assert set(publish_inversion.PAPER) <= cells
