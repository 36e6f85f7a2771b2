from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustclip.data.images import save_image
from robustclip.errors import UsageError
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
        with pytest.raises(UsageError, match=re.escape(r"'16\:9 :0.5'; if it is text, a backslash, '16\:9\:0.5'")):
            Prompt.parse(text)
    else:
        assert list(Prompt.parse(text).parts) == parts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the prompt is empty: say what to paint"),
        (" \n\t", "the prompt is empty"),
        ("a cat\0", "holds a zero byte"),
        ("a \ud800", "invalid Unicode"),
        ("x" * 10_001, "has 10001 characters: at most 10000"),
        ("a cat | ", "a part of the prompt is empty"),
        ("| a cat", "a part of the prompt is empty"),
        ("a cat:much", r"'a cat:much': the weight 'much' is not a number: .* before it, 'a cat\\:much'"),
        ("a cat:nan", "the weight 'nan' is not a number"),
        ("a cat:inf", "the weight 'inf' is not a number"),
        ("a cat:", "the weight '' is not a number"),
        ("a cat:0,5", "the weight '0,5' is not a number"),
        ("a cat:١", "the weight '١' is not a number"),
        ("see https://a.b", "is not a number"),
        ("a cat:0", "has the weight 0: a weight is a number from -100 to 100, not 0"),
        ("a cat:100.5", "has the weight 100.5"),
        ("a cat:1e999", "has the weight inf"),
        ("16:9", r"'16:9': is 9 a weight\? If it is, put a space before the colon, '16 :9'; .* '16\\:9'"),
        ("at 10:30", r"'at 10\\:30'"),
        ("a cat:1:1e999", "has the stop inf: a stop is a distance, as in 'a cat:1:0.8'"),
        ("a cat:0:0.8", "has the weight 0"),
        ("a cat:1:much", "the weight 'much' is not a number"),
        ("at 10:30:2", r"is 30 a weight\? .* before the colon, 'at 10 :30:2'; .* a backslash, 'at 10\\:30 :2'"),
        ("badly drawn:-0.3", "'badly drawn:-0.3' only pushes away"),
        ("image:", "image: names no file"),
        (":2", "a part of the prompt is empty"),
    ],
)
def test_faulty_prompts_are_told(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Prompt.parse(text)
    with pytest.raises(UsageError, match=message):
        parse_all([text])


def test_what_only_pushes_away_joins_every_other_prompt() -> None:
    found = parse_all(["a cat:1.0", "badly drawn:-0.3", "a dog | old:-1", "red:-1 | green:-2"])
    assert list(map(str, found)) == [
        "a cat | badly drawn:-0.3 | red:-1 | green:-2",
        "a dog | old:-1 | badly drawn:-0.3 | red:-1 | green:-2",
    ]


def test_a_call_needs_prompts() -> None:
    with pytest.raises(UsageError, match="there is no prompt"):
        parse_all([])
    with pytest.raises(UsageError, match=r"write \['a cat'\]"):
        parse_all("a cat")
    with pytest.raises(UsageError, match="give a prompt to add it to"):
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
    with pytest.raises(UsageError, match="no image at"):
        Prompt.parse(f"a cat | image:{tmp_path}/tree.png").check_images()
    with pytest.raises(UsageError, match="not a readable picture"):
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
    told = r"the prompt '1 2 3 4 5 x' has 6 tokens, and toy reads 3 per text \(and 1 more are too long\): shorten it"
    with pytest.raises(UsageError, match=told):
        check_context(referee, long)
