"""DOODL's tables in small, with untrained models: they say nothing, and all is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robustclip import recipes
from robustclip.data.images import load_image
from robustclip.errors import UsageError, coded
from robustclip.evaluation.generation.results import Column, Results
from robustclip.signatures import typed

from ..diffusion.tiny import tiny_pipeline

CELLS = {"plain sampling", "DOODL, robust", "DOODL, control", "best of N, robust", "one-step guidance, robust"}


@pytest.fixture
def setting(tmp_path: Path, toys: list[str]) -> dict[str, Any]:
    tiny_pipeline(tmp_path / "model")
    given: dict[str, Any] = {"robust": "toy-a", "control": "toy-b", "judges": ["toy-c"], "readers": []}
    return given | {"model": str(tmp_path / "model"), "device": "cpu", "dtype": "float32", "quick": True}


def test_a_table_is_written_and_goes_on_where_it_was_stopped(setting: dict[str, Any], tmp_path: Path) -> None:
    recipe = typed(recipes.find("doodl", "evaluate").function)
    recipe(**setting, parts=["text"], out=tmp_path / "run")
    results = Results.read(tmp_path / "run")
    assert {f"text: {cell}" for cell in CELLS} < results.rows.keys()
    hacking = Column("hacking")
    assert results.value("text: plain sampling", hacking).value == 0
    for cell, guide in (("text: DOODL, robust", "toy-a"), ("text: DOODL, control", "toy-b")):
        risen = [
            results.difference(cell, "text: plain sampling", Column("similarity", who)).value
            for who in (guide, "toy-c")
        ]
        assert results.value(cell, hacking).value == pytest.approx(risen[0] - risen[1], abs=1e-6)
    assert len(results.setting["denoiser sha256"]) == 16
    assert "text: DOODL, robust minus text: DOODL, control" in (tmp_path / "run" / "table.md").read_text()
    kept, lost = sorted((tmp_path / "run" / "cells" / "text-DOODL_robust" / "images").glob("*.png"))
    before, removed = kept.stat().st_mtime_ns, load_image(lost)
    lost.unlink()
    with pytest.raises(UsageError, check=coded("other_arguments", argument="seeds", before=[0], now=[1])):
        recipe(**setting, parts=["text"], seeds=[1], resume=tmp_path / "run")
    recipe(**setting, parts=["exemplars"], resume=tmp_path / "run")
    torch.testing.assert_close(load_image(lost), removed, atol=1 / 255, rtol=0)
    assert kept.stat().st_mtime_ns == before
    again = Results.read(tmp_path / "run")
    assert "exemplars: DOODL" in again.rows
    for name, row in results.rows.items():
        if name == "text: DOODL, robust":
            continue  # of which one picture was painted anew, in a smaller batch
        assert all((again.rows[name].columns[column] == values).all() for column, values in row.columns.items())


EVERY = {
    "samplers": 16,  # 4 samplers at 4 pairs of steps and guidance
    "vocabulary": 4,  # plain, DOODL, best of N, one-step guidance
    "exemplars": 5,  # and the exemplars themselves
    "aesthetics": 6,  # up and down by two methods, unchanged, and the given pictures
    "curve": 4,  # plain, and 1, 2 and 4 steps
    "chain": 4,  # plain and DOODL at 2 and 4 steps
}


SLOW = ("samplers", "vocabulary", "aesthetics")


@pytest.mark.parametrize("part", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in EVERY])
def test_each_part_has_all_its_rows(setting: dict[str, Any], part: str, tmp_path: Path) -> None:
    if part == "vocabulary":
        setting["robust"] = "emoji-robust"  # whose trunk the classifier takes
    typed(recipes.find("doodl", "evaluate").function)(**setting, parts=[part], out=tmp_path / "run")
    results = Results.read(tmp_path / "run")
    assert len(results.rows) == EVERY[part]
    assert all(name.startswith(f"{part}: ") for name in results.rows)
    for row in results.rows.values():
        assert row.columns
        assert all(len(values) == 2 for values in row.columns.values())
        assert all(torch.isfinite(torch.as_tensor(values).double()).all() for values in row.columns.values())
    table = (tmp_path / "run" / "table.md").read_text()
    assert all(name in table for name in results.rows)


def test_who_guides_does_not_judge(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        typed(recipes.find("doodl", "evaluate").function)(**setting | {"judges": ["toy-a"]}, out=tmp_path / "run")
    _, found = recipes.find("doodl", "evaluate").bind({"parts": ["text", "text"], "prompts": 61})
    assert len(found) == 2
