from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustclip.data.images import save_image
from robustclip.errors import RunError, UsageError, coded
from robustclip.evaluation.generation.pictures import Pictures, chosen, from_tensor, places_of, read_pictures
from robustclip.runs.files import write_json

RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


@pytest.fixture
def loose(tmp_path: Path, plain: Callable[..., Tensor]) -> Path:
    """A folder of pictures that say nothing."""
    folder = tmp_path / "loose"
    save_image(plain(RED)[0], folder / "a.png")
    save_image(plain(GREEN)[0], folder / "b.png")
    return folder


def test_a_run_says_all_itself(run_folder) -> None:
    folder = run_folder("run", {"red": RED, "a green leaf | dull:-0.3": GREEN}, seeds=(0, 7))

    found = read_pictures(folder)

    assert found.prompts == ["a green leaf", "a green leaf", "red", "red"]  # without what was to be avoided
    assert found.seeds == [0, 7, 0, 7]
    assert found.ids[2:] == ["red-s0", "red-s7"]
    assert found.guides == [{"name": "guide", "fingerprint": "f" * 64}]
    assert not found.notes
    torch.testing.assert_close(found.images[torch.tensor([3, 0])].mean((2, 3)), torch.tensor([RED, GREEN]))


def test_what_is_missing_is_told(run_folder) -> None:
    found = read_pictures(run_folder("run", {"red": RED}, referees=[], planned=5))

    assert not found.guides
    assert "no judge was among them" in found.notes[0]
    assert "1 of its 5 planned pictures" in found.notes[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.jsonl", '{"file": "b.png", "prompt": " grass: green", "seed": 3}\n\n{"id": "a", "prompt": "red"}\n'),
        ("prompts.csv", "seed,file,prompt\n3,b.png,grass: green\n,a,red\n"),
    ],
)
def test_a_list_says_it_for_them(loose: Path, name: str, content: str) -> None:
    (loose / name).write_text(content)

    found = read_pictures(loose)

    assert found.prompts == ["grass: green", "red"]  # literally: a colon is a colon
    assert (found.ids, found.seeds) == (["b.png", "a.png"], [3, None])
    assert "no judge was among them" in found.notes[0]


def test_a_list_from_elsewhere_and_pictures_it_leaves_out(loose: Path, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"file": "a.png", "prompt": "red"}')

    found = read_pictures(loose, prompts=tmp_path / "list.jsonl")

    assert found.prompts == ["red"]
    assert "1 of 2 pictures in" in found.notes[1]


def test_pairs_are_of_one_prompt_and_seed_wherever_they_stand() -> None:
    images = torch.zeros(4, 3, 8, 8)
    one = Pictures("one", images, ["a", "b", "a", "a"], list("wxyz"), [0, 0, 1, 0])
    other = Pictures("other", images, ["a", "a", "b", "a"], list("1234"), [1, 0, 0, 0])

    assert len(set(one.keys)) == 4
    assert sorted(one.keys) == sorted(other.keys)
    assert one.keys[0] == other.keys[1]
    assert one.keys[3] == other.keys[3]  # the second of this prompt and seed


def test_some_of_them(plain) -> None:
    pictures = from_tensor(plain(RED, GREEN, RED), ["x", "y", "z"])

    assert places_of(pictures, ["z", "y"]) == [1, 2]
    some = chosen(pictures, [2, 1])
    assert some.prompts == ["z", "y"]
    assert some.images[torch.tensor([1])][0, :, 0, 0].tolist() == list(GREEN)


def test_the_run_says_who_guided_where_pictures_do_not(run_folder) -> None:
    folder = run_folder("run", {"red": RED}, referees=[])
    write_json(
        folder / "run.json", {"notes": {"referees": [{"name": "other", "weight": 1.0, "fingerprint": "e" * 64}]}}
    )

    found = read_pictures(folder)

    assert found.guides == [{"name": "other", "fingerprint": "e" * 64}]
    assert not found.notes


def test_prompts_from_elsewhere_do_not_hide_the_guide(run_folder, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"id": "red-s0", "prompt": "a red thing"}')

    found = read_pictures(run_folder("run", {"red": RED}), prompts=tmp_path / "list.jsonl")

    assert found.prompts == ["a red thing"]
    assert found.guides == [{"name": "guide", "fingerprint": "f" * 64}]


@pytest.mark.parametrize("referees", ["seer", ["seer"], [{"name": "seer"}], [{"fingerprint": 3}]])
def test_guides_that_say_nothing_of_themselves_are_unknown(run_folder, referees: list) -> None:
    found = read_pictures(run_folder("run", {"red": RED}, referees=referees))

    assert not found.guides
    assert "no judge was among them" in found.notes[0]


@pytest.mark.parametrize(
    ("prompts", "check"),
    [
        ("", coded("no_prompts")),
        ('{"file": "c.png", "prompt": "red"}', coded("missing_picture", name="c.png")),
        ('{"file": "a.png", "prompt": " "}', coded("not_an_entry", line=1)),
        ('{"file": "a.png", "prompt": "red"}\nred', coded("not_an_entry", line=2)),
        ("[1]", coded("not_an_entry", line=1)),
        ('{"file": "a.png", "prompt": "x"}\n{"id": "a", "prompt": "y"}', coded("id_twice", id="a.png")),
        ('{"file": "../loose/../a.png", "prompt": "x"}', None),
    ],
)
def test_lists_that_do_not_fit(loose: Path, prompts: str, check: Any) -> None:
    if prompts:
        (loose / "prompts.jsonl").write_text(prompts)

    if check is None:  # only a picture of the folder is ever opened
        assert read_pictures(loose).ids == ["a.png"]
        return
    with pytest.raises(UsageError, check=check):
        read_pictures(loose)


def test_folders_that_hold_nothing_to_judge(tmp_path: Path, run_folder, plain) -> None:
    with pytest.raises(UsageError, check=coded("missing_folder", folder=tmp_path / "nowhere")):
        read_pictures(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, check=coded("no_pictures", folder=tmp_path / "empty")):
        read_pictures(tmp_path / "empty")
    with pytest.raises(UsageError, check=coded("no_text")):
        read_pictures(run_folder("images only", {"image:leaf.png": RED}))
    mute = run_folder("mute", {"red": RED})
    save_image(plain(GREEN)[0], mute / "images" / "z.png")
    with pytest.raises(UsageError, check=coded("no_facts", path=mute / "images" / "z.png")):
        read_pictures(mute)


def test_pictures_of_different_size_need_one(loose: Path) -> None:
    save_image(torch.rand(3, 8, 12), loose / "c.png")
    lines = [{"file": f"{name}.png", "prompt": name} for name in "abc"]
    (loose / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))

    with pytest.raises(UsageError, check=coded("unequal_sizes", sizes={"a.png": (8, 8), "c.png": (8, 12)})):
        read_pictures(loose)
    assert read_pictures(loose, size=16).images[torch.arange(3)].shape == (3, 3, 16, 16)


def test_a_damaged_picture_is_named(loose: Path) -> None:
    (loose / "a.png").write_bytes(b"no picture")
    (loose / "prompts.jsonl").write_text('{"file": "a.png", "prompt": "red"}')

    with pytest.raises(RunError, check=coded("not_a_picture", path=loose / "a.png")):
        read_pictures(loose)


def test_images_prompts_and_ids_go_together(plain) -> None:
    with pytest.raises(UsageError, match="2 images, 1 prompts"):
        from_tensor(plain(RED, GREEN), ["red"])
    with pytest.raises(UsageError, check=coded("no_pictures")):
        from_tensor(torch.zeros(0, 3, 8, 8), [])
