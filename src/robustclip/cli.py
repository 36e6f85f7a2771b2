"""The command line: maps verbs to functions and errors to exit codes; imports no torch."""

from __future__ import annotations

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


def _import(module: str, function: str) -> tuple[Function, Pairs | None]:
    """A function of the package, and the `faults` of its module, which know its illegal pairs."""
    names = vars(import_module(f"robustclip.{module}"))
    return names[function], names.get("faults")


def _verb(
    name: str,
    target: str,
    summary: str,
    show: Callable[[Any], None] = printing.numbers,
    numbers: Callable[[Any], object] = lambda result: result,
    long: bool = False,
) -> TypedCommand:
    load = partial(_import, *target.split(":"))
    return TypedCommand(name, load, summary=summary, show=show, numbers=numbers, long=long)


class InOrder(click.Group):
    """Verbs in the order of work, as they are added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _estimated(recipe: recipes.Recipe, arguments: dict[str, Any]) -> None:
    """The plan of a training run, on one H100."""
    from robustclip.planning.plan import command
    from robustclip.planning.terms import Terms

    try:
        estimate = command(recipe)[0](**vars(Terms()), **arguments)
    except UsageError as error:  # a recipe whose tower no flag names
        click.echo(f"how long is not known: {error}")
        return
    terminal.rich(estimate.table())
    printing.next_call("plan", recipe.name, "--gpu", "here")


class RecipeGroup(click.Group):
    """The recipes of a room as commands: those that are shipped by name, any other by its path.

    `show` prints what a recipe returns for people; `numbers` makes it the plain values of `--json`.
    """

    def __init__(
        self,
        room: str,
        *,
        name: str | None = None,
        show: Callable[[Any], None] = printing.numbers,
        numbers: Callable[[Any], object] = lambda result: result,
        **settings: Any,
    ) -> None:
        super().__init__(name or room, **settings)
        self.room = room
        self.show = show
        self.numbers = numbers

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [recipe.name for recipe in recipes.available(self.room)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        recipe = recipes.find(cmd_name, self.room)
        return TypedCommand(
            cmd_name,
            recipe.load,
            summary=recipe.summary,
            show=self.show,
            numbers=self.numbers,
            bind=recipe.bind,
            long=True,
            estimate=partial(_estimated, recipe) if self.room == "robustify" else None,
        )


class PlanGroup(click.Group):
    """The recipes that make a CLIP robust, planned instead of run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [recipe.name for recipe in recipes.available("robustify")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        recipe = recipes.find(cmd_name, "robustify")
        return TypedCommand(
            cmd_name,
            lambda: import_module("robustclip.planning.plan").command(recipe),
            summary=recipe.summary,
            show=lambda estimate: terminal.rich(estimate.table()),
            numbers=lambda estimate: estimate.to_json(),
        )


@click.group("robustclip", cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def app() -> None:
    """Make CLIP robust, measure it under attack, and use its readable gradients."""


app.add_command(
    _verb(
        "doctor",
        "doctor:doctor",
        "Show versions and devices, what is missing, and how to get it.",
        show=printing.found_here,
    )
)
app.add_command(
    _verb(
        "demo",
        "demo:run_demo",
        "See it all in ten minutes: robustify a small CLIP, measure.",
        show=printing.demo,
        numbers=lambda result: result["report"],
    )
)
app.add_command(
    PlanGroup(
        "plan",
        short_help="What a run would take: FLOPs, memory, hours, cost.",
        help="What a run of a recipe would take, before it is started: FLOPs, memory of a GPU, hours and cost.",
        subcommand_metavar="RECIPE [FLAGS]",
    )
)
app.add_command(
    RecipeGroup(
        "robustify",
        show=printing.trained,
        short_help="Fine-tune a CLIP adversarially, by a recipe.",
        help="Fine-tune a CLIP adversarially, by a recipe: a name below, or the path of a file like them.",
        subcommand_metavar="RECIPE [FLAGS]",
    )
)
app.add_command(
    _verb(
        "evaluate",
        "evaluation.evaluate:evaluate",
        "Measure referees side by side, clean and under attack.",
        show=printing.evaluated,
        numbers=lambda report: report.to_json(),
        long=True,
    )
)
app.add_command(
    _verb(
        "explain",
        "pages.explain:explain",
        "Show where referees look, clean and under attack.",
        show=printing.explained,
        numbers=lambda explanation: explanation.to_json(),
        long=True,
    )
)
app.add_command(
    _verb(
        "export",
        "robustification.export:export",
        "Make a run's tower a referee that open_clip loads.",
        show=printing.exported,
        numbers=lambda folder: {"folder": str(folder)},
        long=True,
    )
)
app.add_command(
    RecipeGroup(
        "synthesize",
        show=printing.painted,
        numbers=lambda result: result.numbers(),
        short_help="Paint what a prompt says, guided by a referee.",
        help="Paint what a prompt says, guided by a referee: a recipe below, or the path of a file like them.",
        subcommand_metavar="RECIPE PROMPT... [FLAGS]",
    )
)
app.add_command(
    _verb(
        "judge",
        "evaluation.generation.judge:judge",
        "Judge pictures: R-Precision, CLIPScore, FID and more.",
        show=lambda report: terminal.rich(report.table()),
        numbers=lambda report: report.to_json(),
        long=True,
    )
)
app.add_command(
    RecipeGroup(
        "align",
        show=printing.aligned,
        short_help="Fine-tune a generator on the best of its own samples.",
        help="Fine-tune a diffusion model on the best of its own samples, by a recipe or the path of a file like them.",
        subcommand_metavar="RECIPE [FLAGS]",
    )
)
app.add_command(
    RecipeGroup(
        "evaluate",
        name="reproduce",
        short_help="Measure a paper's table anew, with our referees.",
        help="Measure a paper's table anew, with the embedded referees or yours: resumable, with intervals.",
        subcommand_metavar="TABLE [FLAGS]",
    )
)


@app.group("mixture", cls=InOrder, short_help="Fit the Gaussians that synthesis starts from.")
def mixture() -> None:
    """The Gaussians that synthesis starts from."""


mixture.add_command(
    _verb("fit", "inits.fit:fit", "Fit them on a folder of images, or shards.", show=printing.fitted, long=True)
)


@app.group("runs", cls=InOrder, short_help="List and show runs, and give back the space that checkpoints take.")
def runs() -> None:
    """The runs on this disk."""


def _runs_verb(name: str, function: str, summary: str, **output: Callable[[Any], Any]) -> None:
    runs.add_command(_verb(name, f"runs.archive:{function}", summary, long=False, **output))


_runs_verb(
    "list",
    "list_runs",
    "How far they are, and what they weigh.",
    show=printing.runs,
    numbers=lambda summaries: [run.to_json() for run in summaries],
)
_runs_verb(
    "show",
    "show",
    "A run's arguments, curves and warnings.",
    show=printing.run,
    numbers=lambda run: {**run.record, "status": run.status, "metrics": run.metrics()},
)
_runs_verb(
    "clean",
    "clean",
    "Remove checkpoints of finished runs, or whole runs.",
    show=printing.freed,
    numbers=lambda freed: freed.to_json(),
)


@app.group("referees", cls=InOrder, short_help="List, show, verify, add or remove the judges on this machine.")
def referees() -> None:
    """The judges on this machine: those that are embedded, and those you add."""


def _referee_verb(name: str, function: str, summary: str, **output: Callable[[Any], Any]) -> None:
    referees.add_command(_verb(name, function, summary, long=False, **output))


_referee_verb(
    "list", "referees.registry:list_all", "Their names, kinds, and what they are robust to.", show=printing.entries
)
_referee_verb(
    "show",
    "referees.registry:describe",
    "The card of a referee, pair reader or generator.",
    show=printing.card,
    numbers=lambda card: card if isinstance(card, dict) else card.to_json(),
)
_referee_verb(
    "verify",
    "evaluation.claims:verify",
    "Check a referee's files against its card, and measure a claim.",
    show=printing.verification,
)
_referee_verb("add", "referees.registry:add", "Give a referee's folder a name.", show=printing.added)
_referee_verb(
    "remove", "referees.registry:remove", "Forget a referee.", show=lambda folder: terminal.echo(f"forgot {folder}")
)


@app.group("convert", cls=InOrder, short_help="Make published weights of others a folder of ours.")
def convert() -> None:
    """Published weights of others, made a folder that is loaded here."""


convert.add_command(
    _verb(
        "taming-vqgan",
        "diffusion.convert:convert",
        "A VQGAN of taming-transformers.",
        show=partial(printing.converted, "synthesize", "vqgan", "a cat", "--model"),
        numbers=lambda converted: converted.to_json(),
    )
)
convert.add_command(
    _verb(
        "lavis-blip2",
        "referees.lavis:convert",
        "A BLIP-2 of LAVIS, first stage.",
        show=partial(printing.converted, "synthesize", "referee-can-play", "a cat and a dog", "--referee"),
        numbers=lambda converted: converted.to_json(),
    )
)
