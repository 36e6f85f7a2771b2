"""An attack in one word, as in reports and on the command line: `l2:1.5@20x3`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, cast

from robustclip.errors import UsageError
from robustclip.threat import BALLS, Norm, ThreatModel

LONGEST: Final = 100  # characters of a spec, and more than any needs
MOST: Final = 1_000_000  # steps or restarts; published attacks take a few thousand at most
GRAMMAR: Final = "norm:eps@steps[xrestarts][:step_size], e.g. l2:1.5@20, linf:4/255@50x3 or l2:1.5@20:0.1"
_PATTERN: Final = re.compile(
    r"(?P<norm>[^:@]+):(?P<eps>[^:@]+)@(?P<steps>[^:@x]+)(?:x(?P<restarts>[^:@x]+))?(?::(?P<step_size>[^:@]+))?"
)


@dataclass(frozen=True)
class AttackSpec:
    """PGD's settings that a reader of a number must know. Eps and step size are in [0, 1] pixel units.

    `step` is the step size where it is not the default of 2.5 * eps / steps.
    """

    norm: Norm
    eps: float
    steps: int
    restarts: int = 1
    step: float | None = None

    @classmethod
    def parse(cls, text: str) -> AttackSpec:
        """Read `norm:eps@steps[xrestarts][:step_size]`; numbers may be fractions such as 4/255.

        Raises UsageError that names the part at fault.
        """
        if len(text) > LONGEST:
            raise UsageError(f"cannot read an attack of {len(text)} characters ({text[:20]!r}...): write {GRAMMAR}")
        match = _PATTERN.fullmatch(text.strip().lower())
        if match is None:
            raise UsageError(f"cannot read the attack {text!r}: write {GRAMMAR}")
        norm, restarts, step = match["norm"], match["restarts"], match["step_size"]
        if norm not in BALLS:
            raise UsageError(f"unknown norm {norm!r} in the attack {text!r}: use {' or '.join(BALLS)}, as in {GRAMMAR}")
        spec = cls(
            norm=cast("Norm", norm),
            eps=_positive(match["eps"], "eps", text),
            steps=_count(match["steps"], "steps", text),
            restarts=1 if restarts is None else _count(restarts, "restarts", text),
            step=None if step is None else _positive(step, "step size", text),
        )
        if norm == "linf" and spec.eps >= 1:
            raise UsageError(
                f"eps {match['eps']} in the attack {text!r} looks as if given in /255, but images are in [0, 1]: "
                f"write linf:{match['eps']}/255@{spec.steps}"
            )
        return spec

    @property
    def step_size(self) -> float:
        """In pixel units: `step` where given, else 2.5 * eps / steps (MadryLab/robustness)."""
        return 2.5 * self.eps / self.steps if self.step is None else self.step

    def threat(self, size: int | tuple[int, int]) -> ThreatModel:
        """The ball this attack searches, for images of `size` (height, width)."""
        return ThreatModel(self.norm, self.eps, size)

    def __str__(self) -> str:
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        step = "" if self.step is None else f":{_number(self.step)}"
        return f"{self.norm}:{_number(self.eps)}@{self.steps}{restarts}{step}"


def _positive(text: str, what: str, attack: str) -> float:
    numerator, slash, denominator = text.partition("/")
    try:
        number = _float(numerator) / (_float(denominator) if slash else 1)
    except (ValueError, ZeroDivisionError):
        number = float("nan")
    if not 0 < number < float("inf"):
        raise UsageError(f"{what} {text!r} in the attack {attack!r} is not a positive number: write {GRAMMAR}")
    return number


def _float(text: str) -> float:
    """A decimal number as a reader of papers writes it, where Python's own `float` takes 1_0, nan and other scripts."""
    if not re.fullmatch(r"[0-9.e+-]+", text):
        raise ValueError(text)
    return float(text)


def _count(text: str, what: str, attack: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,6}", text) or int(text) > MOST:
        raise UsageError(
            f"{what} {text!r} in the attack {attack!r} is not a whole number from 1 to {MOST}: write {GRAMMAR}"
        )
    return int(text)


def _number(value: float) -> str:
    """The shortest text that reads back as the same number: 4/255 for what was 4/255."""
    levels = round(value * 255)
    return f"{levels}/255" if value < 1 and levels > 0 and levels / 255 == value else repr(value).removesuffix(".0")
