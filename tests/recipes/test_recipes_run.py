"""Every recipe, shrunk to seconds: it runs, writes what it promises, and its loss falls."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

import robustclip
from robustclip.recipes import CHECKOUT, run
from robustclip.referees.card import Card

BATCH = {"robustify": 16, "pretrain": 32}  # of a quick run; a step with an attack is the dearer one
# Which end in no CLIP: tests/diffusion/test_training.py, tests/recipes/test_pretraining_of_generators.py.
GENERATORS = {"emoji_vqgan", "emoji_vae", "emoji_diffusion", "emoji_blip2"}
TRAINING = sorted(
    path for room in ("robustify", "pretrain") for path in (CHECKOUT / room).glob("*.py") if path.stem not in GENERATORS
)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_training_recipe_run_quickly(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    numbers = run(path.stem.replace("_", "-"), path.parent.name, {"quick": True, "out": out, "device": "cpu"})
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20
    assert fmean(losses[-5:]) < fmean(losses[:5])  # batches differ, and single losses with them
    samples = 20 * BATCH[path.parent.name]
    assert numbers["samples"] == samples
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["numbers"]["loss"] == numbers["loss"]
    assert list((out / "checkpoints").iterdir())
    assert list((out / "tensorboard").iterdir())
    card = Card.load(out / "referee")
    assert card.provenance["samples"] == samples
    assert not {"out", "resume"} & set(card.provenance["arguments"])
    assert (card.threat is not None) == (path.parent.name == "robustify")
    referee = robustclip.load_referee(out / "referee")
    assert referee.embed_texts(["a turtle"]).shape == (1, 384)
