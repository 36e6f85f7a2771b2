"""`explain` from images and texts to a report and its numbers."""

from __future__ import annotations

import errno
import html
import json
import os
import re
import shlex
import signal
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import robustclip
from robustclip.attacks import AttackSpec
from robustclip.data.images import save_image
from robustclip.errors import Interrupted, RunError, UsageError, coded
from robustclip.explanation import looks
from robustclip.explanation.looks import look, negate, numbers
from robustclip.explanation.maps import Mapper
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import cosines
from robustclip.referees.toy import toy_referee
from robustclip.runs.processes import owning, terminable

explain_module = import_module("robustclip.pages.explain")  # whose name in the package is the function


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "red panda").mkdir(parents=True)
    drawn = torch.Generator().manual_seed(0)
    for name, size in (("one.png", (24, 32)), ("two.png", (24, 32)), ("red panda/three.png", (40, 30))):
        save_image(torch.rand(3, *size, generator=drawn), folder / name)
    (folder / "one.txt").write_text("<script>alert(1)</script>\n")
    (folder / "notes.md").write_text("no picture")
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    return folder


def referees() -> list[TwoTower]:
    return [toy_referee(seed=seed, name=f"toy-{seed}") for seed in (1, 2)]


def blind() -> TwoTower:
    referee = toy_referee(name="blind")
    referee.image_tower = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 16)).eval().requires_grad_(False)
    return referee


