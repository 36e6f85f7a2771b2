"""Find, check and call recipes: Python files with one typed function.

A recipe is `def recipe(*, steps: PositiveInt = 500, ...) -> dict[str, Any]` with a docstring; its parameters are the
command's flags (see `robustclip.signatures`) and it returns the run's numbers. Beside it, a recipe file may have
`def faults(norm, eps) -> Iterator[str]`, which yields what is wrong with values that are illegal together.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

from robustclip import signatures
from robustclip.errors import RunError, UsageError
from robustclip.runs.files import is_file
from robustclip.signatures import Pairs, Parameter, as_keyword

if TYPE_CHECKING:
    from robustclip.referees.base import TwoTower
    from robustclip.synthesis.painted import Result

SHIPPED: Final = Path(__file__).parent / "_recipes"
CHECKOUT: Final = Path(__file__).parents[2] / "recipes"
SENTENCE_END: Final = re.compile(r"(?<!\b(?:App|Fig|Sec|Tab|e\.g|i\.e))(?<!\b(?:Eq|vs|al))\.\s")
"""A full stop, but not that of an abbreviation (App. C, Eq. 4, et al.)."""
EVERY_RECIPE_TAKES: Final = ("device", "dtype", "seed", "out", "quick")


@dataclass(frozen=True)
class Recipe:
    """A recipe file; it is run as Python only when its function is asked for."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name as commands write it: clipag_vit_b32.py -> clipag-vit-b32."""
        return self.path.stem.replace("_", "-")

    @property
    def summary(self) -> str:
        """The first sentence of the function's docstring, read without running the file; none of a file that is not
        Python, which `module` says."""
        try:
            body = ast.parse(self.path.read_text(encoding="utf-8")).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return ""
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name == "recipe":
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                return SENTENCE_END.split(text, maxsplit=1)[0].rstrip(".")
        return ""

    @cached_property
    def module(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"robustclip_recipe_{self.path.stem}", self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise UsageError(f"{self.path} is not Python (line {error.lineno or 1}: {error.msg})") from error
        except (ModuleNotFoundError, UsageError, RunError):
            raise
        except (Exception, SystemExit) as error:
            raise RunError(f"{self.path} fails while imported: {error!r:.200} (--traceback shows where)") from error
        return module

    @property
    def function(self) -> Callable[..., dict[str, Any]]:
        """The recipe itself. Raises UsageError where the file has none, or one that lacks a flag all recipes have."""
        function = vars(self.module).get("recipe")
        if not inspect.isfunction(function) or not function.__doc__:
            raise UsageError(
                f"{self.path} is not a recipe: it needs a function with a docstring, "
                "def recipe(*, steps: int = 100, ...) -> dict"
            )
        named = {parameter.name for parameter in signatures.parameters(function)}
        if lacking := [name for name in EVERY_RECIPE_TAKES if name not in named]:
            raise UsageError(f"{self.path}: recipe() must also take {', '.join(lacking)}, as every recipe does")
        return function

    @property
    def full_name(self) -> str:
        """What runs keep of it: emoji, pretrain/emoji-judge, or the path of a file that is not among the recipes."""
        home = folder().resolve()
        path = self.path.resolve()
        if not path.is_relative_to(home):
            return str(self.path)
        return path.relative_to(home).with_suffix("").as_posix().replace("_", "-").removeprefix("robustify/")

    def load(self) -> tuple[Callable[..., dict[str, Any]], Pairs | None]:
        """The recipe's function, whose runs know under which name they were asked for, and the file's `faults` where
        it has one."""
        from robustclip.runs.folder import called_as  # here, so that --help needs no more than the recipes' names

        function = self.function

        @wraps(function)
        def named(**arguments: Any) -> dict[str, Any]:
            with called_as(self.full_name):
                return function(**arguments)

        return named, vars(self.module).get("faults")

    def bind(
        self, given: Mapping[str, object], spell: Callable[[Parameter], str] = as_keyword
    ) -> tuple[dict[str, Any], list[str]]:
        """(every argument of a call, those that a resumed run brings along included; the faults found).

        `spell` writes a parameter's name as the caller would.
        """
        from robustclip import resuming

        function, pairs = self.load()
        known = {parameter.name: parameter for parameter in signatures.parameters(function)}
        try:
            given, faults = resuming.completed(given, known, self.full_name), []
        except (UsageError, OSError, ValueError) as error:  # of a run unknown nothing is brought along, or asked
            reason = error.strerror if isinstance(error, OSError) else error
            faults = [f"{spell(known['resume'])} {str(given['resume'])[:200]!r}: {reason}"]
            given, pairs = {name: value for name, value in given.items() if name not in resuming.PLACES}, None
        arguments, others = signatures.bind(function, given, spell=spell, pairs=pairs)
        return arguments, [*faults, *others]


def folder() -> Path:
    """Where the recipes are: inside an installed package, or beside the source of a checkout."""
    return SHIPPED if SHIPPED.is_dir() else CHECKOUT


def available(room: str) -> list[Recipe]:
    """The recipes of a room (robustify, pretrain, ...), by name."""
    return [Recipe(path) for path in sorted((folder() / room).glob("[!_]*.py"))]


def find(name: str, room: str) -> Recipe:
    """The recipe called `name` in `room`, `other-room/name` in another, or the file at that path.

    Raises UsageError for a name that is not there, with the names that are near, and for a path that leads nowhere.
    """
    if not isinstance(name, str | Path):
        raise UsageError(f"a recipe is a name or a path, not {name!r:.100}. There are {_names(room)}")
    path, name = Path(name), str(name)
    if path.suffix == ".py":
        if not is_file(path):
            raise UsageError(
                f"there is no recipe file {str(path)[:200]}: give a path to one, or a name of {_names(room)}"
            )
        return Recipe(path)
    stem = name.replace("-", "_")
    for candidate in (folder() / room / f"{stem}.py", folder() / f"{stem}.py"):
        if re.fullmatch(r"\w+(/\w+)?", stem) and is_file(candidate):  # a name is no way out of the recipes' folder
            return Recipe(candidate)
    near = get_close_matches(name, [recipe.name for recipe in available(room)], n=3)
    meant = f": did you mean {' or '.join(near)}?" if near else "."
    raise UsageError(
        f"unknown recipe {name[:200]!r}{meant} There are {_names(room)}; a path to a .py file would do too."
    )


def run(name: str, room: str, arguments: dict[str, object]) -> Any:
    """Call a recipe from Python, after the same checks as on the command line; what it returns.

    Raises one UsageError with all faults of the call.
    """
    recipe = find(name, room)
    bound, faults = recipe.bind(arguments)
    signatures.raise_faults(f"{room}({name!r})", faults, f"Its arguments: robustclip {room} {name} --help")
    return recipe.load()[0](**bound)


class Trained(dict[str, Any]):
    """What a training ended with: its numbers by name, as `--json` writes them, and the run's `folder`."""

    @property
    def folder(self) -> Path:
        """The run's folder, which `robustclip.export` takes."""
        return Path(self["run"])

    def referee(self) -> TwoTower:
        """What was trained, loaded anew."""
        from robustclip.robustification.finish import referee_at

        return referee_at(self.folder, "last")

    def __repr__(self) -> str:
        return f"<Trained with {len(self)} numbers in {self.get('run')!r}>"


def robustify(recipe: str, **arguments: object) -> Trained:
    """Adversarially fine-tune a CLIP by a recipe: `robustify("emoji", steps=100)`. Same arguments as the command.

    Returns the run's numbers, a dictionary that knows its folder.
    Raises UsageError (a fault of the call) or RunError (a fault of the run).
    """
    found = run(recipe, "robustify", arguments)
    return Trained(found) if isinstance(found, Mapping) else cast("Trained", found)


def synthesize(
    prompts: Sequence[str] | str | Path,
    referee: object = "emoji-robust",
    *,
    recipe: str = "clipag",
    **arguments: object,
) -> Result:
    """Paint by a recipe: `synthesize(["a green turtle"], "emoji-robust", seeds=[0, 1])`. Arguments are the command's.

    prompts: texts (weights and all, see robustclip.synthesis.prompts), or the path of a file of captions; referee: a
    name, folder, object or a list of them. Returns the pictures, (N,3,H,W) in [0,1], with their trace, and shows them
    in a notebook. Raises UsageError (a fault of the call) or RunError (a fault of the run).
    """
    of = (
        {"prompts": prompts}
        if isinstance(prompts, Path)
        else {"prompt": [prompts] if isinstance(prompts, str) else prompts}
    )
    return cast("Result", run(recipe, "synthesize", {**of, "referee": referee, **arguments}))


def _names(room: str) -> str:
    return ", ".join(recipe.name for recipe in available(room)) or f"none in {folder() / room}"
