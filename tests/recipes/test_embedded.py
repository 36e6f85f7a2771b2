"""`reproduce embedded`: its studies are calls that can be made, and one that is done is not done again."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from robustclip import evaluate, list_referees, recipes
from robustclip.errors import UsageError, coded
from robustclip.signatures import bind


def module() -> Any:
    return recipes.find("embedded", "evaluate").module


def test_every_study_is_a_call_that_can_be_made() -> None:
    studies = module().STUDIES
    known = {entry.name for entry in list_referees()}
    assert set(module().QUICK["studies"]) <= set(studies)
    assert len(studies) == len(module().SIGNED) + len(module().OTHERS)
    for name, (referees, settings) in studies.items():
        assert {one.partition("~")[0] for one in referees} <= known, name
        function = inspect.unwrap(evaluate)
        _, faults = bind(function, {"referees": referees, **settings})
        assert not faults, name
    drawn = [repr(one) for one in studies.values()]
    assert len(set(drawn)) == len(drawn), "no two are the same"


def test_studies_are_kept_and_tabled(tmp_path: Path) -> None:
    call = {"studies": ["judges-unseen"], "quick": True, "device": "cpu"}
    recipes.run("embedded", "evaluate", {**call, "out": tmp_path / "run"})
    report = tmp_path / "run" / "studies" / "judges-unseen" / "evaluation.json"
    before = report.stat().st_mtime_ns
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.startswith("## judges-unseen\n")
    assert "| metric | images | emoji-judge | emoji-judge-disjoint |" in table
    recipes.run("embedded", "evaluate", {"resume": tmp_path / "run"})
    assert report.stat().st_mtime_ns == before
    assert (tmp_path / "run" / "table.md").read_text() == table


def test_an_unknown_study(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("unknown_study"), match="did you mean judges"):
        recipes.run("embedded", "evaluate", {"studies": ["judgess"], "out": tmp_path / "run"})
