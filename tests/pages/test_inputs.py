"""What --images and --texts mean, and what is said of those that can't be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.pages.inputs import Pair, faults_of_texts, read_pairs


def picture(path: Path, height: int = 20, width: int = 30) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)), path)
    return str(path)


def told(pairs: list[Pair]) -> list[tuple[str, str, str]]:
    return [(pair.id, pair.text, pair.other) for pair in pairs]


def test_every_text_with_every_image(tmp_path: Path) -> None:
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "b.webp")]
    pairs, notes = read_pairs(files, ["a cat", " a dog", "a cat"])
    assert told(pairs) == [
        ("a.png", "a cat", "not a cat"),
        ("a.png", "a dog", "not a dog"),
        ("b.webp", "a cat", "not a cat"),
        ("b.webp", "a dog", "not a dog"),
    ]
    assert pairs[0].image.shape == (3, 20, 30)
    assert not notes


def test_captions_lie_beside_or_above_an_image(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n a red bicycle \nand more\n")
    picture(tmp_path / "polar_bear" / "b.png")
    picture(tmp_path / "c.png")
    pairs, notes = read_pairs([str(tmp_path)])
    assert told(pairs) == [
        ("a.png", "a red bicycle", "not a red bicycle"),
        ("polar_bear/b.png", "polar bear", "not polar bear"),
    ]
    assert notes == ["c.png has no text: give --texts, or a file beside it with the ending .txt"]


def test_a_text_that_is_not_utf8_is_said_and_ends_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "a.txt").write_bytes(b"caf\xe9")
    picture(tmp_path / "cat" / "b.png")
    alone, said = read_pairs([str(tmp_path)])
    assert told(alone) == [("cat/b.png", "cat", "not cat")]
    assert len(said) == 1
    assert said[0].startswith("cat/a.png has no text: a.txt is not UTF-8")
    both, said = read_pairs([str(tmp_path)], ["a dog"])
    assert [pair.id for pair in both] == ["cat/a.png", "cat/b.png"]
    assert len(said) == 1


def test_the_embedded_sets_bring_their_texts_and_boxes() -> None:
    drawings, _ = read_pairs(["emoji/judge-heldback"], limit=2)
    assert [pair.box for pair in drawings] == [None, None]
    scenes, _ = read_pairs(["emoji/scenes"], limit=2)
    assert all(pair.box is not None and pair.text for pair in scenes)
    asked, _ = read_pairs(["emoji/scenes"], [scenes[0].text, "a cat"], limit=2)
    assert [pair.box is not None for pair in asked] == [True, False, False, False]


def test_a_limit_is_of_each_source_and_drawn_by_the_seed() -> None:
    both, _ = read_pairs(["emoji/scenes", "emoji/judge-heldback"], limit=3)
    assert [pair.box is not None for pair in both] == [True] * 3 + [False] * 3
    again, _ = read_pairs(["emoji/scenes"], limit=3)
    other, _ = read_pairs(["emoji/scenes"], limit=3, seed=1)
    assert [pair.id for pair in again] == [pair.id for pair in both[:3]]
    assert [pair.id for pair in other] != [pair.id for pair in again]


@pytest.mark.parametrize(
    ("given", "others"),
    [
        ({"negations": ["a dog", "no dog"]}, ["a dog", "no dog"]),
        ({"objective": "targeted", "targets": ["a bird"]}, ["a bird", "a bird"]),
        ({"objective": "targeted", "targets": ["a bird", "a fish"]}, ["a bird", "a fish"]),
        ({"objective": "untargeted"}, ["", ""]),
    ],
    ids=["negations", "one target", "targets", "untargeted"],
)
def test_what_an_attack_pulls_towards(given: dict, others: list[str], tmp_path: Path) -> None:
    pairs, _ = read_pairs([picture(tmp_path / "a.png")], ["a cat", "dogs"], **given)
    assert [pair.other for pair in pairs] == others


def test_what_is_no_picture_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.html").write_text("<p>")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    picture(tmp_path / "tiny.png", 2, 2)
    picture(tmp_path / "line.png", 8, 900)
    pairs, notes = read_pairs([str(tmp_path)], ["a cat"])
    assert [pair.id for pair in pairs] == ["good.png"]
    said = "\n".join(notes)
    for part in (
        "1 files that are not pictures left out (page.html)",
        "empty.png",
        "short.png",
        "tiny.png: 2x2 pixels are too few",
        "line.png: 8x900 pixels are too elongated",
    ):
        assert part in said


def test_huge_images_are_brought_down_or_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "large.png", 600, 2048)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    pairs, notes = read_pairs([str(tmp_path)], ["a cat"])
    assert pairs[0].image.shape == (3, 300, 1024)
    assert any("large.png has 600x2048 pixels and was resized to 300x1024" in note for note in notes)
    assert "bomb.png: no readable picture (too many pixels)" in notes


def test_the_same_name_twice_is_told_apart(tmp_path: Path) -> None:
    files = [picture(tmp_path / "a" / "x.png"), picture(tmp_path / "b" / "x.png")]
    pairs, _ = read_pairs(files, ["a cat"])
    assert [pair.id for pair in pairs] == ["x.png", "x.png (2)"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(UsageError, check=coded("no_images"), match=r"1 files .*a\.txt"):
        read_pairs([str(tmp_path)], ["a cat"])
    with pytest.raises(UsageError, check=coded("missing_file", path="nowhere")):
        read_pairs(["nowhere"], ["a cat"])


def test_there_is_an_end_to_pairs() -> None:
    with pytest.raises(UsageError, check=coded("too_many", images=400, texts=60)):
        read_pairs(["emoji/judge-heldback"], [f"text {number}" for number in range(60)])


def test_a_folder_that_links_to_itself_is_read_once(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "again").symlink_to(tmp_path)
    pairs, _ = read_pairs([str(tmp_path)], ["a cat"])
    assert [pair.id for pair in pairs] == ["a.png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": ["a cat", " "]}, "a text is empty"),
        ({"targets": ["a dog"]}, "targets have no effect with the objective 'negation'"),
        ({"objective": "targeted"}, "a targeted attack needs a target"),
        ({"objective": "untargeted", "negations": ["no"]}, "negations have no effect with the objective"),
        ({"negations": ["a", "b"]}, "2 negations for 1 texts"),
        ({"objective": "targeted", "targets": ["a", "b"]}, "2 targets for 1 texts"),
        ({"texts": ["a", " a"], "negations": ["b", "c"]}, "the text 'a' is given twice"),
        ({"texts": ["a", "a"], "objective": "targeted", "targets": ["b", "c"]}, "the text 'a' is given twice"),
        ({"images": []}, "no images"),
        ({"images": ["nowhere/at/all"]}, "no image or folder at 'nowhere/at/all'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_of_a_call(given: dict, message: str) -> None:
    call = {"images": ["emoji/scenes"], "texts": ["a cat"], "negations": [], "targets": [], "objective": "negation"}
    found = list(faults_of_texts(**(call | given)))
    assert len(found) == 1
    assert message in found[0]
