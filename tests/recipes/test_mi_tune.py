"""`reproduce mi-tune` in small: with an untrained model, so that its figures say nothing, and all is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robustclip import recipes
from robustclip.errors import UsageError, coded

from ..diffusion.tiny import tiny_pipeline

READERS = ["emoji-blip2-judge", "emoji-blip2-judge-disjoint"]
JUDGES = ["emoji-judge", "emoji-judge-disjoint"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "sd"
    tiny_pipeline(folder)
    return folder


def reproduce(**given: Any) -> dict[str, Any]:
    found: dict[str, Any] = recipes.run("mi-tune", "evaluate", {"quick": True, "judges": JUDGES, "size": 16, **given})
    return found


def test_ranks_are_written_and_what_is_scored_is_not_scored_again(pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    reproduce(model=str(pipeline), out=out)
    found = json.loads((out / "ranks.json").read_text())
    own = found[str(pipeline)]
    told = {(row["first"], row["second"]): row for row in own["captions"]}
    assert told["gap", "colours exchanged"]["n"] == told["emoji-judge", "another picture's"]["n"] == 2
    names = {row["first"] for row in own["guidance 5"]}
    assert names == {"gap", "difference", "trajectory", *JUDGES}
    assert {row["what"] for row in own["variance"]} == {"tau", "evaluations"}
    assert "Kendall's tau" in (out / "ranks.txt").read_text()
    kept = sorted((out / "ranks").rglob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in kept}
    reproduce(model=str(pipeline), resume=out)
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert json.loads((out / "ranks.json").read_text())[str(pipeline)] == own


def test_more_of_anything_is_scored_where_a_run_is_resumed(pipeline: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "run", tmp_path / "run" / "ranks" / "sd"
    reproduce(model=str(pipeline), judges=JUDGES[:1], out=out)
    reproduce(model=str(pipeline), judges=JUDGES, samples=4, prompts=3, resume=out)
    for number in range(3):
        scores = json.loads((kept / "guidance-5" / f"{number:03d}.json").read_text())
        assert {name: len(scores[name]) for name in ("gap", *JUDGES)} == dict.fromkeys(("gap", *JUDGES), 4)
    before = (kept / "guidance-5" / "000.json").read_text()
    reproduce(model=str(pipeline), seed=7, resume=out)
    assert (kept / "guidance-5" / "000.json").read_text() != before


def test_snapshots_are_measured_in_order(pipeline: Path, tmp_path: Path) -> None:
    reproduce(parts=["training"], snapshots=[str(pipeline)], out=tmp_path / "run")
    found = json.loads((tmp_path / "run" / "ranks.json").read_text())
    assert [name for name in found if name != "judges"] == ["00 sd"]


@pytest.mark.slow
def test_tuned_models_are_judged_beside_the_model_as_it_is(pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    call = {"parts": ["tune"], "model": str(pipeline), "seeds": [0], "judges": READERS}
    reproduce(**call, rows=["gap"], out=out)
    trained = (out / "tuned" / "gap" / "adapter" / "pytorch_lora_weights.safetensors").stat().st_mtime_ns
    (pool,) = (out / "pool").iterdir()
    assert len(list(pool.glob("*.gap.safetensors"))) == 2  # of two prompts, beside their samples
    reproduce(**call, rows=["gap", "random"], resume=out)
    assert (out / "tuned" / "gap" / "adapter" / "pytorch_lora_weights.safetensors").stat().st_mtime_ns == trained
    found = json.loads((out / "results.json").read_text())
    assert list(found["rows"]) == ["base", "gap", "random"]
    pictures = [sorted((out / "cells" / row / "images").iterdir()) for row in found["rows"]]
    assert [one.name for one in pictures[0]] == [one.name for one in pictures[1]]
    assert pictures[0][0].read_bytes() != pictures[1][0].read_bytes()
    assert all((out / "tuned" / row / "adapter").is_dir() for row in ("gap", "random"))


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({"parts": ["training"]}, coded("no_snapshots")),
        ({"prompts": 61}, coded("too_many", argument="prompts", most=60)),
        ({"samples": 1}, coded("too_few", argument="samples")),
        ({"judges": []}, coded("not_distinct", argument="judges")),
        ({"rows": ["gab"]}, coded("unknown_row", given="gab")),
        ({"parts": ["tune"]}, coded("too_few_judges")),
    ],
)
def test_impossible_calls_are_refused(given: dict[str, Any], check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        reproduce(**given)


@pytest.mark.slow
def test_the_gap_tells_captions_of_scenes_apart_and_the_difference_does_not(tmp_path: Path) -> None:
    """Bands of docs/mutual-information.md: the embedded model, scenes in the styles that it was trained on."""
    recipes.run(
        "mi-tune",
        "evaluate",
        {"judges": JUDGES, "prompts": 24, "samples": 2, "sampling_steps": 2, "scenes": 1, "draws": 1, "repeated": 2}
        | {"split": "guide-styles"}
        | {"device": "cpu", "out": tmp_path / "run"},
    )
    found = json.loads((tmp_path / "run" / "ranks.json").read_text())["emoji-diffusion"]["captions"]
    value = {(row["first"], row["second"]): row["value"] for row in found}
    assert value["gap", "another picture's"] >= 0.9
    assert value["gap", "a thing missing"] >= 0.85
    assert value["gap", "colours exchanged"] >= 0.65
    assert value["difference", "another picture's"] <= 0.25
