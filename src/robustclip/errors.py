"""Error classes with codes and exit codes: UsageError, RunError and Interrupted; reasons for skipped samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from importlib.util import find_spec


class Coded(Exception):
    """An error with a code, so that programs and tests need not read its message.

        raise UsageError(f"eps {eps} is at least 1: ...", "eps_too_large", eps=eps)
        with pytest.raises(UsageError, check=coded("eps_too_large", eps=3)): ...

    code: kind of fault, snake_case; values: the values involved; faults: the single errors of a combined one, whose
    codes `codes` lists after its own.
    """

    def __init__(self, message: str, code: str = "", *, faults: Sequence[Coded] = (), **values: object) -> None:
        super().__init__(message)
        self.code = code
        self.faults = tuple(faults)
        self.values = values

    @property
    def codes(self) -> list[str]:
        """Its code, if it has one, and those of its `faults`."""
        return [code for code in (self.code, *(code for fault in self.faults for code in fault.codes)) if code]


class UsageError(Coded, ValueError):
    """A faulty call (exit code 2); the message has the value received, the accepted values and a working call."""


class RunError(Coded, RuntimeError):
    """A failure during a valid call (exit code 1)."""


def coded(code: str, **values: object) -> Callable[[BaseException], bool]:
    """A check that an error, or one of its faults, has this code and these of its values."""

    def check(error: BaseException) -> bool:
        return isinstance(error, Coded) and (
            (error.code == code and values.items() <= error.values.items()) or any(map(check, error.faults))
        )

    return check


def as_fault(fault: str | UsageError) -> UsageError:
    return UsageError(fault) if isinstance(fault, str) else fault


def raise_faults(call: str, faults: Sequence[str | UsageError], hint: str = "") -> None:
    """Raise one UsageError that lists all `faults` of `call` with their codes; do nothing without faults."""
    if faults:
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = [f"{count} in the call of {call}", *(f"  {fault}" for fault in faults), hint]
        raise UsageError("\n".join(line for line in lines if line), "faults", faults=list(map(as_fault, faults)))


def faults_of(checks: Iterable[Callable[[], object]]) -> Iterator[UsageError]:
    """The UsageErrors that `checks` raise."""
    for check in checks:
        try:
            check()
        except UsageError as error:
            yield error


def require(module: str, extra: str, use: str) -> None:
    """Raise UsageError if an optional library is not installed, naming the extra that installs it; imports nothing."""
    try:
        installed = find_spec(module) is not None
    except ValueError:  # blocked: sys.modules[module] is None
        installed = False
    if not installed:
        message = f"{use} needs {module}, which is not installed: pip install 'robustclip[{extra}]'"
        raise UsageError(message, "not_installed", module=module, extra=extra)


class Interrupted(Exception):
    """The run was stopped by a signal after saving its state (exit code 128 + signal)."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


class Fault(StrEnum):
    """Why a sample is skipped."""

    NO_IMAGE = "no image"
    NO_FILE = "image file missing"
    EMPTY_IMAGE = "empty image"
    NOT_AN_IMAGE = "not an image"
    DAMAGED_IMAGE = "truncated or damaged image"
    TOO_LARGE = "too many pixels"
    TOO_BIG = "file of more than 64 MiB"
    TOO_DEEP = "more than 8 bits a channel"
    NO_CAPTION = "no caption"
    NOT_UTF8 = "caption not in UTF-8"
    BAD_METADATA = "metadata not a JSON object"
    NOT_A_FILE = "link or device in a shard, or an overlong name"
    HIDDEN = "hidden file in a shard"
    BROKEN_SHARD = "broken shard"


class Skip(Exception):
    """An unusable picture; `fault` gives the reason."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault
