"""Find, check and call recipes: Python files with one typed function.

A recipe is `def recipe(*, steps: PositiveInt = 500, ...) -> dict[str, Any]` with a docstring; its parameters are the
command's flags (see `robustclip.signatures`) and it returns the run's numbers. Beside it, a recipe file may have
`QUICK = {"steps": 20}`, the values of a call with --quick, and `def faults(norm, eps) -> Iterator[UsageError]`, which
yields the faults of illegal combinations. A recipe that differs from another in defaults only is a `preset` of it.

Most recipes take `resume`, which names the run to continue; flags that are not given then keep that run's values:

    --resume FOLDER            that run
    --resume latest            the last started run of this recipe in runs/
    --resume latest --out X    the run in X, or a new one, so that one command line can be requeued
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial, wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from robustclip import signatures
from robustclip.errors import RunError, UsageError, raise_faults
from robustclip.runs.files import holds_something, is_file
from robustclip.signatures import Parameter, as_keyword
from robustclip.source import Function, Source

if TYPE_CHECKING:
    from robustclip.referees.base import TwoTower
    from robustclip.runs.folder import Run
    from robustclip.synthesis.painted import Result

T = TypeVar("T")

SHIPPED: Final = Path(__file__).parent / "_recipes"
CHECKOUT: Final = Path(__file__).parents[2] / "recipes"
SENTENCE_END: Final = re.compile(r"(?<!\b(?:App|Fig|Sec|Tab|e\.g|i\.e))(?<!\b(?:Eq|vs|al))\.\s")
"""End of a sentence; not the full stop of an abbreviation (App. C, Eq. 4, et al.)."""
LATEST: Final = "latest"
VERB: Final = "robustify"
"""Folder of a preset's base recipe, unless its name has another: pretrain/emoji-vanilla."""
EVERY_RECIPE_TAKES: Final = ("device", "dtype", "seed", "out", "quick")


@dataclass(frozen=True)
class Recipe:
    """A recipe file; executed only when its function is needed."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name as commands write it: clipag_vit_b32.py -> clipag-vit-b32."""
        return self.path.stem.replace("_", "-")

    @cached_property
    def source(self) -> Source:
        """Its names, evaluated without running the file."""
        return Source(self.path)

    @property
    def summary(self) -> str:
        """First sentence of the function's docstring, read without executing the file."""
        try:
            text = " ".join(self.source.docstring("recipe").split("\n\n")[0].split())
        except (KeyError, SyntaxError, ValueError, RecursionError, MemoryError):
            return ""
        return SENTENCE_END.split(text, maxsplit=1)[0].rstrip(".")

    def describe(self) -> Function:
        """Its signature and docstring, read without running the file."""
        from robustclip.flags import (
            flat_signature,
        )  # here, since it imports pydantic, which lists of recipes do without

        varied = self.source.decorator("recipe", "preset")
        if varied is None:
            own = self.source.read("recipe")
            return Function(flat_signature(own.signature), own.doc)
        (base,), changed = varied
        return Function(_changed(find(base, VERB).describe().signature, changed), self.source.docstring("recipe"))

    @property
    def base(self) -> Recipe | None:
        """The recipe that this one is a preset of, read without running the file."""
        varied = self.source.decorator("recipe", "preset")
        return None if varied is None else find(varied[0][0], VERB)

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
            raise UsageError(
                f"{self.path} is not Python (line {error.lineno or 1}: {error.msg})", "not_python"
            ) from error
        except (ModuleNotFoundError, UsageError, RunError):
            raise
        except (Exception, SystemExit) as error:
            raise RunError(f"{self.path} fails while imported: {error!r:.200} (--traceback shows where)") from error
        return module

    @property
    def function(self) -> Callable[..., dict[str, Any]]:
        """The recipe function; `signatures.typed` adds a call's checks and QUICK. Raises UsageError if the file
        has none, or if it lacks a flag that all recipes have."""
        from robustclip.flags import flattened

        function = vars(self.module).get("recipe")
        if not inspect.isfunction(function) or not function.__doc__:
            raise UsageError(
                f"{self.path} is not a recipe: it needs a function with a docstring, "
                "def recipe(*, steps: int = 100, ...) -> dict",
                "not_a_recipe",
            )
        function = flattened(function)
        named = {parameter.name for parameter in signatures.parameters(function)}
        if lacking := [name for name in EVERY_RECIPE_TAKES if name not in named]:
            raise UsageError(
                f"{self.path}: recipe() must also take {', '.join(lacking)}, as every recipe does", "not_a_recipe"
            )
        return function

    @property
    def full_name(self) -> str:
        """The name that runs record: emoji, pretrain/emoji-judge, or the path of a file outside the recipes."""
        home = folder().resolve()
        path = self.path.resolve()
        if not path.is_relative_to(home):
            return str(self.path)
        return path.relative_to(home).with_suffix("").as_posix().replace("_", "-").removeprefix("robustify/")

    def load(self) -> Callable[..., dict[str, Any]]:
        """The recipe's function, whose runs record the name it was called by."""
        from robustclip.runs.folder import called_as  # here, so that --help needs no more than the recipes' names

        function = self.function

        @wraps(function)
        def named(**arguments: Any) -> dict[str, Any]:
            with called_as(self.full_name):
                return function(**arguments)

        return named

    @property
    def expansions(self) -> dict[str, signatures.Expand]:
        """Expansions of its arguments: `resume` stands for the arguments of that run."""
        return {"resume": self._resumed}

    def bind(
        self, given: Mapping[str, object], spell: Callable[[Parameter], str] = as_keyword
    ) -> tuple[dict[str, Any], list[UsageError]]:
        """(arguments of a call, including those of a resumed run; faults). `spell` writes names as the caller would."""
        return signatures.bind(self.load(), given, spell=spell, expansions=self.expansions)

    def _resumed(self, given: Mapping[str, object]) -> dict[str, object]:
        """Add the arguments of the run to resume: `resume` becomes its folder and `out` is dropped; if a new run
        starts, `resume` is dropped instead. Arguments that the recipe no longer has are ignored. With several
        processes, the main one decides.

        Raises UsageError if there is no such run, it belongs to another recipe, or it is still running.
        """
        from robustclip.runs.distributed import decided  # here, for it loads torch

        folder, recorded = decided(lambda: _run_of(str(given["resume"]), given.get("out"), self.full_name))
        arguments = {name: value for name, value in given.items() if name not in ("out", "resume")}
        if folder is None:
            return arguments | {"out": given["out"]}
        known = {parameter.name for parameter in signatures.parameters(self.function)} - {"out", "resume"}
        taken_over = {name: value for name, value in recorded.items() if name in known}
        return taken_over | arguments | {"resume": folder}


