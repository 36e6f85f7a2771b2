from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robustclip.data import embedded as embedded_world
from robustclip.errors import RunError, UsageError, coded
from robustclip.evaluation.claims import verify
from robustclip.evaluation.report import Report, Row
from robustclip.referees import registry
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card, Claim
from robustclip.referees.folder import save_full, save_referee
from robustclip.referees.registry import add, entry_of, find, list_referees, load_referee, remove
from robustclip.referees.toy import toy_referee

CLEAN = Claim("top-1", 0.5, 0.4, 0.6, 100, 7, "emoji/unseen-styles", None, "2025-01-31", "zero-shot", {"labels": "all"})
ATTACKED = replace(CLEAN, name="top-5", attack="l2:1.5@20", n=10)


@pytest.fixture(autouse=True)
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that comes with one referee, `built-in`."""
    folder = tmp_path / "embedded" / "referees"
    save_referee(toy_referee(seed=1, name="built-in"), folder / "built-in")
    monkeypatch.setattr(embedded_world, "root", lambda: folder.parent)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy = toy_referee(seed=2, name="mine")
    save_referee(toy, tmp_path / "folder", card=replace(toy.card, claims=[ATTACKED, CLEAN]))
    return tmp_path / "folder"


def test_embedded_and_registered_are_listed(folder: Path, home: Path) -> None:
    add(folder)
    save_referee(toy_referee(name="exported"), home / "referees" / "exported")
    (home / "referees" / ".mine.123.partial").mkdir()
    assert [(entry.name, entry.origin) for entry in list_referees()] == [
        ("built-in", "embedded"),
        ("exported", "registered"),
        ("mine", "registered"),
    ]


@pytest.mark.parametrize("way", ["name", "path", "given name"])
def test_a_referee_by_name_and_by_folder(way: str, folder: Path) -> None:
    entry = add(folder, name="other" if way == "given name" else None)
    referee = load_referee(folder if way == "path" else entry.name)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(referee.embed_images(images), toy_referee(seed=2).embed_images(images))
    assert referee.device == torch.device("cpu")


def test_a_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_referee(toy_referee(seed=9, name="local"), tmp_path / "built-in")
    assert load_referee("built-in").card.name == "built-in"
    assert load_referee("./built-in").card.name == "local"


def test_the_longest_name_that_is_safe_is_found_again(folder: Path) -> None:
    name = "a" * 100
    add(folder, name=name)
    assert load_referee(name).card.name == "mine"
    remove(name)
    assert find(name) is None


def test_show_and_find(folder: Path) -> None:
    assert entry_of("built-in").card == Card.load(embedded_world.path("referees", "built-in"))
    assert entry_of(str(folder)).card.name == "mine"
    assert find("mine") is None
    with pytest.raises(UsageError, check=coded("unknown_referee", given="built_in"), match="near ones: built-in"):
        entry_of("built_in")


def test_removing_forgets_added_folders_and_deletes_the_registrys_own(folder: Path, home: Path) -> None:
    add(folder)
    save_referee(toy_referee(name="exported"), home / "referees" / "exported")
    assert remove("mine") == folder.resolve()
    assert folder.is_dir()
    assert not remove("exported").exists()
    assert [entry.name for entry in list_referees()] == ["built-in"]
    with pytest.raises(UsageError, check=coded("not_removable", name="built-in")):
        remove("built-in")
    with pytest.raises(UsageError, check=coded("unknown_referee", given="mine")):
        remove("mine")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "two words", "a\nb"])
def test_unsafe_names_are_refused(name: str, folder: Path) -> None:
    if name:
        with pytest.raises(UsageError, check=coded("unsafe_name", name=name)):
            add(folder, name=name)
    with pytest.raises(UsageError, check=coded("unsafe_name", name=name)):
        registry.check_name(name)


def test_taken_names_are_refused(folder: Path) -> None:
    add(folder)
    with pytest.raises(
        UsageError, check=coded("name_taken", name="mine", origin="registered"), match="robustclip referees remove mine"
    ):
        add(folder)
    with pytest.raises(UsageError, check=coded("name_taken", name="built-in", origin="embedded")):
        add(folder, name="built-in")


def test_a_pair_reader_is_listed_as_one_and_its_name_is_taken(embedded: Path, folder: Path) -> None:
    shipped = embedded.parent / "pair_readers" / "shipped"
    replace(Card.load(folder), name="shipped", family="blip2").save(shipped)
    with pytest.raises(UsageError, check=coded("name_taken", name="shipped", origin="embedded")):
        add(shipped)
    add(shipped, name="own")
    listed = [entry for entry in registry.list_all() if isinstance(entry, registry.Entry)]
    assert {entry.name: entry.kind for entry in listed} == {
        "built-in": "referee",
        "own": "pair reader",
        "shipped": "pair reader",
    }


def test_a_folder_that_is_gone(folder: Path) -> None:
    add(folder)
    shutil.rmtree(folder)
    assert find("mine") is not None
    for use in (load_referee, lambda name: entry_of(name).card, verify):
        with pytest.raises(RunError, check=coded("folder_gone", name="mine"), match="robustclip referees remove mine"):
            use("mine")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "check", "near"),
    [
        ("biult-in", coded("unknown_referee", given="biult-in"), "near ones: built-in"),
        ("ViT-B-32-laion2b_s34b_b79k", coded("unknown_referee"), "near ones: .*ViT-B-32:laion2b_s34b_b79k"),
        ("qqqq", coded("unknown_referee", given="qqqq"), "known names: built-in"),
        ("none.pt", coded("missing_file", path="none.pt"), "none.pt"),
        ("ViT-B-32:laion2b", coded("unknown_weights", pretrained="laion2b"), "laion2b_s34b_b79k"),
        ("VitB32:openai", coded("unknown_architecture", architecture="VitB32"), "ViT-B-32"),
        ("timm:resnet10t", coded("no_weights"), "timm:resnet10t"),
    ],
)
def test_names_that_lead_nowhere(name: str, check: Any, near: str) -> None:
    with pytest.raises(UsageError, check=check, match=near):
        load_referee(name)


def test_a_folder_that_holds_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UsageError, check=coded("no_referee", folder=str(tmp_path / "empty")), match="robustclip export RUN"
    ):
        load_referee(tmp_path / "empty")


def test_arguments_of_checkpoints_belong_to_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("not_needed", name="built-in", options=["architecture", "quick_gelu"])):
        load_referee("built-in", architecture="ViT-B-32", quick_gelu=True)
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(UsageError, check=lambda error: error.code == "unknown_architecture"):
        load_referee(tmp_path / "model.pt")


def test_a_checkpoint_a_local_dir_and_a_timm_tower_go_through(
    open_clip_model: Any, architecture: str, sentence_referee: TwoTower, tmp_path: Path
) -> None:
    torch.save(open_clip_model.state_dict(), tmp_path / "tiny.pt")
    referee = load_referee(tmp_path / "tiny.pt", architecture=architecture, quick_gelu=False)
    save_full(referee, tmp_path / "dir")
    (tmp_path / "dir" / "card.json").unlink()
    images = torch.rand(2, 3, 32, 32)
    for name in (f"local-dir:{tmp_path / 'dir'}", str(tmp_path / "dir")):
        torch.testing.assert_close(load_referee(name).embed_images(images), referee.embed_images(images))
    torch.save(sentence_referee.image_tower.state_dict(), tmp_path / "tower.pt")
    timm = load_referee("timm:test_convnext", pretrained=str(tmp_path / "tower.pt"))
    assert timm.embed_texts(["cat"]).shape == (1, 384)


def test_out_of_reach_fails_with_the_ways_out() -> None:
    with pytest.raises(RunError, check=coded("unreachable", what="ViT-B-32:laion2b_s34b_b79k")):
        load_referee("ViT-B-32:laion2b_s34b_b79k")


def test_verify_measures_the_cheapest_claim_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def fake(referees: Any, **arguments: Any) -> Report:
        asked.append(arguments)
        described = [(claim.name, claim.attack or "clean") for claim in (CLEAN, ATTACKED)]
        rows = [Row("mine", "zero-shot", name, attack, "value", "", 0.55, 0.4, 0.6, 9, 7) for name, attack in described]
        return Report({"data": CLEAN.data, "labels": "all", "images": 9}, {"l2:1.5@20": ""}, rows)

    monkeypatch.setattr("robustclip.evaluation.claims.evaluate", fake)
    found = verify(str(folder), device="cpu")
    assert found.holds
    assert (found.claim, found.measured) == (CLEAN, 0.55)
    setting = {"data": CLEAN.data, "tasks": ["zero-shot"], "labels": "all", "seed": 7, "device": "cpu"}
    assert asked == [setting | {"attack": [], "limit": 100}]
    assert verify(str(folder), claim="top-5", device="cpu").claim == ATTACKED
    assert asked[1] == setting | {"attack": ["l2:1.5@20"], "limit": 10}
    assert not replace(found, measured=0.7).holds
    with pytest.raises(UsageError, check=coded("unknown_claim", given="top-9", claims=["top-1", "top-5"])):
        verify(str(folder), claim="top-9")


def test_verify_sees_changed_weights(folder: Path) -> None:
    weights = folder / "image_tower.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = verify(str(folder))
    assert found.files == {"image_tower.safetensors": False}
    assert found.measured is None
    assert not found.holds


def test_verify_sees_another_text_tower(sentence_referee: TwoTower, tmp_path: Path) -> None:
    card = save_referee(sentence_referee, tmp_path / "saved")
    assert verify(str(tmp_path / "saved"), measure=False).text_tower is True
    save_full(sentence_referee, tmp_path / "full")
    assert verify(str(tmp_path / "full"), measure=False).text_tower is None
    assert verify(str(tmp_path / "full"), measure=False).holds
    replace(card, text_tower={"name": "x", "sha256": "0"}).save(tmp_path / "saved")
    found = verify(str(tmp_path / "saved"))
    assert found.text_tower is False
    assert not found.holds
