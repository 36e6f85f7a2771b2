"""Signatures read from source are those of the functions, and no help imports torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from robustclip import signatures
from robustclip.cli import app
from robustclip.commands import TypedCommand
from robustclip.source import Source


def leaves(group: click.Group, *path: str) -> Iterator[tuple[str, TypedCommand]]:
    """Every command that does something, with its words."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        elif isinstance(command, TypedCommand):
            yield " ".join((*path, name)), command


LEAVES = dict(leaves(app))


def shown(parameter: signatures.Parameter) -> tuple[object, ...]:
    kind = (parameter.positional, parameter.repeated, parameter.required)
    return parameter.name, parameter.label, parameter.help, parameter.choices, *kind, repr(parameter.default)


@pytest.mark.parametrize("words", LEAVES)
def test_what_help_shows_is_what_is_called(words: str) -> None:
    command = LEAVES[words]
    assert command.describe is not None
    described = command.describe()
    function = command.load()
    parameters = signatures.of_signature(described.signature, words)
    assert list(map(shown, parameters)) == list(map(shown, signatures.parameters(function)))
    assert described.doc == inspect.getdoc(function)


def test_no_help_imports_what_is_slow_to_import() -> None:
    """Of no verb, sub-verb or recipe: torch, psutil, progress bars."""
    words = [leaf.split() for leaf in LEAVES]
    code = f"""
import sys
from click.testing import CliRunner
from robustclip.cli import app
for words in {words}:
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, (words, done.exception)
    assert not {{"torch", "psutil", "rich.progress"}} & set(sys.modules), words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def module(tmp_path: Path) -> Source:
    path = tmp_path / "heavy.py"
    path.write_text('''
from __future__ import annotations
import no_such_library
from no_such_library import Tensor, checked
from pathlib import Path
from typing import Annotated, Literal
from pydantic import AfterValidator, PositiveInt
raise RuntimeError("was run")
STEPS = 4 * 25
Norm = Literal["l2", "linf"]
Checked = Annotated[int, AfterValidator(checked(no_such_library.here)), "a number"]
class Thing: ...
def recipe(prompt: str, *, steps: PositiveInt = STEPS, norm: Norm = "l2", n: Checked = -1,
           of: Thing | Tensor | None = None, out: Path = Path("runs") / "x") -> None:
    """Do it."""
''')
    return Source(path)


def test_a_signature_is_read_without_running_its_module(module: Source) -> None:
    described = module.read("recipe")
    assert described.doc == "Do it."
    found = {one.name: one for one in signatures.of_signature(described.signature, "recipe")}
    assert found["prompt"].positional
    assert (found["steps"].default, found["n"].default, found["out"].default) == (100, -1, Path("runs/x"))
    assert found["norm"].choices == ("l2", "linf")
    assert (found["n"].label, found["n"].help) == ("INTEGER", "a number")
    assert found["of"].label == "THING|TENSOR"


def test_what_is_not_there_is_an_error(module: Source) -> None:
    with pytest.raises(KeyError):
        module.read("nothing")
    with pytest.raises(AttributeError):
        module["nothing"]
