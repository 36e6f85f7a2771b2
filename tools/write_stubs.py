"""Write src/robustclip/calls.pyi, the stubs of recipes that editors complete.

python tools/write_stubs.py
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

from robustclip import recipes, signatures
from robustclip.recipes import Recipe
from robustclip.runs.files import write_text
from robustclip.signatures import Parameter

STUB = Path(__file__).parents[1] / "src" / "robustclip" / "calls.pyi"
RESULTS = {"robustify": "Trained", "synthesize": "Result"}
INDENT = " " * 8
TYPES = {"INTEGER": "int", "NUMBER": "float", "TEXT": "str", "PATH": "str | Path", "": "bool"}
HEAD = '''"""Signatures of the recipes, for editors. Written by tools/write_stubs.py: do not edit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from robustclip.recipes import Trained
from robustclip.synthesis.painted import Result

'''


def annotation(parameter: Parameter) -> str:
    """The type that a caller may give, in plain Python."""
    if parameter.choices:
        kind = f"Literal[{', '.join(map(repr, parameter.choices))}]"
    else:
        kind = " | ".join(dict.fromkeys(TYPES.get(word, "Any") for word in parameter.label.split("|")))
    kind = f"Sequence[{kind}]" if parameter.repeated else kind
    return f"{kind} | None" if parameter.default is None else kind


def alias(recipe: Recipe, base: Recipe) -> str:
    """The lines of a preset, which takes what its base takes."""
    return f'    {recipe.path.stem} = {base.path.stem}\n    """{summary(recipe)}"""'


def summary(recipe: Recipe) -> str:
    """The first paragraph of a recipe's docstring, in one line."""
    return recipe.describe().doc.split("\n\n")[0].replace("\n", " ")


def method(recipe: Recipe, result: str) -> str:
    """The lines of one recipe: its parameters fill lines of 120 characters."""
    described = recipe.describe()
    parameters = signatures.of_signature(described.signature, recipe.name)
    positional = [f"{one.name}: str | Sequence[str] = ..." for one in parameters if one.positional]
    keywords = [f"{one.name}: {annotation(one)} = ..." for one in parameters if not one.positional]
    listed = ", ".join(["self", *positional, "*", *keywords]).replace(" ", "\0").replace(",\0", ", ")
    lines = textwrap.fill(listed, 120, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False)
    head = f"    def {recipe.path.stem}(\n" + lines.replace("\0", " ") + f"\n    ) -> {result}:"
    return f'{head}\n        """{summary(recipe)}"""'


def stub() -> str:
    """The whole file."""
    lines = [HEAD]
    for group, result in RESULTS.items():
        lines += [f"class _{group.title()}:"]
        own = inspect.signature(getattr(recipes, group))
        given = (
            ["recipe: str"] if group == "robustify" else [f"{next(iter(own.parameters))}: Sequence[str] | str | Path"]
        )
        given += [] if group == "robustify" else ["referee: Any = ...", "*", "recipe: str = ..."]
        lines += [f"    def __call__(self, {', '.join(given)}, **arguments: Any) -> {result}: ..."]
        for recipe in sorted(recipes.available(group), key=lambda recipe: recipe.base is not None):
            lines.append(alias(recipe, base) if (base := recipe.base) else method(recipe, result))
        lines += ["", f"{group}: _{group.title()}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    text = stub()
    write_text(STUB, text)
