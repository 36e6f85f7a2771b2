"""click commands generated from typed functions, whose modules are imported when a function is called, not for help."""

from __future__ import annotations

import inspect
import logging
import os
import re
import textwrap
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem
from rich.filesize import decimal

from robustclip import signatures
from robustclip.errors import RunError, UsageError, raise_faults
from robustclip.runs.files import check_new_file, clashes, is_file, is_folder, plain, rescuing, write_json
from robustclip.runs.terminal import counted
from robustclip.signatures import Expand, Parameter, as_config, as_flag, written
from robustclip.source import Function as Described

Function = Callable[..., Any]

EVERYWHERE = {
    "device": "auto, cpu, cuda, cuda:<index> or mps",
    "dtype": "auto (a rule by device and tower), measure (the faster), float32, bfloat16 or float16",
    "seed": "seed of all random numbers",
}
"""Flags that every command accepts, so that scripts can pass them anywhere; help lists them where they matter."""

USUAL = EVERYWHERE | {
    "out": "the folder to write, which must not exist yet",
    "resume": "a run's folder, or latest: resume it; flags not given keep that run's values",
    "quick": "shrink the run to seconds, as a smoke test",
    "overwrite": "replace existing files (--json, --csv); without it such a call is refused",
}
"""Default help texts of flags with these names."""

_log = logging.getLogger("robustclip")
LONGEST_PATH = 1000  # characters
DRY_RUN = "check the call, print what it would read and write, and exit"
PLACES = ("out", "to", "csv", "svg")
"""Parameters that name output files or folders."""
LARGE = ("batch_size", "views", "copies", "crops", "patches", "size")
"""Parameters with which the memory of a call grows."""
TEXTS = ("prompt", "texts", "negations", "targets", "notes", "name")
"""Parameters whose values are text even where a file of that name exists."""


