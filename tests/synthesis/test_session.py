"""What recipes of synthesis share: a call that is read, and the run that it becomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from robustclip.data.images import load_image, save_image
from robustclip.errors import UsageError, coded
from robustclip.referees.base import TwoTower
from robustclip.referees.smoothed import fingerprint
from robustclip.referees.toy import toy_referee
from robustclip.synthesis.items import Item
from robustclip.synthesis.painted import Painted, Watch
from robustclip.synthesis.pictures import read_facts
from robustclip.synthesis.session import PromptFile, Prompts, Referees, Session, Size, call_faults, parse_size


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (None, None),
        (64, (64, 64)),
        ("64", (64, 64)),
        ("48x96", (48, 96)),
        (" 48X96 ", (48, 96)),
        ((48, 96), (48, 96)),
        ([48, 96], (48, 96)),
        ("8x4096", (8, 4096)),
    ],
)
def test_sizes_are_read_height_first(given: object, size: tuple[int, int] | None) -> None:
    assert parse_size(given) == size


@pytest.mark.parametrize(
    "given",
    ["", "big", "64x", "x64", "64x64x64", "7", "4097", "64x7", "-64", "6.4e1", "٦٤", 0, -64, 7.5, True, (1, 2, 3), ()],
)
def test_what_is_no_size_is_told(given: object) -> None:
    with pytest.raises(UsageError, check=coded("not_a_size")):
        parse_size(given)


def test_flags_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    for kind, value, message in [
        (Size, "12x", "'12x' is not a size"),
        (Prompts, ["a cat:1.0 |"], "a cat"),
        (PromptFile, tmp_path / "captions.txt", "is not a file"),
        (PromptFile, tmp_path, "is not a file"),
        (Referees, "emoji-robust=0", "the weight '0' of the referee"),
    ]:
        with pytest.raises((ValidationError, UsageError), match=message):
            TypeAdapter(kind).validate_python(value)
    assert TypeAdapter(Size).validate_python("48x96") == "48x96", "as it was given: a run notes it"
    assert TypeAdapter(Prompts).validate_python([]) == [], "captions may come from a file"
    toy = toy_referee()
    assert TypeAdapter(Referees).validate_python(toy) == [toy]
    assert TypeAdapter(Referees).validate_python("emoji-robust=2") == ["emoji-robust=2"]


def test_prompts_come_from_one_place() -> None:
    assert list(call_faults(["a cat"], None)) == []
    assert list(call_faults([], Path("captions.txt"))) == []
    assert [fault.code for fault in call_faults([], None)] == ["no_prompt"]
    assert [fault.code for fault in call_faults(["a cat"], Path("captions.txt"))] == ["prompts_twice"]


def arguments(out: Path, **changed: object) -> dict[str, Any]:
    return {
        "prompt": ["a cat", "a dog"],
        "prompts": None,
        "batch_size": 2,
        "referee": [toy_referee()],
        "seeds": [0],
        "size": None,
        "strength": 0.5,
        "device": "cpu",
        "dtype": "float32",
        "channels_last": True,
        "compile": False,
        "out": out,
        "resume": None,
        **changed,
    }


def shade(items: Sequence[Item], watch: Watch) -> Painted:
    images = torch.stack([torch.full((3, 16, 16), 0.1 * (1 + item.seed)) for item in items])
    watch(1, images, {"similarity": torch.zeros(len(items))})
    return Painted(images, torch.tensor([0.25 * (1 + item.seed) for item in items]))


def test_a_call_becomes_pictures_to_paint_and_a_run(tmp_path: Path) -> None:
    call = arguments(tmp_path / "run", seeds=[0, 1])
    session = Session.open("toy", call | {"batch_size": 3, "save_frames": False})
    assert [item.id for item in session.items] == ["a-cat-s0", "a-cat-s1", "a-dog-s0", "a-dog-s1"]
    assert session.size == (16, 16), "what the referee sees"
    assert session.guides.dtype is torch.float32
    made = session.paint(shade, steps=1)
    assert made.similarity.tolist() == [0.25, 0.5, 0.25, 0.5]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    by = [{"name": "toy", "weight": 1.0, "fingerprint": fingerprint(call["referee"][0])}]
    assert (record["status"], record["numbers"]["pictures"], record["numbers"]["similarity"]) == ("finished", 4, 0.375)
    assert "each" not in record["numbers"]
    assert record["arguments"]["prompt"] == ["a cat", "a dog"]
    assert record["arguments"]["referee"] == ["toy"]
    notes = record["notes"]
    assert (notes["referees"], notes["size"], notes["dtype"]) == (by, [16, 16], "float32")
    assert not (tmp_path / "run" / "frames").exists()


def test_a_picture_does_not_hold_what_thousands_of_others_show(tmp_path: Path) -> None:
    prompts = [f"a cat and {number} dogs" for number in range(60)]
    session = Session.open("toy", arguments(tmp_path / "run", prompt=prompts, batch_size=60))
    made = session.paint(shade, steps=1)
    facts = read_facts(made.files[7])
    assert facts["prompt"] == "a cat and 7 dogs"
    assert facts["arguments"]["strength"] == 0.5
    assert not {"prompt", "out", "resume"} & set(facts["arguments"])
    assert len(json.dumps(facts)) < 3000
    assert "59 dogs" not in json.dumps(facts)


def test_of_several_pictures_the_best_is_kept(tmp_path: Path) -> None:
    """Brightness stands for a referee; candidates differ by their generators alone."""
    seen: list[int] = []

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        watch.announce("nothing")
        shades = torch.stack([torch.rand((), generator=item.generator("shade")) for item in items])
        images = shades.view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
        seen.append(len(items))
        watch(1, images, {"similarity": shades})
        texts, others = {"txt": [f"{shade:.4f}" for shade in shades]}, {"more": [*images]}
        return Painted(images, shades, {"loss": shades[None]}, images[None], [1], texts, others=others)

    def session(folder: str, **changed: object) -> Session:
        made = Session.open(
            "toy", arguments(tmp_path / folder, seeds=[0, 1], batch_size=3, save_frames=True, **changed)
        )
        made.guides.similarity = lambda images, _: images.mean((1, 2, 3))  # type: ignore[method-assign]
        return made

    first, best = session("first").paint(paint, steps=1), session("best", best_of=5).paint(paint, steps=1)
    assert seen == [3, 1] + 5 * [3] + 5 * [1]
    facts = [read_facts(file) for file in best.files]
    for row, fact in enumerate(facts):
        assert fact["scores"][0] == pytest.approx(float(first.similarity[row]), abs=1e-6)  # the one without --best-of
        assert fact["scores"][fact["candidate"]] == max(fact["scores"])
        assert float(best.similarity[row]) == pytest.approx(max(fact["scores"]), abs=1e-6)
        assert float(best.image(row).mean()) == pytest.approx(max(fact["scores"]), abs=1e-6)
        assert float(best.trace["loss"][0, row]) == pytest.approx(max(fact["scores"]), abs=1e-6)
        text = (tmp_path / "best" / "txt" / f"{best.items[row].id}.txt").read_text()
        assert float(text) == pytest.approx(max(fact["scores"]), abs=1e-3)
        other = load_image(tmp_path / "best" / "more" / f"{best.items[row].id}.png")
        assert float(other.mean()) == pytest.approx(max(fact["scores"]), abs=3e-3)
    assert {fact["candidate"] for fact in facts} != {0}
    with pytest.raises(UsageError, check=coded("no_diffusion_model")):
        Session.open("toy", arguments(tmp_path / "mi", best_of=2, by="mi"))
    with pytest.raises(UsageError, check=coded("by_alone")):
        Session.open("toy", arguments(tmp_path / "alone", by="toy"))


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    shades, scores = torch.tensor([0.1, 0.2, 0.3, 0.4]), [torch.nan, 0.2, torch.nan, 0.5]
    drawn = iter(shades)

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        images = next(drawn).expand(1, 3, 16, 16)
        watch(1, images, {"similarity": images.mean((1, 2, 3))})
        return Painted(images, images.mean((1, 2, 3)))

    session = Session.open("toy", arguments(tmp_path / "run", prompt=["a cat"], best_of=4))
    session.guides.similarity = lambda images, _: torch.tensor([scores[round(float(images.mean()) * 10) - 1]])  # type: ignore[method-assign]
    made = session.paint(paint, steps=1)
    facts = read_facts(made.files[0])
    assert (facts["candidate"], facts["scores"]) == (3, [None, pytest.approx(0.2), None, 0.5])
    assert float(made.image(0).mean()) == pytest.approx(0.4)


def test_referees_are_recorded_as_a_resumed_run_takes_them(tmp_path: Path) -> None:
    given = ["emoji-robust=0.25", toy_referee()]
    session = Session.open("toy", arguments(tmp_path / "run", referee=given))
    assert session.guides.weights == [0.25, 1.0]
    assert session.run.arguments["referee"] == ["emoji-robust=0.25", "toy"]


def test_captions_of_a_file_name_their_pictures(tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text('{"id": "one", "prompt": "a cat"}\n{"id": "two", "prompt": "a dog", "seed": 5}\n')
    session = Session.open("toy", arguments(tmp_path / "run", prompt=[], prompts=file))
    assert [(item.id, item.seed) for item in session.items] == [("one", 0), ("two", 5)]
    session.paint(shade, steps=1)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]["prompts"] == str(file)


def test_a_size_of_ones_own(tmp_path: Path) -> None:
    assert Session.open("toy", arguments(tmp_path / "run", size="12x20")).size == (12, 20)


def test_faults_begin_no_run(tmp_path: Path) -> None:
    save_image(torch.rand(3, 8, 8), tmp_path / "image.png")
    (tmp_path / "image.png").write_bytes((tmp_path / "image.png").read_bytes()[:60])
    for changed, check in [
        ({"referee": ["nobody-at-all"]}, coded("unknown_referee", given="nobody-at-all")),
        ({"referee": []}, coded("no_referees")),
        ({"prompt": ["cat " * 600], "referee": ["emoji-robust"]}, coded("too_many_tokens", most=77)),
        ({"prompt": [f"image:{tmp_path / 'image.png'}"]}, coded("not_a_picture", path=tmp_path / "image.png")),
    ]:
        with pytest.raises(UsageError, check=check):
            Session.open("toy", arguments(tmp_path / "run", **changed))
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_in_the_dtype_that_it_began_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr("robustclip.runs.devices.cpu_has_bfloat16", lambda: True)
    first = Session.open("toy", arguments(out, dtype="auto", referee=[convolutional()]))
    assert first.guides.dtype is torch.bfloat16
    made = first.paint(shade, steps=1)
    assert json.loads((out / "run.json").read_text())["notes"]["dtype"] == "bfloat16"
    assert {read_facts(file)["dtype"] for file in made.files} == {"bfloat16"}
    monkeypatch.setattr("robustclip.runs.devices.cpu_has_bfloat16", lambda: False)  # another machine
    monkeypatch.setattr("robustclip.runs.devices.measure_dtype", lambda *_: torch.float32)
    for dtype, expected in (("auto", "bfloat16"), ("measure", "bfloat16"), ("float32", "float32")):
        call = arguments(tmp_path, dtype=dtype, referee=[convolutional()]) | {"out": None, "resume": out}
        again = Session.open("toy", call)
        assert str(again.guides.dtype) == f"torch.{expected}"
        again.run.finish()
        again.run.note(dtype="bfloat16")


def convolutional() -> TwoTower:
    """A toy referee most of whose weights are a convolution's."""
    referee = toy_referee()
    referee.image_tower = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 5, 1, 2), torch.nn.Conv2d(64, 3, 1), referee.image_tower
    )
    return referee


def test_a_start_is_recorded_and_one_without_a_mixture_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.open("toy", arguments(tmp_path / "run"))
    assert session.starts("auto", candidates=3).source == "grey"
    assert "no card of toy names a mixture: pictures start from grey" in capsys.readouterr().err
    made = session.paint(shade, steps=1)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["notes"]["start"] == "grey"
    assert {read_facts(file)["start"] for file in made.files} == {"grey"}
    capsys.readouterr()
    assert session.starts("noise").source == "noise"
    assert session.starts("mixture", candidates=3).source == "emoji-groups"
    assert "no card" not in capsys.readouterr().err
