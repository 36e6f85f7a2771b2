from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.referees.base import TextTower, TwoTower
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.toy import toy_referee
from robustclip.synthesis.prompts import Part, Prompt, check_context, parse_all

WEIGHTS = st.floats(-100, 100, allow_nan=False).filter(bool)
CONTENTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
AWKWARD = st.text(":|\\ 1.a\n", min_size=1).filter(str.strip)
STOPS = st.just(-math.inf) | st.floats(allow_nan=False, max_value=1e308)
PARTS = st.builds(Part, CONTENTS | AWKWARD, WEIGHTS | st.just(1.0), st.sampled_from(["text", "image"]), STOPS)


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_the_canonical_text_reads_back(parts: list[Part]) -> None:
    parts.append(Part("something", 2))
    prompt = Prompt(tuple(parts))
    assert Prompt.parse(str(prompt)) == prompt
    assert str(Prompt.parse(str(prompt))) == str(prompt)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a green turtle", [Part("a green turtle")]),
        ("  a cat  ", [Part("a cat")]),
        ("a cat:1.0", [Part("a cat")]),
        ("a cat:.5 | blurry:-3e-1", [Part("a cat", 0.5), Part("blurry", -0.3)]),
        ("turtle: terrapin", [Part("turtle: terrapin")]),
        ("turtle: terrapin:2", [Part("turtle: terrapin", 2)]),
        (r"a format of 16\:9", [Part("a format of 16:9")]),
        (r"16\:9:0.5 | route 66 :2", None),
        ("route 66 :2", [Part("route 66", 2)]),
        ("a|b", [Part("a|b")]),
        (r"a \| b", [Part("a | b")]),
        (r"C\:\new", [Part(r"C:\new")]),
        (r"a \\:2", [Part("a \\", 2)]),
        ("a cat:2:0.8", [Part("a cat", 2, stop=0.8)]),
        ("a cat:1:.5 | blurry:-.3:-1e-1", [Part("a cat", stop=0.5), Part("blurry", -0.3, stop=-0.1)]),
        ("route 66 :1:0", [Part("route 66", stop=0.0)]),
        (r"a ratio of 16\:9 :2:0.8", [Part("a ratio of 16:9", 2, stop=0.8)]),
        ("turtle: terrapin:2:0.8", [Part("turtle: terrapin", 2, stop=0.8)]),
        ("image:leaf.png:0.5:0.8", [Part("leaf.png", 0.5, "image", 0.8)]),
        ("image:leaf.png", [Part("leaf.png", kind="image")]),
        ("image:my leaf.png:0.5", [Part("my leaf.png", 0.5, "image")]),
        (r"image\:leaf.png", [Part("image:leaf.png")]),
        ("image: a word", [Part("image: a word")]),
    ],
)
def test_parts_and_weights(text: str, parts: list[Part] | None) -> None:
    if parts is None:
        with pytest.raises(
            UsageError, check=coded("ambiguous_weight", given="0.5", spaced="16\\:9 :0.5", plain="16\\:9\\:0.5")
        ):
            Prompt.parse(text)
    else:
        assert list(Prompt.parse(text).parts) == parts


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("", coded("empty_prompt")),
        (" \n\t", coded("empty_prompt")),
        ("a cat\0", coded("not_utf8", given="a cat\0")),
        ("a \ud800", coded("not_utf8", given="a \ud800")),
        ("x" * 10_001, coded("too_long", length=10001, most=10000)),
        ("a cat | ", coded("empty_prompt")),
        ("| a cat", coded("empty_prompt")),
        ("a cat:much", coded("not_a_weight", given="much", plain="a cat\\:much")),
        ("a cat:nan", coded("not_a_weight", given="nan")),
        ("a cat:inf", coded("not_a_weight", given="inf")),
        ("a cat:", coded("not_a_weight", given="")),
        ("a cat:0,5", coded("not_a_weight", given="0,5")),
        ("a cat:١", coded("not_a_weight", given="١")),
        ("see https://a.b", coded("not_a_weight", given="//a.b")),
        ("a cat:0", coded("out_of_range", argument="weight", given=0)),
        ("a cat:100.5", coded("out_of_range", argument="weight", given=100.5)),
        ("a cat:1e999", coded("out_of_range", argument="weight", given=math.inf)),
        ("16:9", coded("ambiguous_weight", given="9", spaced="16 :9", plain="16\\:9")),
        ("at 10:30", coded("ambiguous_weight", given="30", spaced="at 10 :30", plain="at 10\\:30")),
        ("a cat:1:1e999", coded("out_of_range", argument="stop", given=math.inf)),
        ("a cat:0:0.8", coded("out_of_range", argument="weight", given=0)),
        ("a cat:1:much", coded("not_a_weight", given="much")),
        ("at 10:30:2", coded("ambiguous_weight", given="30", spaced="at 10 :30:2", plain="at 10\\:30 :2")),
        ("badly drawn:-0.3", coded("no_positive_weight")),
        ("image:", coded("no_file")),
        (":2", coded("empty_prompt")),
    ],
)
def test_faulty_prompts_are_told(text: str, check) -> None:
    with pytest.raises(UsageError, check=check):
        Prompt.parse(text)
    with pytest.raises(UsageError, check=check):
        parse_all([text])


