"""Recipes as functions of `robustclip.robustify` and `.synthesize`, as editors and notebooks complete them."""

from __future__ import annotations

import ast
import copy
import inspect
from pathlib import Path

import pytest
from mypy import api
from write_stubs import STUB, stub

import robustclip
from robustclip import calls, recipes
from robustclip.errors import UsageError


def test_the_stub_is_that_of_the_recipes() -> None:
    text = STUB.read_text(encoding="utf-8")
    assert text == stub()
    methods = {
        (node.name.strip("_").lower(), item.name)
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.FunctionDef) and item.name != "__call__"
    }
    every = {(room, one) for room in ("robustify", "synthesize") for one in recipes.available(room)}
    assert methods == {(room, one.path.stem) for room, one in every if one.base is None}
    assert all(f"    {one.path.stem} = {one.base.path.stem}\n" in text for _, one in every if one.base is not None)


def test_a_type_checker_refuses_wrong_keywords_of_recipes_and_of_presets(tmp_path: Path) -> None:
    calls = [
        'robustify.clipag_vit_b32(data=["a.tar"], eps=1.5)',
        'robustify.clipag_linf(data=["a.tar"], eps=2 / 255)',
        'robustify.clipag_linf(data=["a.tar"], epsilon=2 / 255)',
        'robustify.emoji_trades(steps="many")',
        'synthesize.clipag("a cat", stepz=3)',
    ]
    stub_lines = STUB.read_text(encoding="utf-8").splitlines()
    file = tmp_path / "called.py"
    file.write_text("\n".join([*stub_lines, *calls]), encoding="utf-8")
    flags = ["--follow-imports=skip", "--ignore-missing-imports", "--config-file=", "--disable-error-code=empty-body"]
    output, _, status = api.run([*flags, f"--cache-dir={tmp_path / 'cache'}", str(file)])
    lines = {int(line.split(":")[1]): line.rsplit("[")[-1] for line in output.splitlines()[:-1] if ": error:" in line}
    first = len(stub_lines) + 1
    assert status == 1
    assert lines == {first + 2: "call-arg]", first + 3: "arg-type]", first + 4: "call-arg]"}


def test_every_recipe_is_completed_with_its_own_signature() -> None:
    assert {"clipag", "doodl", "direct_ascent"} <= set(dir(robustclip.synthesize))
    assert "clipag_vit_b32" in dir(robustclip.robustify)
    shown = inspect.signature(robustclip.synthesize.clipag)
    assert str(shown) == str(inspect.signature(recipes.find("clipag", "synthesize").function))
    assert inspect.signature(robustclip.synthesize) == inspect.signature(recipes.synthesize)
    assert robustclip.synthesize.__doc__ == recipes.synthesize.__doc__
    with pytest.raises(AttributeError, match="no recipe 'clipage'"):
        calls.synthesize.clipage  # type: ignore[attr-defined]  # noqa: B018


def test_a_recipe_is_called_with_the_checks_of_its_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps="):
        robustclip.robustify.emoji(steps="many", quick=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stepz=: unknown argument; did you mean steps="):
        robustclip.synthesize.clipag("a cat", stepz=3)  # type: ignore[call-arg]
    assert copy.copy(robustclip.synthesize).__name__ == "synthesize"
    made = robustclip.synthesize.direct_ascent("a cat", quick=True, device="cpu", out=tmp_path / "run")
    assert len(made) == 1
    assert made.folder == tmp_path / "run"
