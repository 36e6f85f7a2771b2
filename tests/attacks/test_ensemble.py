from __future__ import annotations

import pytest

from robustclip.attacks.library import Part, parts
from robustclip.attacks.spec import AttackSpec
from robustclip.errors import UsageError


@pytest.mark.parametrize(
    ("spec", "classes", "expected"),
    [
        ("l2:1@apgd-ce", 2, [Part("apgd", 100)]),
        ("l2:1@apgd-dlr:7", 3, [Part("apgd-dlr", 7)]),
        ("l2:1@apgd-t:7", 4, [Part("apgd-t", 7, 3)]),
        ("l2:1@square:9", 2, [Part("square", 9)]),
        (
            "l2:1@autoattack",
            1000,
            [Part("apgd", 100), Part("apgd-t", 100, 9), Part("fab-t", 100, 9), Part("square", 5000)],
        ),
        (
            "l2:1@autoattack",
            6,
            [Part("apgd", 100), Part("apgd-t", 100, 5), Part("fab-t", 100, 5), Part("square", 5000)],
        ),
        ("l2:1@autoattack-light", 1000, [Part("apgd", 100), Part("apgd-t", 100, 3)]),
    ],
)
def test_the_parts_have_the_papers_numbers(spec: str, classes: int, expected: list[Part]) -> None:
    assert parts(AttackSpec.parse(spec), classes) == expected


@pytest.mark.parametrize(
    ("spec", "classes", "message"),
    [
        ("l2:1@apgd-ce", 1, "at least 2 labels, and there are 1 to choose from: take more labels"),
        ("l2:1@square", 1, "at least 2 labels"),
        ("l2:1@apgd-t", 1, "at least 4 labels, and there are 1 to choose from: take more labels"),
        ("l2:1@apgd-dlr", 2, "at least 3 labels, .*: take l2:1@apgd-ce or l2:1@square, or more labels"),
        ("l2:1@apgd-t", 3, "at least 4 labels, and there are 3"),
        ("l2:1@autoattack", 3, "l2:1@autoattack compares the logits of at least 4 labels"),
        ("l2:1@autoattack-light", 3, "at least 4 labels"),
        ("l2:1@20", 10, "is PGD"),
    ],
)
def test_too_few_classes_and_what_would_do(spec: str, classes: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parts(AttackSpec.parse(spec), classes)
