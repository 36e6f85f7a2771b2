"""`reproduce robustness` in small: rows trained on equal samples, measured once, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustclip import recipes
from robustclip.errors import UsageError, coded

STRONG = "l2:2@apgd-ce:2"


@pytest.mark.slow
def test_rows_are_trained_measured_and_not_done_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    call = {"rows": ["trades"], "quick": True, "device": "cpu", "eps": 2}
    numbers = recipes.run("robustness", "evaluate", {**call, "out": out})
    assert set(numbers) == {"out", "trades, seed 0"}
    found = json.loads((out / "rows" / "trades" / "seed-0" / "result.json").read_text())
    assert found["samples"] == 20 * 16
    assert found["arguments"]["objective"] == "trades"
    values = {(one["metric"], one["attack"]) for one in found["rows"] if one["kind"] == "value"}
    metric = next(metric for metric, _ in values if metric.startswith("top-1"))
    assert {(metric, attack) for attack in ("clean", "random l2:2", "l2:2@2", STRONG)} <= values
    assert ("low-frequency share", "clean") in values
    head, _, row = (out / "table.md").read_text().splitlines()
    assert f"{metric}, {STRONG}" in head
    assert row.startswith("| trades, seed 0 | ")
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = recipes.run("robustness", "evaluate", {"resume": out})
    assert {name: again[name] for name in numbers} == numbers
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == trained
    with pytest.raises(UsageError, check=coded("other_arguments", argument="images", before=8, now=9)):
        recipes.run("robustness", "evaluate", {"resume": out, "images": 9})


def test_an_unknown_row(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("unknown_row"), match="did you mean trades"):
        recipes.run("robustness", "evaluate", {"rows": ["trade"], "out": tmp_path / "run"})