def preset(base: str, **changed: Any) -> Callable[[Callable[[], None]], Callable[..., Any]]:
    """Decorator: the recipe `base` with other defaults; the decorated function only holds the docstring:

        @preset("emoji", name="emoji-trades", objective="trades")
        def recipe() -> None:
            \"""TRADES on emoji: ...\"""

    Its runs can be resumed under both names. Raises UsageError for parameters that `base` does not have.
    """

    def vary(described: Callable[[], None]) -> Callable[..., Any]:
        function = find(base, VERB).load()
        signature = _changed(inspect.signature(function, eval_str=True), changed)

        @wraps(function)
        def recipe(**arguments: Any) -> Any:
            return function(**{**changed, **arguments})

        recipe.__doc__, recipe.__module__ = described.__doc__, described.__module__
        recipe.__signature__ = signature  # type: ignore[attr-defined]
        return recipe

    return vary


def with_flags(training: Callable[..., T], arguments: Mapping[str, Any]) -> Callable[..., T]:
    """A training loop with those of a recipe's arguments that are named as its parameters; what is then given by
    keyword counts instead. A quick run logs every step."""
    parameters = inspect.signature(training).parameters.values()
    flags = {
        one.name: arguments[one.name] for one in parameters if one.kind == one.KEYWORD_ONLY and one.name in arguments
    }
    resumed = arguments["resume"] is not None
    return partial(training, **flags | {"resume": resumed, "log_every": 1 if arguments["quick"] else 10})


def _changed(signature: inspect.Signature, changed: Mapping[str, Any]) -> inspect.Signature:
    """A signature with other defaults."""
    if unknown := set(changed) - set(signature.parameters):
        raise UsageError(f"the recipe has no parameter {', '.join(sorted(unknown))} to preset", "unknown_argument")
    parameters = signature.parameters.values()
    return signature.replace(parameters=[one.replace(default=changed.get(one.name, one.default)) for one in parameters])


def _run_of(resume: str, out: object, recipe: str) -> tuple[Path | None, dict[str, Any]]:
    """Folder and arguments of the run to resume; no folder if a new run starts in `out`."""
    from robustclip.runs.folder import Run

    if resume == LATEST and out is not None and not holds_something(Path(str(out))):
        return None, {}
    run = _latest(recipe) if resume == LATEST and out is None else Run.open(_folder_of(resume, out))
    run.check_resumable(recipe)
    return run.folder, run.arguments


def _folder_of(resume: str, out: object) -> Path:
    from robustclip.runs.folder import HOME, RECORD

    if resume == LATEST:
        return Path(str(out))
    folder = Path(resume)
    if out is not None and Path(str(out)).resolve() != folder.resolve():
        raise UsageError(f"resumes in that folder: leave out --out {out}", "two_folders")
    if not folder.exists():
        near = HOME / folder
        hint = f"did you mean {near}?" if is_file(near / RECORD) else f"give a run's folder, or {LATEST}"
        raise UsageError(f"no such folder: {hint}", "no_such_run")
    return folder


