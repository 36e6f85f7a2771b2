"""CLIP^-1: what its flags change, resumption, faults, and the study of it in small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import robustclip
from robustclip import recipes
from robustclip.data.images import load_image, save_image
from robustclip.errors import UsageError
from robustclip.evaluation.generation.results import Column, Results
from robustclip.referees.toy import toy_referee
from robustclip.runs.rng import generator
from robustclip.signatures import typed
from robustclip.synthesis.guides import Guides, Reference
from robustclip.synthesis.painted import Result
from robustclip.synthesis.prompts import parse_all
from robustclip.synthesis.terms import moving_peak

SHORT = {"steps": 4, "views": 2, "fit_steps": 4, "width": 16, "layers": 2, "init": "grey", "device": "cpu"}


@pytest.fixture
def paint(tmp_path: Path) -> Callable[..., Result]:
    def call(*prompts: str, **changed: Any) -> Result:
        place = {} if "resume" in changed else {"out": tmp_path / f"run {len(list(tmp_path.iterdir()))}"}
        return robustclip.synthesize(
            list(prompts), toy_referee(), recipe="inr", **SHORT | {"dtype": "float32"} | place | changed
        )

    return call


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of 6 pictures with captions."""
    folder = tmp_path / "pairs"
    for index in range(6):
        save_image(torch.rand(3, 20, 20, generator=generator(0, "pairs", index)), folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"thing {index}\n")
    return folder


def guides() -> Guides:
    return Guides.load(toy_referee(), device=torch.device("cpu"), dtype="float32")


def test_the_rates_of_layers_are_a_gaussian_that_moves_from_first_to_last() -> None:
    rates = [[moving_peak(layer, 5, 9, 1.0)(step) for layer in range(5)] for step in (0, 2, 8)]
    assert rates[0] == pytest.approx([1, 0.6065, 0.1353, 0.0111, 0.000335], abs=1e-4)  # exp(-d^2 / 2)
    assert rates[1] == pytest.approx([0.6065, 1, 0.6065, 0.1353, 0.0111], abs=1e-4)  # 4 * 2 / 8 layers on
    assert rates[2] == pytest.approx(rates[0][::-1])


def test_a_network_renders_at_another_size(paint: Callable[..., Result]) -> None:
    small, large = paint("a cat"), paint("a cat", render="48x48")
    assert small.images.shape == (1, 3, 16, 16)
    assert load_image(large.files[0]).shape == (3, 48, 48)
    assert torch.allclose(large.images[..., 1::3, 1::3], small.images, atol=1e-4)
    seen = toy_referee().embed_images(large.images) @ toy_referee().embed_texts(["a cat"]).T
    assert large.similarity.item() == pytest.approx(seen.item(), abs=1e-5)


def test_a_reference_moves_the_targets_of_texts(paint: Callable[..., Result], pairs: Path) -> None:
    plain, corrected = paint("a cat"), paint("a cat", reference=str(pairs))
    assert not torch.allclose(plain.images, corrected.images, atol=1e-3)
    reference = Reference(str(pairs), guides(), 100)
    assert len(reference.pairs[0].texts) == 6
    prompt = parse_all([f"a cat:0.5 | image:{pairs / '0.png'}"])
    (raw,), (found,) = guides().targets(prompt), reference.targets(guides(), prompt, neighbours=3, blending=2.0)
    assert torch.equal(found.directions[0, 1], raw.directions[0, 1]), "a picture has no modality gap"
    assert not torch.allclose(found.directions[0, 0], raw.directions[0, 0], atol=1e-3)
    assert found.weights.tolist() == [[0.5, 1.0, 1.0, 0.0]]


def test_a_run_goes_on_where_it_was_stopped(paint: Callable[..., Result]) -> None:
    made = paint("a cat", "a dog")
    kept, lost = made.files
    times, before = kept.stat().st_mtime_ns, load_image(lost)
    lost.unlink()
    paint("a cat", "a dog", resume=made.folder)
    assert kept.stat().st_mtime_ns == times
    assert torch.allclose(load_image(lost), before, atol=0.01)


@pytest.mark.parametrize(
    "changed",
    [
        {"reference": "nowhere"},
        {"reference": "emoji/nothing"},
        {"reference": "without captions"},
        {"neighbours": 0},
        {"blending": -1.0},
        {"render": "big"},
        {"spread": 0.0},
        {"omega": 0.0},
        {"reference_pairs": 0},
    ],
    ids=str,
)
def test_faults_of_a_call_are_told(changed: dict[str, Any], paint: Callable[..., Result], tmp_path: Path) -> None:
    if changed == {"reference": "without captions"}:
        for name in ("a", "b"):
            save_image(torch.rand(3, 8, 8), tmp_path / "classes" / name / "0.png")
        changed = {"reference": str(tmp_path / "classes")}
    with pytest.raises(UsageError):
        paint("a cat", **changed)


@pytest.mark.slow
def test_the_study_has_every_cell_and_goes_on(toys: list[str], tmp_path: Path) -> None:
    control, robust, *judges = toys[:4]
    recipe = typed(recipes.find("inr", "evaluate").function)
    named = {"control": control, "robust": robust, "judges": judges, "device": "cpu", "dtype": "float32", "quick": True}
    numbers = recipe(**named, out=tmp_path / "run")
    results = Results.read(tmp_path / "run")
    rows = {f"{guide}, {way}" for guide in toys[:2] for way in ("start", "pixels", "INR", "INR, corrected")}
    assert set(results.rows) == rows == set(numbers) - {"out"}
    for name, row in results.rows.items():
        similar = [row.columns[Column("similarity", who)] for who in ("guide", *judges)]
        assert row.columns[Column("hacking")] == pytest.approx(similar[0] - (similar[1] + similar[2]) / 2, abs=1e-4), (
            name
        )
        assert (row.seconds is None) == name.endswith("start")
    assert (tmp_path / "run" / "judgement.json").is_file()
    assert (tmp_path / "run" / "contact_sheet.png").is_file()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("images/*.png")}
    assert len(files) == 8 * 6
    assert recipe(**named, resume=tmp_path / "run") == numbers
    assert {path: path.stat().st_mtime_ns for path in files} == files