class TypedCommand(click.Command):
    """A command whose flags are the parameters of a typed function, plus those common to all commands.

    load: returns the function; called when the command runs.
    describe: returns signature and docstring for help and completion; by default those of the loaded function.
    expansions: see `signatures.bind`.
    show: prints the function's result; numbers: converts it to the plain values that `--json FILE` writes.
    long: add `--dry-run`, which checks the call and prints inputs, outputs and, with `estimate`, the duration.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Function],
        *,
        summary: str,
        show: Callable[[Any], None],
        numbers: Callable[[Any], object] = lambda result: result,
        describe: Callable[[], Described] | None = None,
        expansions: Mapping[str, Expand] | None = None,
        long: bool = False,
        estimate: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": ["-h", "--help"]}
        super().__init__(name, short_help=summary, context_settings=settings)
        self.load = load
        self.show = show
        self.numbers = numbers
        self.describe = describe
        self.expansions = expansions
        self.long = long
        self.estimate = estimate

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        shown = bool({"-h", "--help"} & set(args) or extra.get("resilient_parsing"))
        self.parameters, doc = self._described(shown=shown)
        self.help = _unwrapped(doc)
        own = {parameter.name for parameter in self.parameters}
        file = click.Path(dir_okay=False, path_type=Path)
        common: dict[str, dict[str, Any]] = {
            **{name: {"expose_value": False, "hidden": True, "metavar": "TEXT"} for name in EVERYWHERE},
            "config": {"type": file, "help": "a YAML file of arguments, which flags override"},
            "print_config": {"is_flag": True, "help": "print all arguments of this call as such a file, and exit"},
            "json": {"type": file, "help": "write the numbers here"},
            "overwrite": {"is_flag": True, "help": USUAL["overwrite"]},
            **({"dry_run": {"is_flag": True, "help": DRY_RUN}} if self.long else {}),
            "traceback": {"is_flag": True, "expose_value": False, "help": "show the traceback of a failure"},
        }
        self.common = [name for name in common if name not in own and name not in (*EVERYWHERE, "traceback")]
        self.params = [
            *(_option(parameter) for parameter in self.parameters if not parameter.positional),
            *(
                click.Option([name, "--" + name.replace("_", "-")], **settings)
                for name, settings in common.items()
                if name not in own
            ),
        ]
        return super().make_context(info_name, args, parent, **extra)

    def _described(self, *, shown: bool) -> tuple[list[Parameter], str]:
        """Parameters and docstring: from the source if only shown, else from the imported function."""
        if self.describe is not None and shown:
            try:
                described = self.describe()
                return signatures.of_signature(described.signature, self.name or ""), described.doc
            except Exception as error:  # errors of the file itself are raised when it is imported below
                _log.debug("%s: its source does not show its flags: %r", self.name, error)
        function = self.load()
        return signatures.parameters(function), inspect.getdoc(function) or ""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        names = [as_flag(p) + ("..." if p.repeated else "") for p in self.parameters if p.positional]
        return [*names, "[FLAGS]"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Bind the whole call and report all faults together; click itself would stop at the first."""
        cut = args.index("--") if "--" in args else len(args)
        args, after = args[:cut], args[cut + 1 :]
        repeated = {as_flag(parameter) for parameter in self.parameters if parameter.repeated}
        for flag, value in pairwise([*args, "--"]):
            if flag in repeated and _is_flag(value):  # click drops such a flag silently
                raise click.BadOptionUsage(flag, f"Option {flag!r} requires an argument.", ctx)
        if not any(parameter.positional for parameter in self.parameters):
            args = list(_spelt_out(args, repeated))
        super().parse_args(ctx, args)
        if ctx.resilient_parsing:  # shell completion
            return []
        common = {name: ctx.params.pop(name) for name in self.common}
        given = {name: value for name, value in ctx.params.items() if _on_command_line(ctx, name)}
        positional, misfits = self._sort(ctx.args, after)
        if common.get("config") is not None:
            given["config"] = common["config"]
        self.function = self.load()
        arguments, faults = signatures.bind(
            self.function, given | positional, spell=as_flag, expansions=self.expansions
        )
        overwrite = bool(common.get("overwrite", ctx.params.get("overwrite")))
        misfits.extend(self._outputs(common["json"], arguments, overwrite=overwrite))
        raise_faults(ctx.command_path, [*misfits, *faults], f"Its flags: {ctx.command_path} --help")
        ctx.params = {"arguments": arguments, "common": common}
        ctx.args = []
        return []

    def _outputs(self, json: Path | None, arguments: dict[str, Any], *, overwrite: bool) -> Iterator[UsageError]:
        """Faults of the path given to `--json`."""
        if json is None:
            return
        try:
            check_new_file(json, overwrite=overwrite)
        except UsageError as error:
            yield UsageError(f"--json: {error}", error.code)
        named = {f"--{name}": arguments.get(name) for name in (*PLACES, "resume")}
        outputs = {flag: place for flag, place in named.items() if isinstance(place, str | Path)}
        messages = clashes(outputs | {"--json": json})
        yield from (UsageError(message, "clash") for message in messages if "--json" in message)

    def invoke(self, ctx: click.Context) -> None:
        arguments, common = ctx.params["arguments"], ctx.params["common"]
        file = common["json"]
        if common.get("print_config"):
            click.echo(as_config(arguments), nl=False)
            return
        if common.get("dry_run"):
            self._rehearse(arguments, file)
            return
        try:
            result = self.function(**arguments)
        except (RuntimeError, MemoryError) as error:
            from robustclip.runs.devices import is_out_of_memory  # imports torch

            if isinstance(error, RunError) or not is_out_of_memory(error):
                raise
            raise _out_of_memory(arguments) from error
        if os.environ.get("RANK", "0") != "0":  # only the main process prints
            return
        if file is None:
            self.show(result)
            return
        numbers = plain(self.numbers(result))
        try:
            self.show(result)
        finally:  # a full disk must not lose the printed result, nor an error of `show` the file
            with rescuing(lambda: numbers):
                write_json(file, numbers)

    def _rehearse(self, arguments: dict[str, Any], json: Path | None) -> None:
        """Print what a valid call would read, write and take."""
        defaults = {parameter.name: parameter.default for parameter in self.parameters}
        places = {name: value for name, value in arguments.items() if name in PLACES and value is not None}
        if json is not None:
            places["json"] = json
        for name, value in arguments.items():
            if name in places:
                continue
            if name not in TEXTS and (files := list(_existing_files(value))):
                click.echo(f"reads {name.replace('_', ' ')}: {', '.join(files)}")
            elif value != defaults[name]:
                click.echo(f"{name.replace('_', ' ')}: {written(value)}")
        for name, value in places.items():
            click.echo(f"writes {name.replace('_', ' ')}: {value}")
        if "quick" in arguments and arguments["out"] is None and arguments.get("resume") is None:  # a recipe's run
            click.echo("writes out: a new folder below runs/")
        if self.estimate is not None and not arguments.get("quick"):
            self.estimate(arguments)
        elif "quick" in defaults:
            click.echo("duration: not estimated; try --quick, which takes seconds, or a small --steps")
        click.echo("nothing was run (--dry-run)")

    def _sort(self, rest: list[str], after: list[str]) -> tuple[dict[str, object], list[UsageError]]:
        """Sort the words that click did not parse, and those after `--`: (values of positional parameters, faults)."""
        values: list[str] = []
        misfits: list[UsageError] = []
        flags = [flag for option in self.params for flag in option.opts if flag.startswith("--")]
        tokens = deque(rest)
        while tokens:
            token = tokens.popleft()
            if not _is_flag(token):
                values.append(token)
                continue
            flag = token.partition("=")[0]
            misfits.append(UsageError(signatures.unknown(flag, flags, "flag"), "unknown_flag", flag=flag))
            if "=" not in token and tokens and not _is_flag(tokens[0]):
                tokens.popleft()  # presumably the flag's value
        values += after
        positional: dict[str, object] = {}
        for parameter in self.parameters:
            if parameter.positional and values:
                positional[parameter.name] = values if parameter.repeated else values.pop(0)
                values = [] if parameter.repeated else values
        return positional, misfits + [UsageError(f"{value}: unexpected argument", "no_flag") for value in values]


