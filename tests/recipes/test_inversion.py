"""The tables of Referee-Can-Play in small: with untrained models, so that they say nothing, and all is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from robustclip import recipes
from robustclip.data.images import load_image
from robustclip.data.pairs import compose_pair, compositional_prompts
from robustclip.diffusion.pipelines import save_diffusion
from robustclip.errors import UsageError, coded
from robustclip.evaluation.generation.compositional import judge_pairs
from robustclip.evaluation.generation.results import Column, Results
from robustclip.referees import pair_readers
from robustclip.referees.card import Card
from robustclip.referees.pair_readers import load_pair_reader, new_mini, save_mini
from robustclip.referees.registry import load_referee
from robustclip.synthesis.pictures import is_whole, read_facts

Reproduce = Callable[..., dict[str, Any]]
PAIRS = compositional_prompts()[:2]
PAINTED = ["both", "vlm-copies-0", "sample-7.5"]
BOUNDS = ["decoded noise", "real scenes"]


def module() -> Any:
    return recipes.find("inversion", "evaluate").module


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Each image tower is read from its file once, for they are frozen: reading them is most of these tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_readers, "load_referee", cache(load_referee))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a guide, two judges on other towers, one on the guide's, and a diffusion model, all untrained."""
    home = tmp_path_factory.mktemp("world")
    sizes = {"hidden": 8, "layers": 2, "heads": 2, "queries": 2, "shared": 4}
    towers = {"guide": "emoji-vanilla", "near": "emoji-vanilla", "one": "emoji-judge", "two": "emoji-judge-disjoint"}
    clips = {tower: pair_readers.load_referee(tower) for tower in set(towers.values())}
    for seed, (name, tower) in enumerate(towers.items()):
        preprocess = clips[tower].preprocess.config()
        card = Card(name=name, family="blip2-mini", architecture={}, preprocess=preprocess, logit_scale=1.0)
        reader = new_mini(clips[tower], map(str, PAIRS), **sizes, card=card, seed=seed)  # type: ignore[arg-type]
        save_mini(reader, home / name, tower, sizes, provenance={})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4,) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=384,
            attention_head_dim=4,
            norm_num_groups=4,
        )
    save_diffusion(home / "diffusion", vae, unet, {"num_train_timesteps": 1000}, {})
    return home


@pytest.fixture(scope="module")
def reproduce(world: Path) -> Reproduce:
    def call(**changed: object) -> dict[str, Any]:
        named = {"judges": [str(world / "one"), str(world / "two")], "reader": str(world / "guide")}
        named |= {"model": str(world / "diffusion"), "device": "cpu", "cells": PAINTED, "quick": True}
        return recipes.run("inversion", "evaluate", {**named, **changed})  # type: ignore[no-any-return]

    return call


@pytest.fixture(scope="module")
def run(reproduce: Reproduce, world: Path) -> tuple[Path, dict[str, Any]]:
    return world / "run", reproduce(out=world / "run")


