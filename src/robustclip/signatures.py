"""Arguments of a typed function, from flags, a YAML file or Python keywords; all faults are reported together.

Types are Python's and pydantic's (`int`, `PositiveFloat`, `Literal["l2", "linf"]`, `FilePath`, `Path | None`,
`list[str]`); a validator in `Annotated[...]` checks what a type can't say, and a string there is the flag's help.
Parameters before `*` are positional. The argument `config` names a YAML file of arguments, which those of the call
override.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Annotated, Any, Final, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from robustclip.errors import UsageError, as_fault, raise_faults
from robustclip.runs.files import plain, read_yaml

P = ParamSpec("P")
R = TypeVar("R")
Expand = Callable[[Mapping[str, object]], Mapping[str, object]]
"""Replaces an argument by those it stands for: of a config file, of the run to resume."""

MISSING: Final = inspect.Parameter.empty
LIMIT: Final = 2**63
SHORT: Final = 10  # characters of a decimal that is shown as it is
QUOTIENT: Final = re.compile(r"\s*([+-]?\d+\.?\d*)\s*/\s*(\d+\.?\d*)\s*", re.ASCII)
SMALLEST, LARGEST = 2.0**-126, (2 - 2**-23) * 2.0**127  # of float32's normal numbers
SHOWN: Final = 200  # characters of a value that an error message repeats
SEVERAL: Final = (list, tuple, set, range)


@dataclass(frozen=True)
class Parameter:
    """Name, type and default of one parameter."""

    name: str
    annotation: Any
    default: Any
    positional: bool

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def help(self) -> str:
        """The first string inside `Annotated[...]`, or nothing."""
        notes = get_args(self.annotation)[1:] if get_origin(self.annotation) is Annotated else ()
        return next((note for note in notes if isinstance(note, str)), "")

    @property
    def repeated(self) -> bool:
        """Whether it takes several values."""
        return get_origin(_bare(self.annotation)) in (list, tuple, set, Sequence, Iterable)

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices of a Literal type."""
        bare = _bare(self.annotation)
        bare = _bare(get_args(bare)[0]) if self.repeated and get_args(bare) else bare
        return tuple(map(str, get_args(bare))) if get_origin(bare) is Literal else ()

    @property
    def label(self) -> str:
        """The type as help shows it: INTEGER, PATH, l2|linf; empty for a switch."""
        return _label(self.annotation)

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))

    def listed(self, value: object) -> object:
        """A single value as a list if the parameter is repeated, as a row of numbers of numpy or torch is; torch
        devices and dtypes as their names."""
        if type(value).__module__ == "torch" and type(value).__name__ in ("device", "dtype"):
            value = str(value).removeprefix("torch.")
        if self.repeated and type(value).__module__ in ("numpy", "torch") and getattr(value, "ndim", 0) == 1:
            value = value.tolist()  # type: ignore[attr-defined]
        return [value] if self.repeated and value is not None and not isinstance(value, SEVERAL) else value

    def read(self, value: object) -> Any:
        """Convert `value` to the type: texts are parsed (2/255 as a float), a single value becomes a list if the
        parameter is repeated. Booleans, NaN, infinity and integers beyond 64 bits are refused as numbers.

        Raises pydantic's ValidationError; UsageError for what pydantic accepts and this refuses; OSError for a path
        that the system refuses.
        """
        if isinstance(value, bool) and bool not in _options(self.annotation) and self.label != "ANY":
            raise UsageError("is a boolean: give " + (self.label or "another type"), "truth_value")
        words = set(self.label.split("|"))
        numeric = "NUMBER" in words and not words & {"TEXT", "PATH"}  # texts may look like a quotient
        found = self._adapter.validate_python(_quotients(self.listed(value)) if numeric else self.listed(value))
        if any(isinstance(one, int) and not -LIMIT <= one < LIMIT for one in _each(found)):
            raise UsageError("is beyond the integers of 64 bits", "too_large")
        if any(isinstance(one, float) and one and not SMALLEST <= abs(one) <= LARGEST for one in _each(found)):
            raise UsageError(f"is beyond the numbers of 32 bits, {SMALLEST:.2g} to {LARGEST:.2g}", "too_large")
        texts = [str(one) for one in _each(found) if isinstance(one, str | Path)]
        if any("\0" in text or re.search("[\ud800-\udfff]", text) for text in texts):
            raise UsageError("holds a zero byte or is not UTF-8", "not_utf8")
        return found


@lru_cache(maxsize=256)
def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a typed function, in order. Raises UsageError for one without a type."""
    return of_signature(inspect.signature(function, eval_str=True), function.__name__)


def of_signature(signature: inspect.Signature, name: str) -> list[Parameter]:
    """The parameters of a signature with evaluated annotations; `name` is the function's, for messages."""
    found = []
    for parameter in signature.parameters.values():
        gathers_others = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if gathers_others or parameter.annotation is MISSING:
            raise UsageError(
                f"`{parameter}` of {name}() can't become a flag: "
                f"give each parameter a name and a type, as in def {name}(*, steps: int = 100)",
                "untyped_parameter",
            )
        positional = parameter.kind is not parameter.KEYWORD_ONLY
        found.append(Parameter(parameter.name, parameter.annotation, parameter.default, positional))
    return found