def _existing_files(value: object) -> Iterator[str]:
    """Files and folders among the values of a parameter, with their size."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(one, str | Path) or not 0 < len(str(one)) <= LONGEST_PATH:
            continue
        path = Path(one)
        if is_file(path):
            yield f"{path} ({decimal(path.stat().st_size)})"
        elif is_folder(path):
            yield f"{path}/ ({counted(sum(1 for _ in path.iterdir()), 'item')})"


def _spelt_out(args: Sequence[str], repeated: Collection[str]) -> Iterator[str]:
    """Expand `--images a b` to `--images a --images b`; only for commands without positional parameters."""
    current = ""
    for arg in args:
        if _is_flag(arg):
            current = arg if arg in repeated else ""
            if not current:
                yield arg
        elif current:
            yield from (current, arg)
        else:
            yield arg


def _out_of_memory(arguments: Mapping[str, Any]) -> RunError:
    """The device had too little memory for a call. Names its flags that need less."""
    large = {name: arguments[name] for name in LARGE if arguments.get(name)}
    would = [f"a smaller --{name.replace('_', '-')} (it was {value})" for name, value in large.items()]
    if arguments.get("dtype") in ("auto", "measure", "float32"):
        would.append("--dtype bfloat16")
    less = ", or ".join(would) or "another --device"
    return RunError(
        f"the device ran out of memory: {less} would do (--traceback shows where)", "out_of_memory", **large
    )


def _option(parameter: Parameter) -> click.Option:
    """The flag of a parameter. Values stay text, which `signatures.bind` parses. Switches have a --no form, since a
    resumed run may have had them on."""
    flag = as_flag(parameter)
    is_switch = parameter.label == ""
    return click.Option(
        [parameter.name, f"{flag}/--no-{flag[2:]}" if is_switch else flag],
        is_flag=is_switch,
        type=None if is_switch else click.UNPROCESSED,
        multiple=parameter.repeated,
        callback=_split if parameter.repeated and not {"TEXT", "PATH"} & {*parameter.label.split("|")} else None,
        default=None if parameter.required else parameter.default,
        shell_complete=partial(_completed, parameter),
        metavar=parameter.label,
        help=_help(parameter),
    )


def _help(parameter: Parameter) -> str:
    """Help text of a flag with its default, except for None and switches that are off."""
    text = parameter.help or USUAL.get(parameter.name, "")
    if parameter.required:
        return f"{text} (required)"
    if parameter.label == "":
        shown = as_flag(parameter)[2:] if parameter.default is True else ""
    else:
        shown = "" if parameter.default is None else written(parameter.default)
    return f"{text}  [default: {shown}]" if shown else text


def _completed(parameter: Parameter, _: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion of a flag's value: the choices of its type, else files if it takes paths."""
    if parameter.choices:
        return [CompletionItem(word) for word in parameter.choices if word.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file")] if "PATH" in parameter.label.split("|") else []


def _split(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """`--tasks a,b` is `--tasks a --tasks b`; not for texts and paths, which may hold commas."""
    return (
        tuple(part for value in values for part in value.split(","))
        if _on_command_line(ctx, option.name or "")
        else values
    )


def _on_command_line(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _is_flag(token: str) -> bool:
    return token.startswith("-") and re.match(r"-$|-\.?\d", token) is None


def _unwrapped(text: str) -> str:
    """A docstring without its Raises and Returns blocks; click wraps prose but not indented blocks."""
    blocks = [block for block in text.split("\n\n") if not block.startswith(("Raises ", "Returns "))]
    return "\n\n".join(map(_laid_out, blocks))


def _laid_out(block: str) -> str:
    """A block of help text: click wraps prose; definition lists (term, two or more spaces, meaning) are wrapped with a
    hanging indent; commands and code are kept verbatim."""
    lines = block.split("\n")
    items = [re.fullmatch(r"(?P<term>\S+(?: \S+)*) {2,}(?P<meaning>\S.*)", line) for line in lines]
    if items[0] is None:
        return f"\b\n{block}" if re.search(r"^ {2}", block, re.MULTILINE) else block
    column = max(item.start("meaning") for item in items if item)
    definitions: list[tuple[str, str]] = []
    for line, item in zip(lines, items, strict=True):
        if item:
            definitions.append((item["term"], item["meaning"]))
        else:
            definitions[-1] = (definitions[-1][0], f"{definitions[-1][1]} {line.strip()}")
    wrapped = (
        textwrap.fill(meaning, 78, initial_indent=f"{term:{column}}", subsequent_indent=" " * column)
        for term, meaning in definitions
    )
    return "\b\n" + "\n".join(wrapped)
