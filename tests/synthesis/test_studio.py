from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustclip import recipes
from robustclip.data.images import load_image
from robustclip.errors import Interrupted, RunError, UsageError, coded
from robustclip.runs.folder import Run, versions
from robustclip.synthesis import studio
from robustclip.synthesis.items import Item, items_of
from robustclip.synthesis.painted import Painted, Watch
from robustclip.synthesis.pictures import is_whole, read_facts
from robustclip.synthesis.prompts import parse_all
from robustclip.synthesis.studio import paint_all

sys.path.insert(0, str(Path(__file__).parent))
from toy_painting import STEPS, noise

RECIPE = Path(__file__).with_name("toy_painting.py")
PATIENCE = 120  # seconds


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", recipe="toy", arguments={}, verb="synthesize")


def items(count: int = 5) -> list[Item]:
    return items_of(parse_all([f"picture {number}" for number in range(count)]))


class Painter:
    """Remembers what it was asked to paint."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, batch: Sequence[Item], watch: Watch) -> Painted:
        self.batches.append([item.id for item in batch])
        return noise(batch, watch)


def test_a_run_leaves_every_picture_and_what_speaks_of_them(run: Run) -> None:
    asked, painter = items(), Painter()
    result = paint_all(asked, painter, run=run, steps=STEPS, batch_size=2, facts={"recipe": "toy"})
    assert [len(batch) for batch in painter.batches] == [2, 2, 1]
    found = sorted(path.relative_to(run.folder).as_posix() for path in run.folder.rglob("[!.]*.*"))
    names = [item.id for item in asked]
    assert found == sorted(
        [f"images/{name}.png" for name in names]
        + [f"frames/{name}.{ending}" for name in names for ending in ("gif", "png")]
        + ["contact_sheet.png", "pictures.jsonl", "preview.png", "run.json"]
    )
    facts = read_facts(run.folder / "images" / "picture-3-s0.png")
    assert facts.pop("versions") == versions()
    assert facts == {"id": "picture-3-s0", "prompt": "picture 3", "seed": 0, "recipe": "toy"} | {
        "similarity": pytest.approx(result.similarity[3].item())
    }
    lines = [json.loads(line) for line in (run.folder / "pictures.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == names
    assert lines[3] == {key: value for key, value in facts.items() if key != "recipe"} | {
        "file": "images/picture-3-s0.png"
    }
    assert Run.open(run.folder).record["notes"]["pictures"] == 5


def test_the_result_has_all_of_it(run: Run) -> None:
    asked = items()
    result = paint_all(asked, noise, run=run, steps=STEPS, batch_size=2)
    alone = noise(asked[3:4], lambda *_: None)
    assert len(result) == 5
    assert result.images.shape == (5, 3, 8, 8)
    assert torch.equal(result.images[3], alone.images[0])  # whatever the batch, and not rounded
    assert torch.allclose(result.similarity[3:4], alone.similarity)
    assert torch.equal(result.trace["similarity"][:, 3:4], alone.trace["similarity"])
    assert torch.equal(result.frames["picture-3-s0"], alone.frames[:, 0])
    assert result.steps_of_frames == [1, 2, 3]
    numbers = result.numbers()
    assert numbers["pictures"] == 5
    assert numbers["similarity"] == pytest.approx(result.similarity.mean().item())
    assert numbers["each"][3]["file"] == str(run.folder / "images" / "picture-3-s0.png")
    assert (result._repr_png_() or b"").startswith(b"\x89PNG")


def test_what_is_there_is_not_painted_again(run: Run) -> None:
    asked = items()
    paint_all(asked, noise, run=run, steps=STEPS)
    images = run.folder / "images"
    stamps = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    (images / "picture-1-s0.png").unlink()
    cut = images / "picture-2-s0.png"
    cut.write_bytes(cut.read_bytes()[:-9])
    (images / ".picture-0-s0.png.1234.tmp").write_text("a draft")
    other = items_of(parse_all(["another prompt"]))[0]
    painter = Painter()
    asked[4] = replace(other, id=asked[4].id)
    result = paint_all(asked, painter, run=run, steps=STEPS)
    assert painter.batches == [["picture-1-s0", "picture-2-s0", "picture-4-s0"]]
    assert {path.name for path in images.iterdir()} == stamps.keys()
    assert all(map(is_whole, images.iterdir()))
    assert (images / "picture-0-s0.png").stat().st_mtime_ns == stamps["picture-0-s0.png"]
    assert torch.equal(result.images[0], load_image(images / "picture-0-s0.png"))
    assert result.trace["similarity"].isnan().all(dim=0).tolist() == [True, False, False, True, False]
    assert not result.similarity.isnan().any()
    again = Painter()
    paint_all(asked, again, run=run, steps=STEPS)
    assert not again.batches


def test_large_runs_are_read_when_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio, "SMALL", 4)
    monkeypatch.setattr(studio, "FEW", 4)
    result = paint_all(items(), noise, run=run, steps=STEPS)
    assert not result.kept
    assert not result.trace
    assert not (run.folder / "frames").exists()
    assert result.images.shape == (5, 3, 8, 8)


def test_the_preview_shows_the_best_so_far(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustclip.synthesis.watching.PREVIEW_EVERY", 0)
    shades = {1: (0.2, 0.9), 2: (0.6, 0.5), 3: (0.4, 0.7)}
    seen = []

    def paint(batch: Sequence[Item], watch: Watch) -> Painted:
        for step, values in shades.items():
            similarity = torch.tensor(values)
            images = similarity[:, None, None, None].expand(2, 3, 8, 8)
            watch(step, images, {"similarity": similarity})
            with Image.open(run.folder / "preview.png") as shown:
                width = shown.width
                seen.append([shown.getpixel((width // 4, 50)), shown.getpixel((width * 3 // 4, 50))])
        return Painted(images, similarity)

    paint_all(items(2), paint, run=run, steps=3)
    assert [[round(pixel[0] / 255, 1) for pixel in pair] for pair in seen] == [[0.2, 0.9], [0.6, 0.9], [0.6, 0.9]]
    assert read_facts(run.folder / "preview.png")["best"] == pytest.approx([0.6, 0.9])


def test_progress_tells_pictures_steps_and_similarity(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    paint_all(items(), noise, run=run, steps=STEPS, batch_size=4)
    told = capsys.readouterr().err
    assert "picture 5 of 5: step 6/6  similarity 0." in told
    assert "best 0." in told
    assert "images/s  ETA 0:00" in told


def test_a_signal_stops_between_steps_and_leaves_what_is_done(run: Run) -> None:
    def paint(batch: Sequence[Item], watch: Watch) -> Painted:
        if batch[0].id == "picture-2-s0":
            os.kill(os.getpid(), signal.SIGTERM)
        return noise(batch, watch)

    told = f"stopped with 2 of 5 pictures, which stay: robustclip synthesize toy --resume {run.folder} goes on"
    with pytest.raises(Interrupted, match=told) as stop, run:
        paint_all(items(), paint, run=run, steps=STEPS, batch_size=2)
    assert stop.value.signal == signal.SIGTERM
    assert Run.open(run.folder).status == "interrupted"
    assert len(list((run.folder / "images").iterdir())) == 2


def test_a_batch_may_take_no_steps(run: Run) -> None:
    result = paint_all(items(), lambda batch, _: noise(batch, lambda *_: None), run=run, steps=0, batch_size=2)
    assert result.images.shape == (5, 3, 8, 8)


@pytest.mark.parametrize("spoilt", ["images", "similarity"])
def test_what_is_not_a_number_is_no_picture(run: Run, spoilt: str) -> None:
    def paint(batch: Sequence[Item], watch: Watch) -> Painted:
        painted = noise(batch, watch)
        getattr(painted, spoilt)[1] = math.nan
        return painted

    with pytest.raises(RunError, check=coded("not_finite", pictures="picture-1-s0")):
        paint_all(items(2), paint, run=run, steps=STEPS)
    assert not (run.folder / "images").exists()


def test_a_disk_that_takes_no_more_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(studio, "write_picture", full)
    with pytest.raises(
        RunError, match=r"No space left on device.*--resume", check=coded("not_written", path=run.folder)
    ):
        paint_all(items(), noise, run=run, steps=STEPS, save_frames=False)


def test_faulty_calls_are_told(run: Run) -> None:
    with pytest.raises(UsageError, check=coded("no_prompts")):
        paint_all([], noise, run=run, steps=STEPS)
    with pytest.raises(UsageError, match="batch_size 0"):
        paint_all(items(), noise, run=run, steps=STEPS, batch_size=0)
    with pytest.raises(UsageError, check=coded("listed_twice", name="picture-0-s0")):
        paint_all([*items(1), *items(2)], noise, run=run, steps=STEPS)


def test_a_recipes_resume_flag_goes_on_with_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = recipes.run(str(RECIPE), "synthesize", {"prompts": ["a cat", "a dog"], "out": out, "seeds": "0..1"})
    assert first["pictures"] == 4
    assert [one["id"] for one in first["each"]] == ["a-cat-s0", "a-cat-s1", "a-dog-s0", "a-dog-s1"]
    (out / "images" / "a-cat-s1.png").unlink()
    run = Run.open(out)
    assert run.status == "finished"
    assert run.record["verb"] == "synthesize"
    assert run.resumption == f"robustclip synthesize {RECIPE} --resume {out}"
    stamp = (out / "images" / "a-dog-s0.png").stat().st_mtime_ns
    again = recipes.run(str(RECIPE), "synthesize", {"resume": out})
    assert again == first
    assert (out / "images" / "a-cat-s1.png").exists()
    assert (out / "images" / "a-dog-s0.png").stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, check=coded("exists")):
        recipes.run(str(RECIPE), "synthesize", {"prompts": ["a cat"], "out": out})


@contextmanager
def painting(painted: Path, count: int, **given: object) -> Iterator[list[subprocess.Popen[str]]]:
    """`count` processes that paint 200 pictures together, and are killed at the end of the block if not before."""
    code = f"from robustclip import recipes; recipes.run({str(RECIPE)!r}, 'synthesize', {given!r})"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PAINTED": str(painted)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment | (world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_without_a_gap_or_a_double(tmp_path: Path, count: int) -> None:
    out = tmp_path / "run"
    first, second = tmp_path / "first", tmp_path / "second"
    with painting(first, count, out=str(out), pause=0.02) as processes:
        began = time.monotonic()
        while len(list(out.glob("images/*.png"))) < 60:
            assert not any(process.poll() for process in processes)
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.005)
        for process in processes:
            process.send_signal(signal.SIGKILL)
    assert Run.open(out).status == "killed"
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("images/*.png")}
    assert 60 <= len(there) < 200
    with painting(second, count, resume=str(out)) as processes:
        for process in processes:
            _, told = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, told
    assert Run.open(out).status == "finished"
    names = [item.id for item in items_of(parse_all([f"picture number {number}" for number in range(200)]))]
    pictures = sorted(out.glob("images/*"))
    assert [path.name for path in pictures] == sorted(f"{name}.png" for name in names)
    assert all(map(is_whole, pictures))
    assert {path.name: path.stat().st_mtime_ns for path in pictures if path.name in there} == there
    assert sorted(second.read_text().splitlines()) == sorted(name for name in names if f"{name}.png" not in there)
    assert [json.loads(line)["id"] for line in (out / "pictures.jsonl").read_text().splitlines()] == names