def pictures(folder: Path) -> dict[str, int]:
    """Every picture, and when it was painted."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("images/*.png")}


def test_every_row_is_judged_and_told(run: tuple[Path, dict[str, Any]], world: Path) -> None:
    folder, numbers = run
    told = json.loads((folder / "results.json").read_text())
    assert list(told["rows"]) == [*BOUNDS, *PAINTED]
    assert (told["setting"]["steps"], told["setting"]["copies"]) == (3, 2)
    results = Results.read(folder)
    judges = {str(world / "one"), str(world / "two"), "all judges"}
    rates = {(rate, judge) for rate in ("right", "attributes", "first", "second", "both") for judge in judges}
    for cell, row in results.rows.items():
        assert row.samples == [str(pair) for pair in PAIRS]
        assert set(row.columns) == {*rates, ("L", ""), ("L augmented", "")}
        assert numbers[cell] == results.value(cell, Column("right", "all judges")).value
        assert (row.seconds is None) == (cell in BOUNDS)
    assert {one["row"] for one in told["differences"]} == {*BOUNDS, *PAINTED} - {"both"}
    assert len(pictures(folder)) == 5 * 2
    table = (folder / "table.txt").read_text()
    for words in (*BOUNDS, *PAINTED, "chance 3.3", "L augmented"):
        assert words in table
    assert load_image(folder / "contact_sheet.png").ndim == 3
    for cell in (*PAINTED, "real-scenes"):
        assert load_image(folder / "cells" / cell / "contact_sheet.png").ndim == 3
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["notes"]["left"]) == ("finished", [])


def test_rows_are_what_they_are_named(run: tuple[Path, dict[str, Any]], world: Path) -> None:
    folder, _ = run
    cells = {cell: sorted((folder / "cells" / cell / "images").iterdir()) for cell in ("both", "vlm-copies-0")}
    cells["noise"] = sorted((folder / "cells" / "decoded-noise" / "images").iterdir())
    asked = {cell: read_facts(files[0])["arguments"] for cell, files in cells.items()}

    def changed(cell: str) -> dict[str, Any]:
        return {name: value for name, value in asked[cell].items() if value != asked["both"][name]}

    assert changed("vlm-copies-0") == {"sds": False, "copies": 0}
    assert changed("noise") == {"steps": 0, "copies": 0}
    scenes = [load_image(path) for path in (folder / "cells" / "real-scenes" / "images").iterdir()]
    composed = [compose_pair(pair, split="unseen-styles", seed=0) for pair in PAIRS]
    for scene in composed:
        assert min(float((scene - one).abs().max()) for one in scenes) < 1 / 255
    judge = load_pair_reader(world / "one")
    read = torch.stack([(scene * 255).round() / 255 for scene in composed])
    hits = judge_pairs(judge, read, PAIRS, score="sum").attributes.int().tolist()
    columns = Results.read(folder).rows["real scenes"].columns
    assert columns[Column("attributes", str(world / "one"))].tolist() == hits
    guide = load_pair_reader(world / "guide")
    with torch.no_grad():
        own = guide.pair_losses(read, [str(one) for one in PAIRS])
        assert columns[Column("L")].tolist() == pytest.approx(own.tolist(), 1e-3)


def test_a_run_goes_on_with_what_is_missing_and_more_cells(
    run: tuple[Path, dict[str, Any]], reproduce: Reproduce, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    before = pictures(folder)
    lost = sorted((folder / "cells" / "sample-7.5" / "images").iterdir())[1]
    was = load_image(lost)
    lost.write_bytes(lost.read_bytes()[:100])
    with pytest.raises(UsageError, check=coded("other_arguments", argument="score", before="sum", now="matching")):
        reproduce(resume=folder, score="matching")
    numbers = reproduce(resume=folder, cells=["sample-30"])
    after = pictures(folder)
    assert [folder / path for path in before if after[path] != before[path]] == [lost]
    assert is_whole(lost)
    assert float((load_image(lost) - was).abs().max()) < 1.5 / 255, "whoever shares its batch, but for rounding"
    assert list(numbers) == ["out", *BOUNDS, *PAINTED, "sample-30"]
    assert {name: numbers[name] for name in PAINTED} == {name: run[1][name] for name in PAINTED}


def test_a_budget_ends_it_before_a_cell(
    run: tuple[Path, dict[str, Any]], reproduce: Reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    shutil.rmtree(folder / "cells" / "both")
    numbers = reproduce(resume=folder, budget=1e-6)
    assert list(numbers) == ["out", *BOUNDS, *PAINTED[1:]], "what is there costs nothing"
    assert (
        f"the budget left out both: resume with robustclip reproduce evaluate/inversion --resume {folder}"
        in capsys.readouterr().err
    )
    assert json.loads((folder / "run.json").read_text())["notes"]["left"] == ["both"]


@pytest.mark.parametrize(("judge", "code"), [("guide", "judge_guides"), ("near", "same_tower")])
def test_who_guides_does_not_judge(judge: str, code: str, world: Path, reproduce: Reproduce, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded(code)):
        reproduce(judges=[str(world / judge)], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_clip_of_a_cell_lends_its_tower_to_a_judge(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = module()
    jury, guide = {"one": load_pair_reader(world / "one")}, load_pair_reader(world / "guide")
    found.refuse_guides(jury, guide, ["both", "referee-vanilla"])
    monkeypatch.setitem(found.CELLS, "referee-vanilla", {"referee": ["emoji-judge"]})
    with pytest.raises(UsageError, check=coded("same_tower", judge="one"), match="emoji-judge"):
        found.refuse_guides(jury, guide, ["both", "referee-vanilla"])


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({"cells": ["nobody\n"]}, coded("unknown_cell", given="nobody\n")),
        ({"cells": []}, coded("not_distinct", argument="cells")),
        ({"cells": ["vlm", "vlm"]}, coded("not_distinct", argument="cells")),
        ({"judges": []}, coded("not_distinct", argument="judges")),
        ({"prompts": 61}, coded("too_many", argument="prompts", most=60)),
    ],
)
def test_what_cannot_be_asked(given: dict[str, object], check: Any, reproduce: Reproduce, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=check):
        reproduce(out=tmp_path / "run", **given)


def test_every_cell_is_a_call_that_can_be_made() -> None:
    found = module()
    painter = recipes.find("referee-can-play", "synthesize")
    assert set(found.HEADLINE) < set(found.CELLS)
    seen = set()
    for cell in found.CELLS:
        if cell.startswith("sample-"):
            continue
        asked = found.changed(cell, "emoji-blip2")
        bound, faults = painter.bind({"prompt": ["a red fish and a blue hat"], **asked})
        assert not faults, cell
        assert all(bound[name] == value for name, value in asked.items()), cell
        seen.add(json.dumps(asked, sort_keys=True))
    assert len(seen) == len(found.CELLS) - 2, "no two cells are the same"
