from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from robustclip.errors import UsageError, coded
from robustclip.synthesis.items import (
    LONGEST,
    Item,
    Named,
    Seeds,
    apart,
    items_of,
    items_of_named,
    parse_seeds,
    slug,
    stem,
)
from robustclip.synthesis.prompts import Prompt, parse_all


@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        ("0..3", [0, 1, 2, 3]),
        ("0,5,7", [0, 5, 7]),
        ("3", [3]),
        ("1..2, 9", [1, 2, 9]),
        (["0..1", "4"], [0, 1, 4]),  # what the command line makes of "0..1,4"
        (7, [7]),
        ([3, 1], [3, 1]),
        (range(2), [0, 1]),
        ("9223372036854775807", [2**63 - 1]),
    ],
)
def test_seeds_are_numbers_lists_and_ranges(given: object, seeds: list[int]) -> None:
    assert TypeAdapter(Seeds).validate_python(given) == seeds


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ("", coded("not_a_seed", given="")),
        ([], coded("no_seed")),
        ("a", coded("not_a_seed", given="a")),
        ("-1", coded("not_a_seed", given="-1")),
        ("1.5", coded("not_a_seed", given="1.5")),
        ("1...3", coded("not_a_seed", given="1...3")),
        ("٣", coded("not_a_seed", given="٣")),
        ("0,,1", coded("not_a_seed", given="")),
        ("3..0", coded("empty_range", instead="0..3")),
        ("0..9999999999", coded("too_many", seeds=10000000000, most=10000)),
        ("0..9998,9999,10000", coded("too_many", seeds=10001)),
        ("0..3,2", coded("listed_twice", seed=2)),
        ("9223372036854775808", coded("too_large", seed=9223372036854775808)),
    ],
)
def test_faulty_seeds_are_told(given: object, check) -> None:
    with pytest.raises(UsageError, check=check):
        parse_seeds(given)


def test_pictures_are_named_by_prompt_and_seed() -> None:
    found = items_of(parse_all(["A green turtle!", "a green turtle", "a cat", "a cat", "blurry:-1"]), [0, 2])
    names = [item.id for item in found]
    assert names[:2] == ["a-green-turtle-s0", "a-green-turtle-s2"]
    assert names[2].startswith("a-green-turtle-")
    assert names[2].endswith("-s0")
    assert names[4:6] == ["a-cat-s0", "a-cat-s2"]
    assert len(set(names)) == 8
    assert [item.repeat for item in found] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert items_of(parse_all(["a cat"]), [0])[0] == Item("a-cat-s0", Prompt.literal("a cat"), 0)


def test_named_prompts_keep_their_names_and_seeds() -> None:
    named = [Named("x", Prompt.literal("a cat")), Named("y", Prompt.literal("a cat"), seed=5)]
    assert [(item.id, item.seed, item.repeat) for item in items_of_named(named, [1])] == [("x", 1, 0), ("y", 5, 1)]
    found = items_of_named(named, [1, 2])
    assert [(item.id, item.seed) for item in found] == [("x-s1", 1), ("x-s2", 2), ("y-s5", 5)]


def test_randomness_is_the_pictures_own() -> None:
    cat, dog = items_of(parse_all(["a cat", "a dog"]), [0])

    def drawn(item: Item, *key: int, purpose: str = "views") -> float:
        return torch.rand((), generator=item.generator(purpose, *key)).item()

    same = Item("another-name", cat.prompt, 0)
    assert drawn(cat, 1) == drawn(cat, 1) == drawn(same, 1)
    others = [drawn(dog, 1), drawn(cat, 2), drawn(cat, 1, purpose="init")]
    others += [drawn(Item("a", cat.prompt, 1), 1), drawn(Item("a", cat.prompt, 0, repeat=1), 1)]
    assert len({drawn(cat, 1), *others}) == 6


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("42", "42"),
        ("COCO_val2014_000000391895", "COCO_val2014_000000391895"),
        ("../../etc/passwd", "etc-passwd"),
        ("a.b.c", "a-b-c"),
        ("..", "picture"),
        ("-rf", "rf"),
        ("con", "picture-con"),
        ("LPT1", "picture-LPT1"),
        ("COM¹", "picture-COM1"),
        ("naïve", "naïve"),
        ("猫/犬", "猫-犬"),
        ("🐢", "picture"),
        ("a\u202eb\n", "a-b"),
    ],
)
def test_stems_are_safe(text: str, name: str) -> None:
    assert stem(text) == name


@given(st.text())
def test_stems_fit_everywhere(text: str) -> None:
    for name in (stem(text), slug(text), apart([("x", ""), (stem(text * 9), text), (stem(text * 9), text)])[2]):
        assert name
        assert len(name) <= LONGEST + 13
        assert len(name.encode("utf-8")) <= 2 * LONGEST + 13
        assert not set(name) & set('/\\:*?"<>|. \n\0')


def test_long_texts_are_cut_and_told_apart() -> None:
    one, other = stem("x" * 200 + "1"), stem("x" * 200 + "2")
    assert len(one) == len(other) == LONGEST
    assert one != other
    assert slug("a burger with cheese " * 9) == "a-burger-with-cheese-a-burger-with-cheese-a-burger-with"


def test_names_differ_where_case_and_encoding_do_not_count() -> None:
    found = apart([("Cat", "a"), ("cat", "b"), ("cat", "b"), ("e\u0301", "c"), ("\u00e9", "d")])
    assert found[0] == "Cat"
    assert found[1] == "cat-3e23e8"  # sha256("b")
    assert found[2] == "cat-3e23e8160039"
    assert found[4].startswith("\u00e9-")
    assert len({name.casefold() for name in found}) == 5


def test_more_pictures_than_a_list_holds_are_refused() -> None:
    with pytest.raises(UsageError, check=coded("too_many", prompts=200, seeds=10000, most=1000000)):
        items_of(parse_all([f"a {number}" for number in range(200)]), range(10_000))
