"""The table of objectives: lines, means over seeds, and plots, from results as the recipe writes them."""

from __future__ import annotations

import json
from pathlib import Path

import publish_robustness
import pytest

WEAK, STRONG = "l2:1.5@20x3", "l2:1.5@autoattack-light"


def write_result(folder: Path, row: str, seed: int, clean: float, strong: float) -> None:
    def line(metric: str, attack: str, value: float) -> dict[str, object]:
        interval = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 100}
        return {"kind": "value", "metric": metric, "attack": attack, **interval}

    rows = [
        line("top-1 of 98 present", "clean", clean),
        line("top-1 of 98 present", "random l2:1.5", clean),
        line("top-1 of 98 present", WEAK, strong + 0.02),
        line("top-1 of 98 present", STRONG, strong),
        line("low-frequency share", "clean", 0.5),
        line("PAG score (judge emoji-judge, 10 names)", "clean", 0.1),
        line("PAG score (judge emoji-judge, 10 names)", "random l2:12", 0.2),
        line("PAG score (judge emoji-judge, 10 names)", "l2:12@20", 0.8),
    ]
    painting = {"R-Precision of 40": {"value": 0.75, "low": 0.5, "high": 0.9, "n": 24}}
    told = {"row": row, "seed": seed, "seconds": 90.0, "samples": 19200, "rows": rows, "painting": painting}
    file = folder / "rows" / row / f"seed-{seed}" / "result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(told | {"setting": {"attack": WEAK, "strong": STRONG}}))


def test_every_seed_has_a_line_and_several_have_a_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_robustness, "DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    write_result(tmp_path / "a", "text-bank", 0, 0.6, 0.3)
    write_result(tmp_path / "b", "text-bank", 1, 0.7, 0.4)
    write_result(tmp_path / "b", "vanilla", 0, 0.8, 0.0)
    publish_robustness.main([tmp_path / "a", tmp_path / "b"])
    page = (tmp_path / "docs" / "objectives.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[1] for line in lines] == ["0", "0", "1", "mean and range of 2"]
    assert "80.0 (75.0 to 85.0) (20.0)" in lines[0]  # the PAG score, and what noise gave instead
    assert "**35.0** (30.0 to 40.0)" in lines[3]
    assert "19,200 training samples" in page
    for plot in ("objectives.png", "pag_eps.png"):
        assert (tmp_path / "docs" / plot).read_bytes().startswith(b"\x89PNG")
