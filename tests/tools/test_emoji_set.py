"""The builder of the emoji set: its pure parts, without the packages it draws from."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from emoji_set.concepts import Concept, captions_of, concepts_of, family, keyed, plain_label, slug, with_article
from emoji_set.shards import write_shard
from emoji_set.splits import make_splits
from emoji_set.styles import GUIDE_STYLES, STYLES, UNSEEN_STYLES, WITH_HEXCODES, IconSet, Matcher


def concept(code: str, label: str, group: str = "animals-nature", keywords: tuple[str, ...] = ()) -> Concept:
    return Concept(code, plain_label(label), label, group, keywords)


def write_icons(folder: Path, icons: dict[str, str], aliases: dict[str, dict], chars: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    content = {"icons": {name: {"body": body} for name, body in icons.items()}, "aliases": aliases}
    (folder / "icons.json").write_text(json.dumps({**content, "width": 32, "height": 32}))
    (folder / "chars.json").write_text(json.dumps(chars))


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A node_modules folder whose noto knows a turtle (by hexcode) and whose emojione calls it by an old name."""
    base = tmp_path / "emojibase-data"
    (base / "meta").mkdir(parents=True)
    (base / "meta/unicode-names.json").write_text(json.dumps({"1F422": "TURTLE", "1F98A": "FOX FACE"}))
    (base / "en/shortcodes").mkdir(parents=True)
    for preset in ("cldr", "emojibase", "iamcal", "github", "joypixels"):
        (base / f"en/shortcodes/{preset}.json").write_text(json.dumps({"1F422": ["turtle", "tortoise"]}))
    for style in STYLES:
        if style == "openmoji":
            continue
        icons, aliases, chars = {}, {}, {}
        if style in WITH_HEXCODES:
            icons, aliases = {"turtle": "<a/>", "vulpes": "<b/>"}, {"old-fox": {"parent": "vulpes"}}
            chars = {"1f422": "turtle", "1f98a": "vulpes"}
        elif style == "emojione":
            icons, aliases = (
                {"tortoise": "<c/>", "old-fox": "<d/>"},
                {"mirrored": {"parent": "tortoise", "hFlip": True}},
            )
        elif style == "noto-v1":
            icons = {"foxface": "<e/>"}
        write_icons(tmp_path / "@iconify-json" / style, icons, aliases, chars)
    return tmp_path


TURTLE, FOX = concept("1F422", "turtle"), concept("1F98A", "fox")


@pytest.mark.parametrize(
    ("style", "found"),
    [
        ("noto", {"1F422": "turtle", "1F98A": "vulpes"}),  # by hexcode
        ("emojione", {"1F422": "tortoise", "1F98A": "old-fox"}),  # by shortcode, and by another set's alias
        ("noto-v1", {"1F98A": "foxface"}),  # by Unicode name, hyphens aside
        ("fluent-emoji", {}),
    ],
)
def test_drawings_are_found_by_any_of_their_names(packages: Path, style: str, found: dict[str, str]) -> None:
    assert Matcher(packages).match(style, [TURTLE, FOX]) == found


def test_no_drawing_shows_two_concepts(packages: Path) -> None:
    twin = concept("1F9A0", "tortoise")
    matched = Matcher(packages).match("emojione", [TURTLE, twin])
    assert matched == {"1F9A0": "tortoise"}  # the exact name wins


def test_a_wrong_name_in_the_table_is_reported(packages: Path) -> None:
    with pytest.raises(ValueError, match="fxemoji has no drawing named 'dogside'"):
        Matcher(packages).match("fxemoji", [concept("1F415", "dog")])


def test_svg_is_square_and_mirrored_where_the_alias_says(packages: Path) -> None:
    icons = IconSet.read(packages / "@iconify-json" / "emojione")
    icons.icons["tortoise"] |= {"width": 64}
    assert 'viewBox="0 -16 64 64"' in icons.svg("tortoise")
    assert "scale" not in icons.svg("tortoise")
    assert '<g transform="translate(64 0) scale(-1 1)"><c/></g>' in icons.svg("mirrored")