def as_flag(parameter: Parameter) -> str:
    """How a parameter is written on the command line: --step-size, or NAME where it is positional."""
    return parameter.name.upper() if parameter.positional else "--" + parameter.name.replace("_", "-")


def as_keyword(parameter: Parameter) -> str:
    """How a parameter is written in Python: step_size=."""
    return f"{parameter.name}="


def bind(
    function: Callable[..., Any],
    given: Mapping[str, object],
    *,
    spell: Callable[[Parameter], str] = as_keyword,
    expansions: Mapping[str, Expand] | None = None,
) -> tuple[dict[str, Any], list[UsageError]]:
    """Validate the arguments of a call, without calling `function`: (converted arguments with defaults, faults).

    `spell` writes a parameter's name as the caller would. `expansions` are applied to arguments that are given;
    `config` is always one of them. The function's module may have

    QUICK   values of a call with `quick`, or functions that compute them from all arguments; they yield to what is
            given beside `quick` (both by flags, or both in the file)
    faults  a generator of the faults of values that are illegal in combination, called with the parameters it names
    """
    known = {parameter.name: parameter for parameter in parameters(function)}
    faults: list[UsageError] = []
    asked, pairs = given, _beside(function, "faults")
    for name, expand in {"config": with_config, **(expansions or {})}.items():
        if given.get(name) is None:
            continue
        try:
            given = expand(given)
        except (ValidationError, UsageError, OSError, ValueError) as error:
            stands_for = known.get(name, Parameter(name, Path | None, None, positional=False))
            faults.append(_fault(stands_for, given[name], error, spell))
            gone = ("resume", "out") if name == "resume" else (name,)
            given, pairs = {other: value for other, value in given.items() if other not in gone}, None
    defaults = {name: parameter.default for name, parameter in known.items() if not parameter.required}
    quick = (_beside(function, "QUICK") or {}) if _is_on(given.get("quick")) else {}
    beside = asked if _is_on(asked.get("quick")) else given
    quick = {name: value for name, value in quick.items() if name not in beside}
    given = dict(given) | {name: value for name, value in quick.items() if not callable(value)}
    arguments: dict[str, Any] = {}
    for name, value in (defaults | given).items():  # defaults too: a folder they name may be taken
        if name not in known:
            message = unknown(f"{name}=", [f"{other}=" for other in known], "argument")
            faults.append(UsageError(message, "unknown_argument", argument=name))
            continue
        try:
            arguments[name] = known[name].read(value)
        except (ValidationError, UsageError, OSError) as error:
            faults.append(_fault(known[name], value, error, spell))
    if not faults:
        arguments |= {name: value(arguments) for name, value in quick.items() if callable(value)}
    for name, parameter in known.items():
        if parameter.required and name not in given:
            message = f"{spell(parameter)} is missing: {parameter.help or parameter.label}"
            faults.append(UsageError(message, "missing", argument=name))
    if pairs is not None and (reads := inspect.signature(pairs).parameters.keys()) <= arguments.keys():
        faults.extend(map(as_fault, pairs(**{name: arguments[name] for name in reads})))
    return arguments, faults


def _beside(function: Callable[..., Any], name: str) -> Any:
    """A global of a function's module, or None."""
    return inspect.unwrap(function).__globals__.get(name)


def _is_on(switch: object) -> bool:
    return str(switch).lower() in ("true", "1", "yes", "on", "y", "t")


def with_config(given: Mapping[str, object]) -> dict[str, object]:
    """Arguments of the YAML file that `config` names (`eps: 4/255`, `seeds: [0, 1]`); those of the call override."""
    path = Path(str(given["config"]))
    content = read_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content) or "config" in content:
        raise UsageError(
            "is not a mapping of arguments to values: write lines such as `steps: 100`; --print-config shows all",
            "not_a_config",
        )
    of_file = {name.replace("-", "_"): value for name, value in content.items()}
    if len(of_file) < len(content):
        raise UsageError("holds an argument twice, with - and with _: leave one out", "given_twice")
    return of_file | {name: value for name, value in given.items() if name != "config"}


def as_config(arguments: Mapping[str, object]) -> str:
    """The arguments of a call as a YAML file, which `config` takes."""
    import yaml

    shown = {name: _quotient(value) for name, value in arguments.items()}
    return str(yaml.safe_dump(plain(shown), sort_keys=False, allow_unicode=True, width=120))


def _quotient(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_quotient(one) for one in value]
    return written(value) if isinstance(value, float) and "/" in written(value) else value


