"""Blocks of flags: a recipe's parameter that stands for the block's fields."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from robustclip import recipes
from robustclip.errors import UsageError, coded
from robustclip.flags import CommonFlags, SynthesisFlags, TableFlags, flat, flattened

RECIPE = '''
from robustclip.flags import LoopFlags, TableFlags, flat

def recipe(
    *, steps: int = 5, loop: LoopFlags = LoopFlags(keep=3), common: TableFlags = TableFlags(dtype="float32")
) -> dict[str, object]:
    """Return the arguments."""
    return flat(locals()) | {"numbers": (steps, loop.keep, common.seed)}
'''


def blocks(*, steps: int = 5, common: CommonFlags = TableFlags(dtype="float32")) -> tuple[int, CommonFlags]:
    """Return what comes."""
    return steps, common


def test_a_block_is_its_fields_where_it_stands() -> None:
    signature = inspect.signature(flattened(blocks))
    assert list(signature.parameters) == ["steps", "resume", "device", "dtype", "seed", "out", "quick"]
    assert [one.default for one in signature.parameters.values()] == [5, None, "auto", "float32", 0, None, False]
    assert flattened(blocks)() == blocks()
    assert flattened(blocks)(seed=3, steps=6) == (6, TableFlags(dtype="float32", seed=3))


def test_arguments_are_those_of_the_call() -> None:
    assert flat({"steps": 5, "common": CommonFlags(seed=2)}) == {"steps": 5, **vars(CommonFlags(seed=2))}
    assert flat({"seeds": [0, 1], "common": SynthesisFlags()})["seeds"] == [0, 1]
    found = flat({"seeds": [0, 1], "common": SynthesisFlags(seed=2)})
    assert (found["seeds"], found["seed"]) == ([2], None), "an alias, which must not win over --seeds of a resumed run"


def test_a_recipe_file_takes_blocks(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    recipe = recipes.find(str(path), "robustify")
    assert recipe.describe().signature.parameters == inspect.signature(recipe.function).parameters
    found: dict[str, Any] = recipes.robustify(str(path), steps=6, keep="4", seed=1)
    assert found["numbers"] == (6, 4, 1)
    assert (found["dtype"], found["checkpoint_every"]) == ("float32", 500)
    with pytest.raises(UsageError, check=coded("greater_than_equal", argument="seed", given=-1)):
        recipes.robustify(str(path), seed=-1)