def test_skin_tones_flags_and_keycaps_are_no_concepts() -> None:
    records = [
        {"label": "keycap: 1", "hexcode": "31", "group": 8, "order": 5},
        {"label": "flag: France", "hexcode": "F", "group": 9, "order": 4},
        {"label": "light skin tone", "hexcode": "L", "group": 2, "order": 3},
        {"label": "regional indicator A", "hexcode": "A"},
        {"label": "turtle", "hexcode": "1F422", "group": 3, "order": 2, "tags": ["turtle", "terrapin", "tortoise"]},
        {"label": "fox", "hexcode": "1F98A", "group": 3, "order": 1},
    ]
    assert [(c.label, c.keywords) for c in concepts_of(records)] == [("fox", ()), ("turtle", ("terrapin", "tortoise"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("piñata", "pinata"),
        ("woman’s boot", "womans-boot"),
        ("Mrs. Claus", "mrs-claus"),
        ("A button (blood type)", "a-button-blood-type"),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected


@pytest.mark.parametrize(
    ("unicode_label", "expected"),
    [
        ("turtle", "turtle"),
        ("Japanese “here” button", 'Japanese "here" button'),
        ("family: man, woman, boy", "family of a man, a woman and a boy"),
        ("kiss: man, man", "kiss between a man and a man"),
        ("couple with heart: woman, man", "couple with heart, a woman and a man"),
        ("person: blond hair", "person with blond hair"),
        ("woman: bald", "bald woman"),
        ("man running: facing right", "man running facing right"),
    ],
)
def test_labels_are_said_plainly(unicode_label: str, expected: str) -> None:
    assert plain_label(unicode_label) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("turtle", "a turtle"),
        ("owl", "an owl"),
        ("hourglass done", "an hourglass done"),
        ("unicorn", "a unicorn"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("SOS button", "an SOS button"),
        ("x-ray", "an x-ray"),
        ("grapes", "grapes"),
        ("octopus", "an octopus"),
        ("face with tears of joy", "a face with tears of joy"),
        ("people wrestling", "people wrestling"),
        ("eight o'clock", "eight o'clock"),
        ("popcorn", "popcorn"),
        ("Statue of Liberty", "the Statue of Liberty"),
    ],
)
def test_articles(label: str, expected: str) -> None:
    assert with_article(label) == expected


def test_captions_say_the_same_in_several_ways() -> None:
    captions = captions_of(concept("1F422", "turtle", keywords=("animal", "terrapin", "tortoise")))
    assert captions[0] == "turtle"
    assert "an emoji of a turtle" in captions
    assert "turtle: animal, terrapin, tortoise" in captions
    assert len(captions) == len(set(captions)) == 8
    assert len(captions_of(concept("1F422", "turtle"))) == 5


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("one o’clock", "four-thirty", True),
        ("woman astronaut", "astronaut", True),
        ("man running", "person running: facing right", False),
        ("A button (blood type)", "Japanese “here” button", True),
        ("up arrow", "BACK arrow", False),
        ("cat", "dog", False),
        ("Santa Claus", "Mrs. Claus", True),
        ("calendar", "tear-off calendar", True),
    ],
)
def test_families_join_what_looks_alike(one: str, other: str, same: bool) -> None:
    assert (family(one) == family(other)) == same


def test_splits_are_drawn_by_hash_and_spread_over_groups() -> None:
    groups = ("animals-nature", "food-drink", "objects", "symbols")
    concepts = [concept(f"{i:X}", f"thing{i}", groups[i % 4]) for i in range(1600)]
    concepts += [concept("clock", "one o’clock"), concept("clock too", "four-thirty")]
    drawn = {c.id: list(STYLES) for c in concepts} | {"5": ["noto", *UNSEEN_STYLES]}
    splits = make_splits(concepts, drawn)
    held_out = set(splits["heldout_concepts"])
    assert len(held_out) == 100
    assert "5" not in held_out
    assert make_splits(concepts, drawn) == splits
    judged = splits["judge_heldback"]
    assert len(judged) == 200
    assert not {"clock", "clock too"} <= set(judged)
    assert not held_out & set(judged)
    assert all(guide in GUIDE_STYLES and unseen in UNSEEN_STYLES for guide, unseen in judged.values())
    assert len({guide for guide, _ in judged.values()}) == len(GUIDE_STYLES)


def test_twins_are_never_held_out() -> None:
    concepts = [concept(f"{i:X}", f"{who} juggling") for i, who in enumerate(["man", "woman", "person"])]
    assert make_splits(concepts, {c.id: list(STYLES) for c in concepts})["heldout_concepts"] == []


def test_keys_differ_by_purpose() -> None:
    assert keyed("judge", "1F422") != keyed("held-out", "1F422")


def test_shards_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    members = [("a-x.webp", b"\x00\x01"), ("a-x.json", b"{}"), ("a-x.txt", b"a")]
    write_shard(tmp_path / "one" / "emoji.tar.gz", members)
    write_shard(tmp_path / "two.tar", iter(members))
    assert (tmp_path / "one" / "emoji.tar.gz").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "two.tar", "r|*") as tar:  # as webdataset opens it: gzip is found by itself
        assert [member.name for member in tar] == [name for name, _ in members]


def test_drawing_is_small_sharp_and_the_same_each_time() -> None:
    pytest.importorskip("resvg_py", reason="drawing needs the extra 'assets'")
    from emoji_set.drawing import draw, picture, spread_colours

    square = '<rect x="8" y="8" width="16" height="16" fill="#ff0000"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32" viewBox="0 0 32 32">{square}</svg>'
    image = np.asarray(draw(svg))
    assert image.shape == (64, 64, 4)
    assert image[32, 32].tolist() == [255, 0, 0, 255]
    assert image[4, 4, 3] == 0
    assert (spread_colours(image)[..., 0] > 250).all()  # red runs on under what is transparent
    first, second = picture(svg), picture(svg)
    assert first is not None
    assert first == second
    assert len(first) < 500
    assert picture(svg.replace("16", "1")) is None  # next to nothing