def written(value: object) -> str:
    """Format a value for help and commands; floats without a short decimal as an exact quotient (2/255, 4/7), which
    `Parameter.read` parses back to the same float."""
    if isinstance(value, list | tuple):
        return ", ".join(map(written, value))
    if not isinstance(value, float) or len(repr(value)) <= SHORT:
        return str(value)
    steps = round(value * 255)
    if 0 < steps < 64 and steps / 255 == value:  # a pixel difference, given in 255ths in the literature
        return f"{steps}/255"
    quotient = Fraction(value).limit_denominator(1000)
    exact = quotient.numerator / quotient.denominator == value
    return f"{quotient.numerator}/{quotient.denominator}" if exact else str(value)


def flags(parameters: Mapping[str, Any], values: Mapping[str, Any], always: Collection[str] = ()) -> list[str]:
    """Command-line words for the values that differ from their parameter's default, and for `always`."""
    return [
        word
        for name, value in values.items()
        if name in always or value != parameters[name].default
        for word in _flag(name, value)
    ]


def _flag(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for one in values for word in (flag, written(one))]


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a public function: validate its arguments against their types when it is called from Python.

    Arguments are parsed as on the command line, including a `config` file. Wrong values, missing and unknown arguments,
    and those that the module's `faults` yields (see `bind`) raise one UsageError that lists all of them. The command
    line calls the undecorated function after `bind`.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        places = [parameter.name for parameter in parameters(function) if parameter.positional]
        faults = [f"{len(args)} arguments by place: give {len(places)}"] if len(args) > len(places) else []
        faults += [f"{name}= is given twice" for name in places[: len(args)] if name in kwargs]
        arguments, others = bind(function, dict(zip(places, args, strict=False)) | kwargs)
        raise_faults(f"{function.__name__}()", [*faults, *others])
        return function(**arguments)  # type: ignore[call-arg]

    return call


def unknown(given: str, known: Iterable[str], kind: str) -> str:
    """Message that `given` is unknown, with close matches."""
    by_letters = {name.strip("-="): name for name in known}  # dashes would make all flags look alike
    near = get_close_matches(given.strip("-="), list(by_letters), n=3, cutoff=0.7)
    meant = f"; did you mean {' or '.join(by_letters[name] for name in near)}?" if near else ""
    return f"{given}: unknown {kind}{meant}"


Refusal = ValidationError | UsageError | OSError | ValueError


def _fault(parameter: Parameter, value: object, error: Refusal, spell: Callable[[Parameter], str]) -> UsageError:
    """The value received, the reasons, and the default as an example. The code is the validator's, or pydantic's error
    type."""
    values = value if isinstance(value, list | tuple) else [value]
    received = _brief(" ".join(repr(str(one) if isinstance(one, Path) else one) for one in values))
    has_example = parameter.default not in (MISSING, None, value, "", [], ())
    example = f" (default: {written(parameter.default)})" if has_example else ""
    reasons = _reasons(error)
    message = f"{spell(parameter)} {received}: {' or '.join(dict.fromkeys(str(reason) for reason in reasons))}{example}"
    return UsageError(message, reasons[0].code, argument=parameter.name, given=value)


def _reasons(error: Refusal) -> list[UsageError]:
    if isinstance(error, ValidationError):
        return [_reason(detail) for detail in error.errors(include_url=False)]
    if isinstance(error, OSError):
        return [UsageError(str(error.strerror).lower(), "not_readable")]
    return [error if isinstance(error, UsageError) else UsageError(str(error))]


def _reason(detail: ErrorDetails) -> UsageError:
    if detail["type"] == "value_error":  # raised by one of our validators
        error = detail["ctx"]["error"]
        return error if isinstance(error, UsageError) else UsageError(str(error), "value_error")
    message = detail["msg"].removeprefix("Input ")
    return UsageError(message[0].lower() + message[1:], detail["type"])


def _quotients(value: object) -> object:
    """Texts like 2/255 as numbers; anything else unchanged."""
    if isinstance(value, list | tuple):
        return [_quotients(one) for one in value]
    parts = QUOTIENT.fullmatch(value) if isinstance(value, str) else None
    return float(parts[1]) / float(parts[2]) if parts and float(parts[2]) else value


def _brief(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _each(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else [value]


def _bare(annotation: Any) -> Any:
    """The type without `Annotated` and `| None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return _bare(options[0]) if len(options) == 1 else Union[tuple(options)]  # noqa: UP007
    return annotation


def _options(annotation: Any) -> set[Any]:
    """The types of a union."""
    bare = _bare(annotation)
    return set().union(*map(_options, get_args(bare))) if get_origin(bare) is Union else {bare}


def _label(annotation: Any) -> str:
    bare = _bare(annotation)
    words = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: ""}
    if bare in words:
        return words[bare]
    if get_origin(bare) is Literal:
        return "|".join(map(str, get_args(bare)))
    if get_origin(bare) is Union:
        return "|".join(dict.fromkeys(map(_label, get_args(bare))))
    if get_origin(bare) is not None:
        return _label(get_args(bare)[0])
    return getattr(bare, "__name__", str(bare)).upper()
