"""The demo, as short as it gets: it writes what it says it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import robustclip
from robustclip.demo import NAME, run_demo
from robustclip.errors import UsageError


def test_the_demo_writes_a_table_a_picture_and_a_referee(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    shown = run_demo(out=out, steps=2, limit=8, attack="L2:1.50@2", device="cpu", dtype="float32")
    assert (out / "gradients.png").stat().st_size > 1000
    assert NAME in (out / "table.txt").read_text()
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    assert {row["referee"] for row in rows} == {"emoji-vanilla", NAME}
    assert {"clean", "l2:1.5@2", "random l2:1.5"} <= {row["attack"] for row in rows}
    page = (out / "explanation" / "report.html").read_text()
    assert NAME in page
    assert page.count('class="case"') == 12
    referee = robustclip.load_referee(out / "referee")
    assert referee.card.threat == robustclip.ThreatModel("l2", 1.5, 64)
    assert (out / "referee" / "open_clip_model.safetensors").is_file()
    assert "Next: robustclip evaluate" in shown["summary"]
    assert robustclip.referees.registry.find(NAME) is None  # so that a second demo may be run


def test_an_attack_that_the_report_does_not_take_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run_demo(out=tmp_path / "demo", attack="l2:1.5@autoattack-light", device="cpu")
    assert not (tmp_path / "demo").exists()