def _latest(recipe: str) -> Run:
    from robustclip.runs.archive import runs_in
    from robustclip.runs.folder import HOME, RECORD

    runs = [run for run in runs_in(HOME) if run.called == recipe]
    if not runs:
        raise UsageError(
            f"no run of {recipe} in {HOME}/: leave out --resume to start one, or give its folder", "no_such_run"
        )
    return max(runs, key=lambda run: (run.started, (run.folder / RECORD).stat().st_mtime))


def folder() -> Path:
    """The recipes' folder: inside an installed package, or beside the source of a checkout."""
    return SHIPPED if SHIPPED.is_dir() else CHECKOUT


def available(group: str) -> list[Recipe]:
    """The recipes of a group (robustify, pretrain, ...), by name."""
    return [Recipe(path) for path in sorted((folder() / group).glob("[!_]*.py"))]


def find(name: str, group: str) -> Recipe:
    """The recipe called `name` in `group`, `other-group/name` in another, or the file at that path.

    Raises UsageError for an unknown name, with close matches, and for a path without a file.
    """
    if not isinstance(name, str | Path):
        raise UsageError(
            f"a recipe is a name or a path, not {name!r:.100}. There are {_names(group)}", "unknown_recipe", given=name
        )
    path, name = Path(name), str(name)
    if path.suffix == ".py":
        if not is_file(path):
            raise UsageError(
                f"there is no recipe file {str(path)[:200]}: give a path to one, or a name of {_names(group)}",
                "unknown_recipe",
            )
        return Recipe(path)
    stem = name.replace("-", "_")
    for candidate in (folder() / group / f"{stem}.py", folder() / f"{stem}.py"):
        if re.fullmatch(r"\w+(/\w+)?", stem) and is_file(candidate):  # names must not lead out of the recipes' folder
            return Recipe(candidate)
    near = get_close_matches(name, [recipe.name for recipe in available(group)], n=3)
    hint = f": did you mean {' or '.join(near)}?" if near else "."
    message = f"unknown recipe {name[:200]!r}{hint} There are {_names(group)}; or give the path of a .py file."
    raise UsageError(message, "unknown_recipe", near=near)


def run(name: str, group: str, arguments: dict[str, object]) -> Any:
    """Call a recipe from Python with the checks of the command line and return its result.

    Raises one UsageError with all faults of the call.
    """
    recipe = find(name, group)
    bound, faults = recipe.bind(arguments)
    raise_faults(f"{group}({name!r})", faults, f"Its arguments: robustclip {group} {name} --help")
    return recipe.load()(**bound)


class Trained(dict[str, Any]):
    """Result of a training run: its numbers by name, as `--json` writes them, and the run's `folder`."""

    @property
    def folder(self) -> Path:
        """The run's folder, which `robustclip.export` takes."""
        return Path(self["run"])

    def referee(self) -> TwoTower:
        """Load the trained referee."""
        from robustclip.robustification.monitor import referee_at

        return referee_at(self.folder, "last")

    def __repr__(self) -> str:
        return f"<Trained with {len(self)} numbers in {self.get('run')!r}>"


def robustify(recipe: str, **arguments: object) -> Trained:
    """Adversarially fine-tune a CLIP by a recipe: `robustify("emoji", steps=100)`. Same arguments as the command.

    Returns the run's numbers, a dictionary with a `folder` attribute.
    Raises UsageError (a fault of the call) or RunError (a fault of the run).
    """
    result = run(recipe, "robustify", arguments)
    return Trained(result) if isinstance(result, Mapping) else cast("Trained", result)


def synthesize(
    prompts: Sequence[str] | str | Path,
    referee: object = ...,
    *,
    recipe: str = "clipag",
    **arguments: object,
) -> Result:
    """Paint by a recipe: `synthesize(["a green turtle"], "emoji-robust", seeds=[0, 1])`. Arguments are the command's.

    prompts: texts (weights and all, see robustclip.synthesis.prompts), or the path of a file of captions; referee: a
    name, folder, object or a list of them; left out, that of `config` or of the run to resume, else the recipe's.
    Returns the pictures, (N,3,H,W) in [0,1], with their trace, and shows them in a notebook. Raises UsageError (a fault
    of the call) or RunError (a fault of the run).
    """
    of = (
        {"prompts": prompts}
        if isinstance(prompts, Path)
        else {"prompt": [prompts] if isinstance(prompts, str) else prompts}
    )
    by = {} if referee is ... else {"referee": referee}
    return cast("Result", run(recipe, "synthesize", {**of, **by, **arguments}))


def _names(group: str) -> str:
    return ", ".join(recipe.name for recipe in available(group)) or f"none in {folder() / group}"
