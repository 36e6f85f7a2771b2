"""What a notebook or a prompt shows of public objects: one line, and tables as HTML."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import robustclip
from robustclip.data.images import save_image
from robustclip.data.samples import Batch
from robustclip.errors import coded
from robustclip.evaluation.generation.judgement import JudgeReport
from robustclip.evaluation.report import Report, Row
from robustclip.pages.explain import Explanation
from robustclip.recipes import Trained
from robustclip.synthesis.items import items_of
from robustclip.synthesis.painted import Result
from robustclip.synthesis.prompts import parse_all


def report() -> Report:
    row = Row(**ROW)  # type: ignore[arg-type]
    return Report({"data": "emoji/x", "seed": 0}, {}, [row] * 50, notes=["<script>alert(1)</script>"])


ROW: dict[str, object] = {
    "task": "zero-shot",
    "referee": "emoji-robust",
    "metric": "top-1",
    "attack": "clean",
    "kind": "value",
    "against": "",
    "value": 0.5,
    "low": 0.4,
    "high": 0.6,
    "n": 10,
    "seed": 0,
}


def objects(tmp_path: Path) -> dict[str, object]:
    items = items_of(parse_all([f"a cat {number}" for number in range(40)]), [0])
    drawings = robustclip.data.load_split("emoji", "unseen-styles", range(20))
    trained = Trained({"run": str(tmp_path), "loss": 0.5, **{f"number {number}": number for number in range(99)}})
    return {
        "Result": Result(tmp_path, items, torch.rand(40), {"loss": torch.rand(100, 40)}),
        "LabelledImages": drawings,
        "Card": robustclip.load_referee("emoji-vanilla").card,
        "Batch": Batch(torch.rand(8, 3, 16, 16), ["a"] * 8, torch.arange(8), list("abcdefgh")),
        "Report": report(),
        "Explanation": Explanation(tmp_path / "report.html", report(), [{"id": "x"}] * 99),
        "JudgeReport": JudgeReport({}, []),
        "Trained": trained,
    }


def test_each_is_one_line_that_names_its_kind(tmp_path: Path) -> None:
    for name, one in objects(tmp_path).items():
        told = repr(one)
        assert told.startswith(f"<{name} "), name
        assert "\n" not in told, name
        assert len(told) < 250, name


def test_reports_are_tables_in_a_notebook_and_their_words_no_markup(tmp_path: Path) -> None:
    for one in (report(), Explanation(tmp_path / "x.html", report(), [])):
        shown = one._repr_html_()
        assert "top-1" in shown
        assert "<pre" in shown
        assert "<script>" not in shown


def test_a_training_is_a_dictionary_that_knows_its_folder(tmp_path: Path) -> None:
    found = Trained({"run": str(tmp_path), "loss": 0.5})
    assert found == {"run": str(tmp_path), "loss": 0.5}
    assert isinstance(found, dict)
    assert found.folder == tmp_path
    assert dict(found | {"x": 1})["x"] == 1
    with pytest.raises(robustclip.UsageError, check=coded("not_a_run", folder=tmp_path)):
        found.referee()


def test_a_film_of_a_picture(tmp_path: Path) -> None:
    [item] = items_of(parse_all(["a cat"]), [0])
    frames = torch.rand(3, 3, 16, 16)
    made = Result(tmp_path, [item], torch.ones(1), frames={item.id: frames}, steps_of_frames=[0, 1, 2])
    assert made.film().size[0] > 3 * 16
    (tmp_path / "images").mkdir()
    save_image(frames[0], made.files[0])
    with pytest.raises(robustclip.UsageError, check=coded("no_frames", index=0)):
        Result(tmp_path, [item], torch.ones(1)).film()
