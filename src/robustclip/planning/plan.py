"""`robustclip plan`: what a run would cost, and how to launch it."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import ceil
from typing import Any

from robustclip import recipes, signatures
from robustclip.planning.terms import Terms, faults
from robustclip.recipes import Recipe
from robustclip.signatures import Pairs
from robustclip.source import Function

TYPE_CHECKING = False
if TYPE_CHECKING:  # a plan's flags must be known without torch
    from robustclip.planning.estimate import Estimate

MACHINE = 8  # GPUs of one


def plan(recipe: str, **arguments: object) -> Estimate:
    """What a run of a recipe would take: `plan("clipag-vit-b32", gpu="h100", count=8, samples="100M")`.

    Takes the recipe's own arguments and those of `Terms`. Raises one UsageError with all faults of the call.
    """
    function, pairs = command(recipes.find(recipe, "robustify"))
    bound, found = signatures.bind(function, arguments, pairs=pairs)
    signatures.raise_faults(f"plan({recipe!r})", found, f"Its arguments: robustclip plan {recipe} --help")
    return function(**bound)


def command(recipe: Recipe) -> tuple[Callable[..., Estimate], Pairs]:
    """The function of `robustclip plan RECIPE`, whose parameters are the terms of the plan and all of the recipe's own,
    so that the flags of a run can be planned as they are; and the faults of values that are illegal together."""
    described = describe(recipe, recipe.function)

    def planned(**arguments: Any) -> Estimate:
        from robustclip.planning.estimate import estimate

        of_plan = Terms(**{field.name: arguments.pop(field.name) for field in fields(Terms)})
        return estimate(recipe, of_plan, arguments)

    planned.__name__, planned.__doc__ = "plan", described.doc
    planned.__signature__ = described.signature  # type: ignore[attr-defined]
    return planned, faults


def describe(recipe: Recipe, function: Callable[..., Any] | None = None) -> Function:
    """What help shows of a plan: without `function`, the recipe's own, nothing of it is imported."""
    terms = inspect.signature(Terms, eval_str=True)
    own = recipe.describe().signature if function is None else inspect.signature(function, eval_str=True)
    doc = f"""FLOPs, memory, hours and cost of a run of {recipe.name}, with all that is assumed.

      robustclip plan {recipe.name} --gpu h100 --count 8 --samples 100M
      robustclip plan {recipe.name} --gpu here

    The FLOPs are counted on the recipe's tower, without its weights and without a network. Besides the flags of the
    plan it takes all of the recipe's own: to plan a run, write `plan` where its command says `robustify`.
    """
    merged = {**terms.parameters, **own.parameters}
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in merged.values()]
    return Function(inspect.Signature(keywords), inspect.cleandoc(doc))


def command_line(recipe: Recipe, arguments: Mapping[str, Any], steps: int, terms: Terms) -> str:
    """How the planned run is started: the flags that were given, with the steps that the samples make."""
    defaults = {parameter.name: parameter.default for parameter in signatures.parameters(recipe.function)}
    given = {name: value for name, value in arguments.items() if value != defaults[name]} | {"steps": steps}
    flags = [word for name, value in given.items() for word in _written(name, value)]
    run = ["robustify", recipe.name if recipe.path.is_relative_to(recipes.folder()) else str(recipe.path), *flags]
    if terms.count == 1:
        return shlex.join(["robustclip", *run])
    launch = ["accelerate", "launch", "--num_processes", str(terms.count)]
    if terms.count > MACHINE:
        launch += ["--num_machines", str(ceil(terms.count / MACHINE)), "--machine_rank", "RANK"]
        launch += ["--main_process_ip", "HEAD", "--main_process_port", "29500"]
    if terms.fsdp:
        launch += ["--use_fsdp", "--fsdp_version", "2"]
    return shlex.join([*launch, "-m", "robustclip", *run])


def _written(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for one in values for word in (flag, signatures.written(one))]
