"""Typed functions as commands: parameters become flags; all faults of a call are reported together.

Types are Python's and pydantic's (`int`, `PositiveFloat`, `Literal["l2", "linf"]`, `FilePath`, `Path | None`,
`list[str]`); a validator in `Annotated[...]` checks what a type can't say, and a string there is the flag's help.
Parameters before `*` are positional.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from robustclip.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")
Pairs = Callable[..., Iterable[str]]
"""Yields the faults of values that are fine alone and illegal together. It is called with the parameters it names."""

MISSING: Final = inspect.Parameter.empty
LIMIT: Final = 2**63
SHORT: Final = 10  # characters of a decimal that is shown as it is
QUOTIENT: Final = re.compile(r"\s*([+-]?\d+\.?\d*)\s*/\s*(\d+\.?\d*)\s*", re.ASCII)
SMALLEST, LARGEST = 2.0**-126, (2 - 2**-23) * 2.0**127  # of float32's normal numbers
SHOWN: Final = 200  # characters of a value that is told back


@dataclass(frozen=True)
class Parameter:
    """What a caller must know of one parameter."""

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
        """Does it take several values?"""
        return get_origin(_bare(self.annotation)) in (list, tuple, set, Sequence, Iterable)

    @property
    def numeric(self) -> bool:
        """Does it take floats, and no text that may look like a quotient of two?"""
        words = set(self.label.split("|"))
        return "NUMBER" in words and not words & {"TEXT", "PATH"}

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, where its type names them."""
        bare = _bare(self.annotation)
        bare = _bare(get_args(bare)[0]) if self.repeated and get_args(bare) else bare
        return tuple(map(str, get_args(bare))) if get_origin(bare) is Literal else ()

    @property
    def label(self) -> str:
        """Its type as help shows it: INTEGER, PATH, l2|linf; nothing for a switch."""
        return _label(self.annotation)

    def read_object(self, value: object) -> Any:
        """The same of what a Python caller gave: a truth value is no number, and torch's devices and dtypes stand for
        their names."""
        if type(value).__module__ == "torch" and type(value).__name__ in ("device", "dtype"):
            value = str(value).removeprefix("torch.")
        if isinstance(value, bool) and bool not in _options(self.annotation):
            raise UsageError("is a truth value: give " + (self.label or "another"))
        return self.read(value)

    def listed(self, value: object) -> object:
        """One value as a list of it, where several are wanted."""
        alone = self.repeated and value is not None and not isinstance(value, list | tuple | set | range)
        return [value] if alone else value

    def read(self, value: object) -> Any:
        """`value` as the type says, text parsed, 2/255 too where a float is taken; NaN and infinity are no numbers, nor
        are integers beyond 64 bits.

        Raises pydantic's ValidationError, UsageError for what the type would let pass, OSError for a path that the
        system does not take.
        """
        adapter = TypeAdapter(self.annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
        found = adapter.validate_python(_quotients(value) if self.numeric else value)
        if any(isinstance(one, int) and not -LIMIT <= one < LIMIT for one in _each(found)):
            raise UsageError("is beyond the integers of 64 bits")
        if any(isinstance(one, float) and one and not SMALLEST <= abs(one) <= LARGEST for one in _each(found)):
            raise UsageError(f"is beyond the numbers of 32 bits, {SMALLEST:.2g} to {LARGEST:.2g}")
        texts = [str(one) for one in _each(found) if isinstance(one, str | Path)]
        if any("\0" in text or re.search("[\ud800-\udfff]", text) for text in texts):
            raise UsageError("holds a zero byte, or is not UTF-8: no text or path here may")
        return found


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a typed function, in order. Raises UsageError for one that can't become a flag."""
    found = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        gathers_others = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if gathers_others or parameter.annotation is MISSING:
            raise UsageError(
                f"`{parameter}` of {function.__name__}() can't become a flag: "
                f"give each parameter a name and a type, as in def {function.__name__}(*, steps: int = 100)"
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
    pairs: Pairs | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """(every argument as its type says, defaults included; the faults found). `function` is not called.

    `spell` writes a parameter's name as the caller would. `pairs` is asked about illegal combinations unless a value
    that it reads is faulty by itself.
    """
    known = {parameter.name: parameter for parameter in parameters(function)}
    defaults = {name: parameter.default for name, parameter in known.items() if not parameter.required}
    arguments: dict[str, Any] = {}
    faults = []
    for name, value in (defaults | dict(given)).items():  # defaults too: a folder they name may be taken
        if name not in known:
            faults.append(unknown(f"{name}=", [f"{other}=" for other in known], "argument"))
            continue
        try:
            arguments[name] = known[name].read(value)
        except (ValidationError, UsageError, OSError) as error:
            faults.append(_fault(known[name], value, error, spell))
    for name, parameter in known.items():
        if parameter.required and name not in given:
            faults.append(f"{spell(parameter)} is missing: {parameter.help or parameter.label}")
    if pairs is not None and (reads := inspect.signature(pairs).parameters.keys()) <= arguments.keys():
        faults.extend(pairs(**{name: arguments[name] for name in reads}))
    return arguments, faults


def written(value: object) -> str:
    """A value as help and commands write it: a float that has no short decimal as the quotient that makes it (2/255,
    4/7), which `Parameter.read` takes back to the same float."""
    if isinstance(value, list | tuple):
        return ", ".join(map(written, value))
    if not isinstance(value, float) or len(repr(value)) <= SHORT:
        return str(value)
    steps = round(value * 255)
    if 0 < steps < 64 and steps / 255 == value:  # a change of pixels, which the literature gives in 255ths
        return f"{steps}/255"
    quotient = Fraction(value).limit_denominator(1000)
    exact = quotient.numerator / quotient.denominator == value
    return f"{quotient.numerator}/{quotient.denominator}" if exact else str(value)


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """A public function that holds its arguments against their types when it is called from Python.

    What came is read as on the command line: one value where several are wanted is a list of it, text is parsed. Values
    of a wrong type, missing and unknown arguments raise one UsageError with all of them. Values of the right type are
    left to the function, which refuses them beside others, and names what is near.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        known = {parameter.name: parameter for parameter in parameters(function)}
        places = [parameter.name for parameter in known.values() if parameter.positional]
        given = dict(zip(places, args, strict=False)) | kwargs
        faults = [f"{len(args)} arguments by place: give {len(places)}"] if len(args) > len(places) else []
        faults += [f"{name}= is given twice" for name in places[: len(args)] if name in kwargs]
        arguments: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                faults.append(unknown(f"{name}=", [f"{other}=" for other in known], "argument"))
                continue
            arguments[name] = known[name].listed(value)
            try:
                arguments[name] = known[name].read_object(arguments[name])
            except (ValidationError, UsageError, OSError) as error:
                if not _left_to_function(error):
                    faults.append(_fault(known[name], value, error, as_keyword))
        faults += [
            f"{name}= is missing: {parameter.help or parameter.label}"
            for name, parameter in known.items()
            if parameter.required and name not in given
        ]
        raise_faults(f"{function.__name__}()", faults)
        return function(**arguments)  # type: ignore[call-arg]

    return call


OF_VALUES: Final = ("value_error", "greater_than", "greater_than_equal", "less_than", "less_than_equal")


def _left_to_function(error: Exception) -> bool:
    """Does the type fit, or may it be an object or a word, of which the function tells those that there are?"""
    if not isinstance(error, ValidationError):
        return False
    found = [(one["type"], isinstance(one["input"], str)) for one in error.errors()]
    objects = [one for one in error.errors() if one["type"] == "is_instance_of" and one["ctx"]["class"] != "Sequence"]
    return (
        any(objects)
        or any(kind == "literal_error" and word for kind, word in found)
        or all(kind in OF_VALUES for kind, _ in found)
    )


def raise_faults(call: str, faults: Sequence[str], hint: str = "") -> None:
    """Raise one UsageError that lists all `faults` of `call`; do nothing where there is none."""
    if faults:
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = [f"{count} in the call of {call}", *(f"  {fault}" for fault in faults), hint]
        raise UsageError("\n".join(line for line in lines if line))


def unknown(given: str, known: Iterable[str], kind: str) -> str:
    """Say that `given` is not known, and name what is near."""
    by_letters = {name.strip("-="): name for name in known}  # dashes would make all flags look alike
    near = get_close_matches(given.strip("-="), list(by_letters), n=3, cutoff=0.7)
    meant = f"; did you mean {' or '.join(by_letters[name] for name in near)}?" if near else ""
    return f"{given}: unknown {kind}{meant}"


Refusal = ValidationError | UsageError | OSError


def _fault(parameter: Parameter, value: object, error: Refusal, spell: Callable[[Parameter], str]) -> str:
    """What came, what would do, and a value that works where one is known."""
    values = value if isinstance(value, list | tuple) else [value]
    came = _brief(" ".join(repr(str(one) if isinstance(one, Path) else one) for one in values))
    unsaid = parameter.default in (MISSING, None, value, "", [], ())
    works = "" if unsaid else f" (default: {written(parameter.default)})"
    return f"{spell(parameter)} {came}: {' or '.join(_reasons(error))}{works}"


def _reasons(error: Refusal) -> list[str]:
    if isinstance(error, ValidationError):
        return list(dict.fromkeys(_reason(detail) for detail in error.errors(include_url=False)))
    return [str(error.strerror).lower() if isinstance(error, OSError) else str(error)]


def _reason(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":  # a validator's own words
        return str(detail["ctx"]["error"])
    message = detail["msg"].removeprefix("Input ")
    return message[0].lower() + message[1:]


def _quotients(value: object) -> object:
    """Texts like 2/255 as numbers; whatever else as it is, for the type to judge."""
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
    """The types that a value may have."""
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
