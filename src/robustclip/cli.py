"""The command line: maps verbs to functions and errors to exit codes; imports no torch."""

from __future__ import annotations

import inspect
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from robustclip import __version__, printing, recipes
from robustclip.commands import Function, TypedCommand
from robustclip.errors import Interrupted, RunError, UsageError
from robustclip.runs import terminal
from robustclip.runs.processes import number_of, terminable
from robustclip.source import Function as Described
from robustclip.source import of_module


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 for success, 2 for a faulty call, 1 for a failed run, 128 + signal if interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold bytes that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:  # prints warnings of other libraries
        logging.lastResort.setFormatter(terminal.Shown())
    try:
        with terminable(), terminal.logged():
            sys.exit(app.main(arguments, prog_name="robustclip", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as stop:
        number = number_of(stop.__cause__ or stop)
        click.echo("robustclip: interrupted", err=True)
        sys.exit(128 + number)
    except Interrupted as stop:
        click.echo(f"robustclip: {terminal.shown(str(stop))}", err=True)
        sys.exit(128 + stop.signal)
    except Exception as error:
        if "--traceback" in arguments or os.environ.get("ROBUSTCLIP_TRACEBACK"):
            traceback.print_exc()
        click.secho(f"robustclip: {terminal.shown(_message(error))}", err=True, fg="red")
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _message(error: Exception) -> str:
    if isinstance(error, UsageError | RunError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror.lower()} (--traceback shows where)"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        from robustclip.doctor import remedy

        return f"the module {error.name} is not installed: {remedy(error.name)}"
    return f"{type(error).__name__}: {error} (--traceback shows where)"


Show = Callable[[Any], None]


def _load(module: str, function: str) -> Function:
    """A function of the package without its `typed` checks, which the command line makes itself."""
    unchecked: Function = inspect.unwrap(getattr(import_module(module), function))
    return unchecked


def _describe(module: str, function: str) -> Described:
    """Signature and docstring of a function, without importing its module."""
    return of_module(module).read(function)


def _numbers(result: Any) -> object:
    """A verb's result as plain values, for `--json`."""
    if isinstance(result, Path):
        return {"folder": str(result)}
    if isinstance(result, list):
        return [_numbers(one) for one in result]
    return result.to_json() if hasattr(result, "to_json") else result


class InOrder(click.Group):
    """Group whose help lists commands in the order they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class RecipeGroup(click.Group):
    """The recipes of a verb as commands: shipped ones by name, others by path; further verbs can be added."""

    def __init__(self, name: str, verb: str, summary: str, text: str, show: Show) -> None:
        takes = {"synthesize": "RECIPE PROMPT... [FLAGS]", "evaluate": "TABLE [FLAGS]"}.get(verb, "RECIPE [FLAGS]")
        super().__init__(name, short_help=summary, help=text, subcommand_metavar=takes)
        self.verb, self.show = verb, show

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*(recipe.name for recipe in recipes.available(self.verb)), *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            return self.commands.get(cmd_name) or self._of(cmd_name, recipes.find(cmd_name, self.verb))
        except UsageError:
            if ctx.resilient_parsing:  # shell completion of a word that is no recipe, which must not print
                return None
            raise

    def _of(self, name: str, recipe: recipes.Recipe) -> click.Command:
        return TypedCommand(
            name,
            recipe.load,
            describe=recipe.describe,
            expansions=recipe.expansions,
            summary=recipe.summary,
            show=self.show,
            numbers=(lambda result: result.numbers()) if self.verb == "synthesize" else _numbers,
            long=True,
            estimate=partial(_estimated, recipe) if self.verb == "robustify" else None,
        )


class PlanGroup(RecipeGroup):
    """The `robustify` recipes that train whole image towers, planned instead of run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from robustclip.planning.settings import UNPLANNED

        flags = {recipe.name: recipe.describe().signature.parameters for recipe in recipes.available(self.verb)}
        return [name for name in super().list_commands(ctx) if not UNPLANNED.keys() & flags.get(name, {}).keys()]

    def _of(self, name: str, recipe: recipes.Recipe) -> click.Command:
        from robustclip.planning import plan

        load, describe = partial(plan.command, recipe), partial(plan.describe, recipe)
        return TypedCommand(name, load, describe=describe, summary=recipe.summary, show=self.show, numbers=_numbers)


def _estimated(recipe: recipes.Recipe, arguments: dict[str, Any]) -> None:
    """The plan of a training run, on one H100."""
    from robustclip.planning.plan import command
    from robustclip.planning.settings import Terms

    try:
        estimate = command(recipe)(**vars(Terms()), **arguments)
    except UsageError as error:  # a recipe whose tower no flag names
        click.echo(f"duration: unknown: {error}")
        return
    printing.tabled(estimate)
    printing.next_call("plan", recipe.name, "--gpu", "here")


TABLE: tuple[tuple[Any, ...], ...] = (
    # A verb: its words, the function, what help lists of it, how its result is shown.
    # Recipes: the verb, the folder of their files, what help lists of it, the head of its help, how a result is shown.
    # A group of verbs, which follow: its name, what help lists of it, the head of its help.
    (
        "doctor",
        "doctor:doctor",
        "Show versions, devices, missing packages and how to install them.",
        printing.found_here,
    ),
    (
        *("selftest", "selftest.selftest:selftest"),
        "Check this machine's devices and dtypes against float64 on the CPU.",
        printing.selftested,
    ),
    ("demo", "demo:run_demo", "Robustify, export, evaluate and explain a small CLIP, in minutes.", printing.demo),
    (
        *("plan", "robustify", "Estimate FLOPs, memory, hours and cost of a training run."),
        "Estimate FLOPs, GPU memory, hours and cost of a recipe's run before it starts.",
        printing.planned,
    ),
    (
        "plan mi-tune",
        "diffusion.budget:plan_tuning",
        "MI-TUNE of a diffusion model: `align mi-tune`.",
        printing.numbers,
    ),
    (
        *("plan doodl", "diffusion.budget:plan_doodl", "DOODL's memory and time: `synthesize doodl`."),
        printing.numbers,
    ),
    (
        *("robustify", "robustify", "Fine-tune a CLIP adversarially."),
        "Fine-tune a CLIP adversarially: by a recipe below, or the path of your own recipe file.",
        printing.trained,
    ),
    ("evaluate", "evaluation.evaluate:evaluate", "Evaluate referees, clean and under attack.", printing.evaluated),
    (
        *("universal", "evaluation.universal:universal", "Train a universal perturbation on an ensemble of referees."),
        printing.perturbed,
    ),
    (
        *("benchmark", "pages.benchmark:benchmark", "Measure referees by one protocol; write a leaderboard."),
        printing.benchmarked,
    ),
    ("distance", "evaluation.perceptual:distance", "Perceptual distance of two pictures.", printing.numbers),
    ("explain", "pages.explain:explain", "Heat maps and input gradients, clean and under attack.", printing.explained),
    (
        *("export", "robustification.export:export", "Export a run for open_clip, transformers or timm."),
        printing.exported,
    ),
    (
        *("synthesize", "synthesize", "Text to image, guided by a referee."),
        "Text to image, guided by a referee: by a recipe below, or the path of your own recipe file.",
        printing.painted,
    ),
    (
        *("app", "app:app", "A page in the browser to paint, explain and compare referees on."),
        printing.numbers,
    ),
    (
        *("judge", "evaluation.generation.judge:judge"),
        "Score generated pictures: R-Precision, CLIPScore, FID and more.",
        printing.tabled,
    ),
    (
        *("survey", "Ask people which of two pictures fits better, blind."),
        "Ask people which of two pictures fits its prompt better, on one page that does not say whose they are.",
    ),
    ("survey make", "pages.survey:make", "Make the page, and its key.", printing.numbers),
    ("survey read", "pages.survey:read", "Read the answers: preferences with intervals.", printing.preferences),
    (
        *("align", "align", "Fine-tune a diffusion model on its best samples."),
        "Fine-tune a diffusion model on its best samples: by a recipe below, or the path of your own recipe file.",
        printing.aligned,
    ),
    (
        *("reproduce", "evaluate", "Reproduce a paper's table."),
        "Reproduce a paper's table with the embedded referees or yours; resumable, with intervals.",
        printing.numbers,
    ),
    ("mixture", "Fit Gaussian mixtures as initial images.", "Gaussian mixtures as initial images of synthesis."),
    ("mixture fit", "inits.fit:fit", "Fit a mixture on a folder of images, or shards.", printing.fitted),
    ("runs", "List, show and clean runs.", "Run folders on this disk."),
    ("runs list", "runs.archive:list_runs", "List runs with status and size.", printing.runs),
    ("runs show", "runs.archive:show", "Show a run's arguments, metrics and warnings.", printing.run),
    ("runs clean", "runs.archive:clean", "Remove checkpoints of finished runs, or whole runs.", printing.freed),
    (
        *("referees", "List, show, verify, add or remove referees."),
        "Referees on this machine: embedded and registered ones.",
    ),
    ("referees list", "referees.registry:list_all", "List names, kinds and threat models.", printing.entries),
    (
        *("referees show", "referees.registry:describe", "Show the card of a referee, pair reader or generator."),
        printing.card,
    ),
    (
        *("referees verify", "evaluation.claims:verify", "Check a referee's hashes and re-measure a claim."),
        printing.verification,
    ),
    (
        *("referees weigh", "evaluation.ensembles:weigh", "Learn the weights of referees that guide together."),
        printing.weighed,
    ),
    ("referees add", "referees.registry:add", "Register a referee's folder under a name.", printing.added),
    ("referees remove", "referees.registry:remove", "Unregister a referee.", printing.forgotten),
    (
        *("convert", "Convert published checkpoints."),
        "Convert published checkpoints to folders that robustclip loads.",
    ),
    (
        *("convert taming-vqgan", "diffusion.convert:convert", "Convert a VQGAN of taming-transformers."),
        partial(printing.converted, "synthesize", "vqgan", "a cat", "--model"),
    ),
    (
        *("convert lavis-blip2", "referees.lavis:convert", "Convert a first-stage BLIP-2 of LAVIS."),
        partial(printing.converted, "synthesize", "referee-can-play", "a cat and a dog", "--referee"),
    ),
)
LONG = ("evaluate", "universal", "benchmark", "explain", "export", "judge", "mixture fit")
"""Verbs that take `--dry-run`, beside recipes."""
NUMBERS: dict[str, Callable[[Any], object]] = {
    "demo": lambda result: result["report"],
    "runs show": lambda run: {**run.record, "status": run.status, "metrics": run.metrics()},
}
"""What `--json` writes of a result that has no `to_json`."""


def _built() -> click.Group:
    """The whole command line."""
    text = "Make CLIP robust, measure it under attack, and use its readable gradients."
    root = InOrder("robustclip", help=text, context_settings={"help_option_names": ["-h", "--help"]})
    groups: dict[str, click.Group] = {"": root}
    for words, *rest in TABLE:
        above, _, name = words.rpartition(" ")
        command: click.Command
        match rest:
            case [str(summary), str(text)]:
                command = groups[words] = InOrder(name, short_help=summary, help=text)
            case [str(verb), str(summary), str(text), show]:
                kind = PlanGroup if words == "plan" else RecipeGroup
                command = groups[words] = kind(words, verb, summary, text, show)
            case [str(target), str(summary), show]:
                module, function = f"robustclip.{target}".split(":")
                load, describe = partial(_load, module, function), partial(_describe, module, function)
                numbers, long = NUMBERS.get(words, _numbers), words in LONG
                command = TypedCommand(
                    name, load, describe=describe, summary=summary, show=show, numbers=numbers, long=long
                )
        groups[above].add_command(command)
    return click.version_option(__version__)(root)


app = _built()
