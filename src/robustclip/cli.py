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
from typing import Any

import click

from robustclip import __version__, printing, recipes
from robustclip.commands import Function, TypedCommand
from robustclip.errors import Interrupted, RunError, UsageError
from robustclip.runs import terminal
from robustclip.runs.processes import number_of, terminable
from robustclip.signatures import Pairs
from robustclip.source import of_module


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit: 0 for success, 2 for a fault of the call, 1 of the run, 128 + the signal when stopped
    by one."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text that the terminal can show
        sys.stdout.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:  # which prints warnings where nobody has set up logging
        logging.lastResort.setFormatter(terminal.Shown())
    try:
        with terminable():
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
        click.secho(f"robustclip: {terminal.shown(_told(error))}", err=True, fg="red")
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _told(error: Exception) -> str:
    if isinstance(error, UsageError | RunError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror.lower()} (--traceback shows where)"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        from robustclip.doctor import remedy

        return f"the module {error.name} is not installed: {remedy(error.name)}"
    return f"{type(error).__name__}: {error} (--traceback shows where)"


Show = Callable[[Any], None]


def _load(module: str, function: str) -> tuple[Function, Pairs | None]:
    """A function of the package without its checks of Python calls, which the command line makes itself, and the
    `faults` of its module, which know its illegal pairs."""
    names = vars(import_module(module))
    return inspect.unwrap(names[function]), names.get("faults")


def _verb(name: str, target: str, summary: str, show: Show = printing.numbers, **settings: Any) -> TypedCommand:
    module, function = f"robustclip.{target}".split(":")
    load, describe = partial(_load, module, function), lambda: of_module(module).read(function)
    return TypedCommand(name, load, describe=describe, summary=summary, show=show, **settings)


def _as_json(result: Any) -> object:
    return result.to_json()


class InOrder(click.Group):
    """Verbs in the order of work, as they are added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class RecipeGroup(click.Group):
    """The recipes of a room as commands: those that are shipped by name, any other by its path.

    `show` prints what a recipe returns for people; `numbers` makes it the plain values of `--json`.
    """

    def __init__(
        self,
        room: str,
        *,
        name: str | None = None,
        show: Show = printing.numbers,
        numbers: Callable[[Any], object] = lambda result: result,
        **settings: Any,
    ) -> None:
        super().__init__(name or room, **settings)
        self.room, self.show, self.numbers = room, show, numbers

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [recipe.name for recipe in recipes.available(self.room)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        recipe = recipes.find(cmd_name, self.room)
        return TypedCommand(
            cmd_name,
            recipe.load,
            describe=recipe.describe,
            expansions=recipe.expansions,
            summary=recipe.summary,
            show=self.show,
            numbers=self.numbers,
            long=True,
            estimate=partial(_estimated, recipe) if self.room == "robustify" else None,
        )


class PlanGroup(RecipeGroup):
    """The recipes that make a CLIP robust, planned instead of run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "mi-tune"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        from robustclip.planning import plan

        if cmd_name == "mi-tune":
            return _verb(cmd_name, "diffusion.budget:plan_tuning", "MI-TUNE of a diffusion model: `align mi-tune`.")
        recipe = recipes.find(cmd_name, self.room)
        return TypedCommand(
            cmd_name,
            lambda: plan.command(recipe),
            describe=lambda: plan.describe(recipe),
            summary=recipe.summary,
            show=lambda estimate: terminal.rich(estimate.table()),
            numbers=_as_json,
        )


def _estimated(recipe: recipes.Recipe, arguments: dict[str, Any]) -> None:
    """The plan of a training run, on one H100."""
    from robustclip.planning.plan import command
    from robustclip.planning.settings import Terms

    try:
        estimate = command(recipe)[0](**vars(Terms()), **arguments)
    except UsageError as error:  # a recipe whose tower no flag names
        click.echo(f"how long is not known: {error}")
        return
    terminal.rich(estimate.table())
    printing.next_call("plan", recipe.name, "--gpu", "here")


def _group(name: str, summary: str, text: str, *commands: click.Command) -> click.Group:
    group = InOrder(name, short_help=summary, help=text)
    for command in commands:
        group.add_command(command)
    return group