def test_what_only_pushes_away_joins_every_other_prompt() -> None:
    found = parse_all(["a cat:1.0", "badly drawn:-0.3", "a dog | old:-1", "red:-1 | green:-2"])
    assert list(map(str, found)) == [
        "a cat | badly drawn:-0.3 | red:-1 | green:-2",
        "a dog | old:-1 | badly drawn:-0.3 | red:-1 | green:-2",
    ]


def test_a_call_needs_prompts() -> None:
    with pytest.raises(UsageError, check=coded("no_prompts")):
        parse_all([])
    with pytest.raises(UsageError, match=r"write \['a cat'\]"):
        parse_all("a cat")
    with pytest.raises(UsageError, check=coded("no_positive_weight")):
        parse_all(["a:-1", "b:-1"])


def test_captions_are_taken_as_they_stand() -> None:
    caption = r"at 10:30 | image:a cat:much \:"
    assert Prompt.literal(caption).parts == (Part(caption),)
    assert Prompt.parse(str(Prompt.literal(caption))) == Prompt.literal(caption)


def test_titles_are_for_people() -> None:
    prompt = Prompt.parse("a\n cat | image:some/where/leaf.png:2 | badly drawn:-0.3")
    assert prompt.title == "a cat, leaf.png, not badly drawn"
    assert prompt.wanted == "a cat, leaf.png"


def test_pictures_among_the_parts_are_read_when_asked(tmp_path: Path) -> None:
    save_image(torch.rand(3, 8, 8), tmp_path / "leaf.png")
    (tmp_path / "text.png").write_text("no picture")
    Prompt.parse(f"a cat | image:{tmp_path}/leaf.png").check_images()
    with pytest.raises(UsageError, check=coded("no_image", path=tmp_path / "tree.png")):
        Prompt.parse(f"a cat | image:{tmp_path}/tree.png").check_images()
    with pytest.raises(UsageError, check=coded("not_a_picture", path=tmp_path / "text.png")):
        Prompt.parse(f"image:{tmp_path}/text.png:-1 | a cat").check_images()


class Words(TextTower):
    """A tower that reads three words."""

    width, context = 16, 3

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def forward(self, texts: list[str]) -> torch.Tensor:
        return torch.zeros(len(texts), 16)


def test_texts_beyond_the_context_are_refused() -> None:
    toy = toy_referee()
    referee = TwoTower(toy.image_tower, Words(), Preprocess(16), card=toy.card)
    check_context(referee, [Prompt.parse("one two three | image:a file of many words.png")])
    check_context(toy, [Prompt.parse("word " * 1000)])  # it knows no limit
    long = parse_all(["one two three", "one two three four | 1 2 3 4 5 x:-1"])
    with pytest.raises(UsageError, check=coded("too_many_tokens", text="1 2 3 4 5 x", tokens=6, most=3, others=1)):
        check_context(referee, long)
