"""Read a function's signature and docstring from its module's source, without importing the module.

Help and completion need types, defaults and texts of functions whose modules import torch. Only the names that the
signature uses are evaluated: constants and type aliases from their source, recursively; names of light libraries
(typing, pydantic, pathlib) by import; anything else (classes, validators) becomes a placeholder.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

LIGHT: Final = ("annotated_types", "collections", "functools", "math", "os", "pathlib", "pydantic", "typing")
"""Libraries that are imported for their names, as is robustclip.flags."""
TRANSPARENT: Final = {"typed"}
"""Decorators that leave a signature as it is."""
PACKAGE: Final = Path(__file__).parent


class Unevaluated(type):
    """Metaclass of placeholders for names that are not evaluated: they can be called, have any attribute, and typing
    accepts them as types."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return cls

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)


def stand_in(name: str) -> type:
    return type.__call__(Unevaluated, name, (), {})


@dataclass(frozen=True)
class Function:
    """Signature and docstring of a function, for help."""

    signature: inspect.Signature
    doc: str


class Source(dict[str, Any]):
    """The names of a module, evaluated on first use. Raises AttributeError for an unknown name, and any error of the
    evaluation."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.bound: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            self.bound |= dict.fromkeys(_names(node), node)

    def __missing__(self, name: str) -> Any:
        self[name] = value = self._evaluated(name)
        return value

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def _evaluated(self, name: str) -> Any:
        node = self.bound.get(name)
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=elements)], value=value):
                return self.evaluate(value)[[ast.unparse(one) for one in elements].index(name)]
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                return self.evaluate(value)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                (alias,) = (alias for alias in names if (alias.asname or alias.name).split(".")[0] == name)
                return _imported(getattr(node, "module", None), alias.name)
            case None:
                return getattr(builtins, name)
        return stand_in(name)

    def evaluate(self, node: ast.expr) -> Any:
        """The value of an expression of the module."""
        return eval(compile(ast.Expression(node), "<signature>", "eval"), {"__builtins__": {}}, self)

    def _function(self, name: str) -> ast.FunctionDef:
        node = self.bound[name]
        if not isinstance(node, ast.FunctionDef):
            raise KeyError(name)
        return node

    def docstring(self, name: str) -> str:
        """Docstring of a function of the module. Raises KeyError if there is no such function."""
        return ast.get_docstring(self._function(name)) or ""

    def decorator(self, name: str, called: str) -> tuple[list[Any], dict[str, Any]] | None:
        """The arguments of a function's decorator `@called(...)`; None if it has no such decorator."""
        for node in self._function(name).decorator_list:
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == called:
                named = {keyword.arg: self.evaluate(keyword.value) for keyword in node.keywords if keyword.arg}
                return [self.evaluate(argument) for argument in node.args], named
        return None

    def read(self, name: str) -> Function:
        """The signature, annotations evaluated, and the docstring of a function of the module.

        Raises ValueError for a function whose decorators may change its signature.
        """
        if others := {ast.unparse(one) for one in self._function(name).decorator_list} - TRANSPARENT:
            raise ValueError(f"{name} is decorated by {', '.join(others)}")
        args = self._function(name).args
        places = [*args.posonlyargs, *args.args]
        defaults = [*[None] * (len(places) - len(args.defaults)), *args.defaults, *args.kw_defaults]
        parameters = [
            inspect.Parameter(
                argument.arg,
                inspect.Parameter.POSITIONAL_OR_KEYWORD if argument in places else inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is None else self.evaluate(default),
                annotation=inspect.Parameter.empty if (kind := argument.annotation) is None else self.evaluate(kind),
            )
            for argument, default in zip([*places, *args.kwonlyargs], defaults, strict=True)
        ]
        return Function(inspect.Signature(parameters), self.docstring(name))


@cache
def of_module(name: str) -> Source:
    """A module of this package by its full name. Raises ModuleNotFoundError if there is none."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return Source(file)
    raise ModuleNotFoundError(name)


def _names(node: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module binds."""
    match node:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in names)
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def _imported(module: str | None, name: str) -> Any:
    """What `from module import name` binds, or `import name`."""
    full = name if module is None else module
    if full.split(".")[0] in LIGHT or full == "robustclip.flags":
        imported = import_module(full)
        return imported if module is None else getattr(imported, name)
    if full.split(".")[0] == __package__ and module is not None:
        outer = of_module(module)
        return outer[name] if name in outer.bound else of_module(f"{module}.{name}")
    return stand_in(name)