app = _group(
    "robustclip",
    "",
    "Make CLIP robust, measure it under attack, and use its readable gradients.",
    _verb(
        "doctor",
        "doctor:doctor",
        "Show versions, devices, missing packages and how to install them.",
        printing.found_here,
    ),
    _verb(
        "demo",
        "demo:run_demo",
        "Robustify, export, evaluate and explain a small CLIP, in minutes.",
        printing.demo,
        numbers=lambda result: result["report"],
    ),
    PlanGroup(
        "robustify",
        name="plan",
        short_help="Estimate FLOPs, memory, hours and cost of a training run.",
        help="Estimate FLOPs, GPU memory, hours and cost of a recipe's run before it starts.",
        subcommand_metavar="RECIPE [FLAGS]",
    ),
    RecipeGroup(
        "robustify",
        show=printing.trained,
        short_help="Fine-tune a CLIP adversarially.",
        help="Fine-tune a CLIP adversarially: by a recipe below, or the path of your own recipe file.",
        subcommand_metavar="RECIPE [FLAGS]",
    ),
    _verb(
        "evaluate",
        "evaluation.evaluate:evaluate",
        "Evaluate referees, clean and under attack.",
        printing.evaluated,
        numbers=_as_json,
        long=True,
    ),
    _verb(
        "explain",
        "pages.explain:explain",
        "Heat maps and input gradients, clean and under attack.",
        printing.explained,
        numbers=_as_json,
        long=True,
    ),
    _verb(
        "export",
        "robustification.export:export",
        "Export a run for open_clip, transformers or timm.",
        printing.exported,
        numbers=lambda folder: {"folder": str(folder)},
        long=True,
    ),
    RecipeGroup(
        "synthesize",
        show=printing.painted,
        numbers=lambda result: result.numbers(),
        short_help="Text to image, guided by a referee.",
        help="Text to image, guided by a referee: by a recipe below, or the path of your own recipe file.",
        subcommand_metavar="RECIPE PROMPT... [FLAGS]",
    ),
    _verb(
        "judge",
        "evaluation.generation.judge:judge",
        "Score generated pictures: R-Precision, CLIPScore, FID and more.",
        lambda report: terminal.rich(report.table()),
        numbers=_as_json,
        long=True,
    ),
    _group(
        "survey",
        "Ask people which of two pictures fits better, blind.",
        "Ask people which of two pictures fits its prompt better, on one page that does not say whose they are.",
        _verb("make", "pages.survey:make", "Make the page, and its key."),
        _verb("read", "pages.survey:read", "Read the answers: preferences with intervals.", printing.preferences),
    ),
    RecipeGroup(
        "align",
        show=printing.aligned,
        short_help="Fine-tune a diffusion model on its best samples.",
        help="Fine-tune a diffusion model on its best samples: by a recipe below, or the path of your own recipe file.",
        subcommand_metavar="RECIPE [FLAGS]",
    ),
    RecipeGroup(
        "evaluate",
        name="reproduce",
        short_help="Reproduce a paper's table.",
        help="Reproduce a paper's table with the embedded referees or yours; resumable, with intervals.",
        subcommand_metavar="TABLE [FLAGS]",
    ),
    _group(
        "mixture",
        "Fit Gaussian mixtures as initial images.",
        "Gaussian mixtures as initial images of synthesis.",
        _verb("fit", "inits.fit:fit", "Fit a mixture on a folder of images, or shards.", printing.fitted, long=True),
    ),
    _group(
        "runs",
        "List, show and clean runs.",
        "Run folders on this disk.",
        _verb(
            "list",
            "runs.archive:list_runs",
            "List runs with status and size.",
            printing.runs,
            numbers=lambda summaries: [run.to_json() for run in summaries],
        ),
        _verb(
            "show",
            "runs.archive:show",
            "Show a run's arguments, metrics and warnings.",
            printing.run,
            numbers=lambda run: {**run.record, "status": run.status, "metrics": run.metrics()},
        ),
        _verb(
            "clean",
            "runs.archive:clean",
            "Remove checkpoints of finished runs, or whole runs.",
            printing.freed,
            numbers=_as_json,
        ),
    ),
    _group(
        "referees",
        "List, show, verify, add or remove referees.",
        "Referees on this machine: embedded and registered ones.",
        _verb("list", "referees.registry:list_all", "List names, kinds and threat models.", printing.entries),
        _verb(
            "show",
            "referees.registry:describe",
            "Show the card of a referee, pair reader or generator.",
            printing.card,
            numbers=lambda card: card if isinstance(card, dict) else card.to_json(),
        ),
        _verb(
            "verify",
            "evaluation.claims:verify",
            "Check a referee's hashes and re-measure a claim.",
            printing.verification,
        ),
        _verb("add", "referees.registry:add", "Register a referee's folder under a name.", printing.added),
        _verb(
            "remove",
            "referees.registry:remove",
            "Unregister a referee.",
            lambda folder: terminal.echo(f"forgot {folder}"),
        ),
    ),
    _group(
        "convert",
        "Convert published checkpoints.",
        "Convert published checkpoints to folders that robustclip loads.",
        _verb(
            "taming-vqgan",
            "diffusion.convert:convert",
            "Convert a VQGAN of taming-transformers.",
            partial(printing.converted, "synthesize", "vqgan", "a cat", "--model"),
            numbers=_as_json,
        ),
        _verb(
            "lavis-blip2",
            "referees.lavis:convert",
            "Convert a first-stage BLIP-2 of LAVIS.",
            partial(printing.converted, "synthesize", "referee-can-play", "a cat and a dog", "--referee"),
            numbers=_as_json,
        ),
    ),
)
click.version_option(__version__)(app)
app.context_settings["help_option_names"] = ["-h", "--help"]
