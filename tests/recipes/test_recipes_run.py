"""Every recipe, shrunk to seconds: it runs, writes what it promises, and its loss falls."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from statistics import fmean

import pytest

import robustclip
from robustclip.errors import RunError
from robustclip.flags import LoopFlags
from robustclip.recipes import CHECKOUT, find, run
from robustclip.referees.card import Card
from robustclip.robustification.distance import tune_distance
from robustclip.robustification.texts import train_texts
from robustclip.robustification.trainer import train
from robustclip.signatures import typed

BATCH = {"robustify": 16, "pretrain": 32}  # of a quick run; a step with an attack is the dearer one
# Which end in no CLIP: tests/diffusion/test_training.py, tests/referees/test_scene_reader.py and others.
GENERATORS = {"emoji_vqgan", "emoji_vae", "emoji_diffusion", "emoji_blip2", "emoji_scenes"}
TRAINING = sorted(
    path for room in ("robustify", "pretrain") for path in (CHECKOUT / room).glob("*.py") if path.stem not in GENERATORS
)


# In the fast tests one recipe of each group trains its own tower. The others of robustify, whose training it shares,
# start from a toy, except leaf, which trains the text tower.
QUICKEST = {"emoji", "emoji_vanilla"}
TOYS = [path for path in TRAINING if path.parent.name == "robustify" and path.stem not in QUICKEST | {"leaf"}]
PRESETS = {path.stem for path in TOYS if "@preset(" in path.read_text()}
CASES = [
    *(pytest.param(path, True, id=f"{path.stem}-toy") for path in TOYS),
    *(
        pytest.param(path, False, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in QUICKEST))
        for path in TRAINING
        if path.stem not in PRESETS
    ),
]


LOOPS = {"train": train, "train_texts": train_texts, "tune_distance": tune_distance}
TRAINED = [path for path in TRAINING if "@preset(" not in path.read_text()]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_every_flag_of_a_training_recipe_is_read_by_it_or_by_its_loop(path: Path) -> None:
    (recipe,) = (node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "recipe")
    assert isinstance(recipe, ast.FunctionDef)
    read = {node.id for part in recipe.body for node in ast.walk(part) if isinstance(node, ast.Name)}
    (loop,) = read & set(LOOPS)
    flags = {argument.arg for argument in recipe.args.kwonlyargs}
    flags = flags - {"loop"} | vars(LoopFlags()).keys() if "loop" in flags else flags
    assert "with_flags" in read
    assert flags - read <= set(inspect.signature(LOOPS[loop]).parameters)


@pytest.mark.parametrize(("path", "is_toy"), CASES)
def test_a_training_recipe_run_quickly(path: Path, is_toy: bool, tmp_path: Path, toys: list[str]) -> None:
    out = tmp_path / "run"
    given: dict[str, object] = {"start": toys[0]} if is_toy else {}
    if path.stem == "clipag_vit_b32":
        given = {"start": "emoji-vanilla-long"} | given
    numbers = run(path.stem.replace("_", "-"), path.parent.name, {"quick": True, "out": out, "device": "cpu"} | given)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20
    assert is_toy or fmean(losses[-5:]) < fmean(losses[:5])  # batches differ, and single losses with them
    samples = 20 * BATCH[path.parent.name]
    assert numbers["samples"] == samples
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["numbers"]["loss"] == numbers["loss"]
    ran = {"steps": 20, "batch_size": BATCH[path.parent.name], "warmup": 5}
    assert {name: record["arguments"][name] for name in ran} == ran
    assert list((out / "checkpoints").iterdir())
    assert list((out / "tensorboard").iterdir())
    card = Card.load(out / "referee")
    assert card.provenance["samples"] == samples
    assert not {"out", "resume"} & set(card.provenance["arguments"])
    assert {name: card.provenance["arguments"][name] for name in ran} == ran
    assert card.provenance["started_from"] is None or (
        card.provenance["started_from"]["name"] == card.provenance["arguments"]["start"]
    )
    assert (card.threat is not None) == (path.parent.name == "robustify")
    referee = robustclip.load_referee(out / "referee")
    assert referee.embed_texts(["a turtle"]).shape == (1, 16 if is_toy else 384)


EVERY = sorted(path for path in CHECKOUT.glob("*/*.py") if "@preset(" not in path.read_text())


@pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_record_is_taken_of_what_runs_and_not_of_what_was_asked(path: Path) -> None:
    """`locals()` is read before the run, and nothing changes a parameter between the two."""
    (function,) = (
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == "recipe"
    )
    parameters = {argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]}
    (taken,) = (node.lineno for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == "locals")
    begun = next((at for at in starts_of(function) if at >= taken), function.end_lineno or 0)
    changed = {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and taken < node.lineno < begun
    }
    assert not changed & parameters - RESOLVED.get(path.stem, set())


RESOLVED = {
    "fare_vit_l14": {"data"},  # None is the embedded set, which the run's notes name
    "inversion": {"cells", "seeds"},  # put into the record as well
    "doodl": {"crops", "batch_size", "seeds", "parts"},
    "robustness": {"rows"},
}


def starts_of(function: ast.FunctionDef) -> list[int]:
    """The lines where a run begins or is handed on."""
    names = {"start", "open", "run"}
    return sorted(
        node.lineno
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names
    )


@pytest.mark.parametrize("recipe", ["clipag-vit-b32", "fare-vit-l14"])
def test_a_quick_run_starts_from_where_it_is_told(recipe: str, tmp_path: Path) -> None:
    found = find(recipe, "robustify")
    asked: list[tuple[str, object]] = []

    def load(start: str, **how: object) -> None:
        asked.append((start, how.get("architecture")))
        raise RunError("seen enough")

    checkpoint: dict[str, object] = {"start": "mine.pt"}
    if recipe == "clipag-vit-b32":
        checkpoint |= {"architecture": "RN50", "quick_gelu": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found.module, "load_referee", load)
        for given in ({}, checkpoint, {"start": "emoji-vit-vanilla"}):
            with pytest.raises(RunError, match="seen enough"):
                typed(found.function)(quick=True, out=tmp_path / "run", device="cpu", **given)
    assert asked == [("emoji-vanilla", None), ("mine.pt", checkpoint.get("architecture")), ("emoji-vit-vanilla", None)]