def test_a_report_and_its_numbers(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = robustclip.explain(
        referees=referees(), images=[str(pictures)], texts=["a cat", "a dog"], attack="l2:1@3", out=out, batch_size=4
    )
    page = (out / "report.html").read_text()
    told = json.loads((out / "explanation.json").read_text())
    assert found.page == out / "report.html"
    assert [(pair["id"], pair["text"]) for pair in told["pairs"][:3]] == [
        ("one.png", "a cat"),
        ("one.png", "a dog"),
        ("red panda/three.png", "a cat"),
    ]
    assert told["pairs"][0]["other"] == "not a cat"
    mine = told["pairs"][0]["referees"]["toy-1"]
    assert set(mine) == {"clean", "attacked", "noisy"}
    assert mine["attacked"]["cosine"] < mine["clean"]["cosine"]
    assert -1 <= mine["attacked"]["rank correlation"] <= 1
    rows = {(row["referee"], row["metric"], row["attack"], row["kind"]): row for row in told["rows"]}
    row = rows["toy-1", "rank correlation", "l2:1@3", "value"]
    assert row["n"] == 6
    assert row["low"] <= row["value"] <= row["high"]
    assert ("toy-2", "rank correlation", "l2:1@3", "difference") in rows
    assert any("broken.png" in note for note in told["notes"])
    assert any("notes.md" in note for note in told["notes"])
    assert "broken.png" in page
    assert "at each image's own size" in told["threats"]["l2:1@3"]
    assert "toy-1: 1, toy-2: 1" in page  # the layers


@pytest.mark.parametrize("target", [None, "cosine", "logit", "softmax"])
def test_the_report_says_what_its_maps_are_of(target: str | None, pictures: Path, tmp_path: Path) -> None:
    found = robustclip.explain(
        referees=referees()[:1],
        images=[str(pictures / "one.png")],
        texts=["a cat", "a dog"],
        method="gradcam++",
        target=target,  # type: ignore[arg-type]
        attack="none",
        gradients=False,
        out=tmp_path / "out",
    )
    told = found.to_json()["setting"]["target"]["toy-1"]
    assert told.startswith({"cosine": "cosine", "softmax": "softmax of logits ("}.get(target or "", "logit ("))
    assert f"toy-1: {told}" in found.page.read_text()


def test_a_softmax_needs_two_texts(pictures: Path, tmp_path: Path) -> None:
    given = {"referees": referees(), "images": [str(pictures / "one.png")], "attack": "none", "out": tmp_path / "out"}
    with pytest.raises(UsageError, check=coded("one_text")):
        robustclip.explain(**given, texts=["a cat"], target="softmax")  # type: ignore[arg-type]
    with pytest.raises(UsageError, check=coded("literal_error", argument="target", given="cosin")):
        robustclip.explain(**given, texts=["a cat"], target="cosin")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_report_has_the_command_that_makes_it_again(pictures: Path, tmp_path: Path) -> None:
    call = {"referees": ["emoji-vanilla", "emoji-robust"], "texts": ["a cat", "it's a dog"], "gradients": False}
    image = str(pictures / "one.png")
    robustclip.explain(**call, images=[image], attack="l2:1@1", out=tmp_path / "out")
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    (command,) = re.findall(r'<p class="command"><code>(.*)</code>', page)
    words = shlex.split(command)
    assert words[:2] == ["robustclip", "explain"]
    asked = ["--referees", "emoji-vanilla", "--referees", "emoji-robust", "--images", image]
    asked += ["--texts", "a cat", "--texts", "it's a dog", "--attack", "l2:1@1", "--no-gradients"]
    assert words[2:] == [*asked, "--out", str(tmp_path / "out")]


def test_captions_stay_text(pictures: Path, tmp_path: Path) -> None:
    found = robustclip.explain(referees=referees(), images=[str(pictures)], attack="none", out=tmp_path / "out")
    page = found.page.read_text()
    assert "<script>alert(1)" not in page
    assert re.search(r"&lt;script&gt;alert\(1\)", page)
    assert [pair["text"] for pair in found.pairs] == ["<script>alert(1)</script>", "red panda"]
    assert any("two.png has no text" in note for note in found.report.notes)


def test_a_referee_that_cannot_be_mapped_is_named_and_the_rest_is_made(pictures: Path, tmp_path: Path) -> None:
    found = robustclip.explain(
        referees=[*referees(), blind()], images=[str(pictures)], texts=["a cat"], attack="none", out=tmp_path / "out"
    )
    assert any("blind has no maps: blind has no spatial layer" in note for note in found.report.notes)
    assert {row.referee for row in found.report.rows} == {"toy-1", "toy-2"}
    assert "no spatial layer" in found.page.read_text()


def test_where_nobody_can_be_mapped_nothing_is_written(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("not_mappable"), match="blind"):
        robustclip.explain(referees=[blind()], images=[str(pictures)], texts=["a cat"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_eps_that_is_too_large_for_one_of_the_sizes_is_refused_first(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_image(torch.rand(3, 8, 8), pictures / "zz.png")
    monkeypatch.delattr(explain_module, "look_at")
    call = {"referees": referees(), "images": [str(pictures)], "texts": ["a cat"], "attack": "l2:5@1"}
    with pytest.raises(UsageError, check=coded("eps_in_255", eps=5)):
        robustclip.explain(**call, out=tmp_path / "out")


def test_gradients_need_no_spatial_layer(pictures: Path, tmp_path: Path) -> None:
    found = robustclip.explain(
        referees=[blind()], images=[str(pictures)], texts=["a cat"], method="gradient", attack="none", out=tmp_path
    )
    assert len(found.pairs) == 3


def test_a_text_that_a_referee_does_not_read_whole_is_noted(pictures: Path, tmp_path: Path) -> None:
    call = {"images": [str(pictures)], "texts": ["a cat", "a cat " * 200], "attack": "none", "method": "gradient"}
    found = robustclip.explain(referees=["emoji-vit-robust", *referees()], limit=1, out=tmp_path / "out", **call)
    notes = json.loads((tmp_path / "out" / "explanation.json").read_text())["notes"]
    assert [note.partition(" ")[0] for note in notes if "truncates" in note] == ["emoji-vit-robust"]
    assert "emoji-vit-robust truncates" in found.page.read_text()


def test_an_explanation_is_not_written_over(pictures: Path, tmp_path: Path) -> None:
    call = {"referees": referees(), "images": [str(pictures)], "texts": ["a cat"], "attack": "none", "out": tmp_path}
    robustclip.explain(**call)
    with pytest.raises(UsageError, check=coded("already_done")):
        robustclip.explain(**call)


def test_pictures_whose_names_are_not_utf8_are_explained(pictures: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (pictures / "two.png").rename(pictures / name)
    call = {"referees": referees(), "images": [str(pictures)], "texts": ["a cat"], "attack": "none"}
    robustclip.explain(**call, out=tmp_path / "out", gradients=False)
    told = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert name in [pair["id"] for pair in told["pairs"]]
    assert (tmp_path / "out" / "report.html").read_text()


def test_a_stopped_or_full_explanation_says_so(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"referees": referees(), "images": [str(pictures)], "texts": ["a cat"], "attack": "none", "gradients": False}
    with owning(tmp_path / "out"), pytest.raises(UsageError, check=coded("in_use")):
        robustclip.explain(**call, out=tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(explain_module, "look_at", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        with terminable(), pytest.raises(Interrupted, match="an explanation is written at its end only") as told:
            robustclip.explain(**call, out=tmp_path / "out")
        assert told.value.signal == signal.SIGTERM
    assert not (tmp_path / "out").exists()

    def refuse(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("robustclip.runs.files.os.fsync", refuse)
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    with pytest.raises(RunError, check=coded("numbers_kept"), match=r"report\.html could not be"):
        robustclip.explain(**call, out=tmp_path / "out")
    (kept,) = (tmp_path / "spare").glob("*.json")
    assert {pair["text"] for pair in json.loads(kept.read_text())["pairs"]} == {"a cat"}


def test_all_faults_at_once(tmp_path: Path) -> None:
    given: dict[str, Any] = {"referees": referees(), "images": ["nowhere.png"], "out": tmp_path}
    with pytest.raises(UsageError) as caught:
        robustclip.explain(**given, method="gradcamm", attack="l3:1@2", device="abacus")
    for part in ("gradcam++", "unknown norm 'l3'", "unknown device 'abacus'"):
        assert part in str(caught.value)
    with pytest.raises(UsageError) as caught:
        robustclip.explain(**given, texts=[" "], objective="targeted")
    for part in ("no image or folder at 'nowhere.png'", "a text is empty", "needs a target"):
        assert part in str(caught.value)


def test_scenes_have_boxes_and_a_hit_or_a_miss(tmp_path: Path) -> None:
    found = robustclip.explain(
        referees=referees(), images=["emoji/scenes"], limit=3, attack="linf:4/255@2", out=tmp_path / "out"
    )
    told = found.pairs[0]["referees"]["toy-1"]["clean"]
    assert told["pointing game"] in (0, 1)
    assert 0 <= told["energy in box"] <= 1
    assert found.report.row("toy-1", "pointing game").n == 3
    assert "64x64" in found.report.threats["linf:4/255@2"]


def test_a_look_is_that_of_its_parts() -> None:
    referee, spec = toy_referee(), AttackSpec.parse("l2:1@3")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    texts, ids = ["a", "b", "c"], ["1", "2", "3"]
    own, other = referee.embed_texts(texts), referee.embed_texts([negate(text) for text in texts])
    mapper = Mapper(referee)
    seen = look(mapper, images, own, other, ids=ids, spec=spec)
    assert torch.equal(seen["clean"].images, images)
    expected = cosines(referee, seen["attacked"].images, own, torch.float32).diagonal()
    torch.testing.assert_close(seen["attacked"].scores, expected)
    again = mapper(seen["noisy"].images, own, ids)
    assert torch.equal(seen["noisy"].heat.maps, again.maps)
    threat = spec.threat(16)
    assert threat.contains(seen["attacked"].images - images, 1e-4).all()
    torch.testing.assert_close(threat.norms(seen["noisy"].images - images), torch.ones(3))
    alone = look(mapper, images[1:2], own[1:2], other[1:2], ids=ids[1:2], spec=spec)
    torch.testing.assert_close(alone["attacked"].images, seen["attacked"].images[1:2], atol=1e-5, rtol=0)


def test_an_empty_map_has_no_numbers_and_points_at_nothing() -> None:
    referee = toy_referee()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = look(Mapper(referee), images, referee.embed_texts(["a", "b"]), None, ids=["1", "2"], spec=None)
    heat = seen["clean"].heat
    heat.maps[0] = 0
    heat.empty[0] = True
    found = numbers(seen, torch.tensor([[0, 0, 16, 16]] * 2))["clean"]
    assert found[looks.POINTING].tolist() == [0, 1]
    assert found[looks.ENERGY][0].isnan()
    assert found[looks.ENERGY][1] == 1


@pytest.mark.slow
def test_a_diffusion_model_maps_mutual_information_beside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = robustclip.explain(
        referees=referees()[:1],
        images=["emoji/scenes"],
        limit=3,
        attack="none",
        mi="emoji-diffusion",
        out=out,
        gradients=False,
    )
    mine = found.pairs[0]["referees"]["mi:emoji-diffusion"]["clean"]
    assert set(mine) == {"mutual-information", "pointing game", "energy in box"}
    rows = {(row.referee, row.metric): row for row in found.report.rows if row.kind == "value"}
    assert rows["mi:emoji-diffusion", "mutual-information"].n == len(found.pairs)
    assert ("toy-1", "mutual-information") not in rows
    page = (out / "report.html").read_text()
    assert page.count('alt="Looks at, mi:emoji-diffusion"') == len(found.pairs)
    assert "standard error" in page


def test_a_folder_that_holds_no_diffusion_model_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("unknown_diffusion_model", given="nowhere")):
        robustclip.explain(
            referees=referees(), images=[str(pictures)], texts=["a cat"], mi="nowhere", out=tmp_path / "o"
        )
