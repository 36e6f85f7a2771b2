"""Recipes as functions of `robustclip.robustify` and `.synthesize`, as editors and notebooks complete them."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
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
    assert methods == {(room, one.path.stem) for room in ("robustify", "synthesize") for one in recipes.available(room)}


def test_every_recipe_is_completed_with_its_own_signature() -> None:
    assert {"clipag", "doodl", "direct_ascent"} <= set(dir(robustclip.synthesize))
    assert "clipag_vit_b32" in dir(robustclip.robustify)
    shown = inspect.signature(robustclip.synthesize.clipag)
    assert shown == inspect.signature(recipes.find("clipag", "synthesize").function)
    assert inspect.signature(robustclip.synthesize) == inspect.signature(recipes.synthesize)
    assert robustclip.synthesize.__doc__ == recipes.synthesize.__doc__
    with pytest.raises(AttributeError, match="no recipe 'clipage'"):
        calls.synthesize.clipage  # type: ignore[attr-defined]  # noqa: B018


def test_a_recipe_is_called_with_the_checks_of_its_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps="):
        robustclip.robustify.emoji(steps="many", quick=True)  # type: ignore[arg-type]
    made = robustclip.synthesize.direct_ascent("a cat", quick=True, device="cpu", out=tmp_path / "run")
    assert len(made) == 1
    assert made.folder == tmp_path / "run"
