from __future__ import annotations

import pytest

from robustclip.attacks.library import Part, parts
from robustclip.attacks.spec import AttackSpec
from robustclip.errors import UsageError, coded


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
    ("spec", "classes", "check"),
    [
        ("l2:1@apgd-ce", 1, coded("too_few_labels", labels=1, fewest=2)),
        ("l2:1@square", 1, coded("too_few_labels", labels=1, fewest=2)),
        ("l2:1@apgd-t", 1, coded("too_few_labels", labels=1, fewest=4)),
        ("l2:1@apgd-dlr", 2, coded("too_few_labels", labels=2, fewest=3)),
        ("l2:1@apgd-t", 3, coded("too_few_labels", labels=3, fewest=4)),
        ("l2:1@autoattack", 3, coded("too_few_labels", labels=3, fewest=4)),
        ("l2:1@autoattack-light", 3, coded("too_few_labels", labels=3, fewest=4)),
        ("l2:1@20", 10, coded("is_pgd")),
    ],
)
def test_too_few_classes_and_what_would_do(spec: str, classes: int, check) -> None:
    with pytest.raises(UsageError, check=check):
        parts(AttackSpec.parse(spec), classes)
