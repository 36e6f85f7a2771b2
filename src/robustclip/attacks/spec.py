"""Attack specifications as text, parsed and run: `l2:1.5@20x3`, `l2:1.5@autoattack`, `l2:1.5@universal:FILE`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustclip.attacks.gradient import pgd
from robustclip.attacks.threat import BALLS, Norm, ThreatModel
from robustclip.errors import RunError, UsageError
from robustclip.runs.rng import generator
from robustclip.signatures import unknown

Kind = Literal["pgd", "apgd-ce", "apgd-dlr", "apgd-t", "square", "autoattack", "autoattack-light", "universal"]
KINDS: Final = [kind for kind in get_args(Kind) if kind not in ("pgd", "universal")]  # of classifiers
LENGTHS: Final = {"apgd-ce": 100, "apgd-dlr": 100, "apgd-t": 100, "square": 5000}
"""Default steps or queries of single attacks: those in AutoAttack. Ensembles have fixed ones."""
ENSEMBLE: Final = 100  # steps of each APGD in an ensemble
LONGEST: Final = 100  # characters of a spec
MOST: Final = 1_000_000  # steps or restarts; published attacks take a few thousand at most
GRAMMAR: Final = "norm:eps@steps[xrestarts][:step_size], e.g. l2:1.5@20, linf:4/255@50x3 or l2:1.5@20:0.1"
STRONG: Final = "norm:eps@kind[:steps], e.g. l2:1.5@apgd-ce:50, linf:4/255@square:1000 or l2:1.5@autoattack"
STORED: Final = "norm:eps@universal:FILE, e.g. linf:4/255@universal:delta.safetensors"
_PATTERN: Final = re.compile(
    r"(?P<norm>[^:@]+):(?P<eps>[^:@]+)@(?P<steps>[^:@x]+)(?:x(?P<restarts>[^:@x]+))?(?::(?P<step_size>[^:@]+))?"
)


_NAMED: Final = re.compile(r"(?P<norm>[^:@]+):(?P<eps>[^:@]+)@(?P<kind>[a-z][^:@]*)(?::(?P<steps>[^:@]+))?")
TOLERANCE = 1e-4  # relative; a float32 norm over 150,528 values is good to about 1e-5


@dataclass(frozen=True)
class AttackSpec:
    """Settings of an attack, as reported with each result. Eps and step size are in [0, 1] pixels.

    `kind` is "pgd", or one of the attacks on classifiers that have no settings but a length (`attacks.library` says
    what they are); `steps` are Square's queries, and 100 for the ensembles, whose lengths are fixed. `restarts` and
    `step` are PGD's; `step` is the step size where it is not the default of 2.5 * eps / steps. "universal" adds the
    perturbation stored in `file` to every image (`attacks.universal`), without steps.
    """

    norm: Norm
    eps: float
    steps: int
    restarts: int = 1
    step: float | None = None
    kind: Kind = "pgd"
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> AttackSpec:
        """Read `norm:eps@steps[xrestarts][:step_size]` (PGD), `norm:eps@kind[:steps]` or `norm:eps@universal:FILE`,
        whose file is not opened; numbers may be fractions such as 4/255.

        Raises UsageError that names the part at fault.
        """
        if not isinstance(text, str):
            raise UsageError(f"cannot read the attack {text!r:.100}: write {GRAMMAR}", "not_an_attack")
        head, universal, file = text.strip().partition("@universal:")
        if len(head) > LONGEST:
            raise UsageError(
                f"cannot read an attack of {len(text)} characters ({text[:20]!r}...): write {GRAMMAR}", "not_an_attack"
            )
        stored = bool(universal and file)
        word = f"{head}@1".lower() if stored else text.strip().lower()
        named = _NAMED.fullmatch(word)
        match = named or _PATTERN.fullmatch(word)
        if match is None:
            raise UsageError(
                f"cannot read the attack {text!r}: write {GRAMMAR}; or {STRONG}; or {STORED}", "not_an_attack"
            )
        norm = match["norm"]
        if norm not in BALLS:
            message = f"unknown norm {norm!r} in the attack {text!r}: use {' or '.join(BALLS)}, as in {GRAMMAR}"
            raise UsageError(message, "unknown_norm", norm=norm)
        eps = _positive(match["eps"], "eps", text)
        if norm == "linf" and eps >= 1:
            instead = f"linf:{match['eps']}/255@{text.strip().split('@', 1)[1]}"
            raise UsageError(
                f"eps {match['eps']} in the attack {text!r} looks as if given in /255, but images are in [0, 1]: "
                f"write {instead}",
                "eps_in_255",
                instead=instead,
            )
        if named is not None:
            return _strong(cast("Norm", norm), eps, named["kind"], named["steps"], text)
        restarts, step = match["restarts"], match["step_size"]
        return cls(
            norm=cast("Norm", norm),
            eps=eps,
            steps=_count(match["steps"], "steps", text),
            restarts=1 if restarts is None else _count(restarts, "restarts", text),
            step=None if step is None else _positive(step, "step size", text),
            kind="universal" if stored else "pgd",
            file=file if stored else "",
        )

    @property
    def step_size(self) -> float:
        """In [0, 1] pixels: `step` if given, else 2.5 * eps / steps (MadryLab/robustness).

        Raises UsageError for kinds that choose their own, so that whoever runs PGD with a spec refuses them.
        """
        self.check_pgd("a step size")
        return 2.5 * self.eps / self.steps if self.step is None else self.step

    def threat(self, size: int | tuple[int, int]) -> ThreatModel:
        """The threat model for images of `size` (height, width)."""
        return ThreatModel(self.norm, self.eps, size)

    @property
    def ball(self) -> str:
        """Norm and eps alone: "l2:1.5"."""
        return f"{self.norm}:{_number(self.eps)}"

    def check_pgd(self, what: str, *, restarts: bool = True) -> None:
        """Raise UsageError unless this is PGD (without restarts, if they are not allowed), which `what` requires."""
        if self.kind != "pgd":
            kind = "is a stored perturbation" if self.kind == "universal" else "attacks a classifier's logits"
            message = f"{what} needs PGD, and {self} {kind}: write {self.ball}@20 instead"
            raise UsageError(message, "not_pgd", what=what, attack=str(self), instead=f"{self.ball}@20")
        if self.restarts > 1 and not restarts:
            raise UsageError(f"{what} takes one start per image: leave x{self.restarts} of {self} out")

    def __str__(self) -> str:
        if self.kind == "universal":
            return f"{self.ball}@universal:{self.file}"
        if self.kind != "pgd":
            usual = LENGTHS.get(self.kind, ENSEMBLE)
            return f"{self.ball}@{self.kind}" + ("" if self.steps == usual else f":{self.steps}")
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        step = "" if self.step is None else f":{_number(self.step)}"
        return f"{self.ball}@{self.steps}{restarts}{step}"


def _strong(norm: Norm, eps: float, kind: str, steps: str | None, text: str) -> AttackSpec:
    """A named attack."""
    if kind not in KINDS:
        message = f"in the attack {text!r}: {unknown(kind, KINDS, 'kind')} There are {', '.join(KINDS)}"
        raise UsageError(message, "unknown_kind", kind=kind)
    if kind not in LENGTHS and steps is not None:
        message = f"{kind} in the attack {text!r} takes no steps: its parts have those of the paper; leave :{steps} out"
        raise UsageError(message, "steps_of_kind", kind=kind, steps=steps)
    length = LENGTHS.get(kind, ENSEMBLE) if steps is None else _count(steps, "steps", text)
    return AttackSpec(norm, eps, length, kind=cast("Kind", kind))


def _positive(text: str, what: str, attack: str) -> float:
    numerator, slash, denominator = text.partition("/")
    try:
        number = _float(numerator) / (_float(denominator) if slash else 1)
    except (ValueError, ZeroDivisionError):
        number = float("nan")
    if not 0 < number < float("inf"):
        message = f"{what} {text!r} in the attack {attack!r} is not a positive number: write {GRAMMAR}"
        raise UsageError(message, "not_positive", argument=what, given=text)
    return number


def _float(text: str) -> float:
    """A plain decimal number; Python's `float` also accepts 1_0, nan and other scripts."""
    if not re.fullmatch(r"[0-9.e+-]+", text):
        raise ValueError(text)
    return float(text)


def _count(text: str, what: str, attack: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,6}", text) or int(text) > MOST:
        message = f"{what} {text!r} in the attack {attack!r} is not a whole number from 1 to {MOST}: write {GRAMMAR}"
        raise UsageError(message, "not_a_count", argument=what, given=text)
    return int(text)


def _number(value: float) -> str:
    """The shortest text that parses to the same number, such as 4/255."""
    levels = round(value * 255)
    return f"{levels}/255" if value < 1 and levels > 0 and levels / 255 == value else repr(value).removesuffix(".0")


def run_attack(
    module: nn.Module,
    images: Float[Tensor, "b 3 h w"],
    loss: Callable[[Tensor], Tensor],
    spec: AttackSpec,
    *,
    key: tuple[int, ...],
) -> Float[Tensor, "b 3 h w"]:
    """One PGD run from one random start at the images' own size; the result is checked to lie inside the threat model.

    Raises RunError if an image left the threat model or [0,1]: then no number that follows would mean anything.
    """
    threat = spec.threat(size_of(images))
    noise = generator(key[0], "attack", *key[1:])  # on the CPU, so that all devices get the same numbers
    moved = pgd(images, loss, threat, steps=spec.steps, step_size=spec.step_size, module=module, generator=noise)
    check_inside(images, moved, threat)
    return moved


def check_inside(images: Float[Tensor, "b 3 h w"], moved: Float[Tensor, "b 3 h w"], threat: ThreatModel) -> None:
    """Raise RunError unless `moved` is in [0,1] and within `threat` of `images` (to rounding)."""
    low, high = (float(bound) for bound in moved.aminmax())
    # Written so that NaN fails too.
    if not (bool(threat.contains(moved - images, TOLERANCE).all()) and 0 <= low <= high <= 1):
        farthest = float(threat.norms(moved - images).max())
        raise RunError(
            f"the attack left its threat model ({threat}): "
            f"distance up to {farthest:.6g}, pixels in [{low:.6g}, {high:.6g}]",
            "outside_threat_model",
        )


def random_perturbation(
    images: Float[Tensor, "b 3 h w"], threat: ThreatModel, *, seed: int, indices: Int[Tensor, " b"]
) -> Float[Tensor, "b 3 h w"]:
    """Add noise of exactly the threat model's norm, with one generator (seed, index) per image."""
    return perturbed(images, threat, [generator(seed, "control", int(index)) for index in indices])


def perturbed(
    images: Float[Tensor, "b 3 h w"], threat: ThreatModel, generators: Sequence[torch.Generator]
) -> Float[Tensor, "b 3 h w"]:
    """Add noise of exactly the threat model's norm, with one CPU generator per image.

    L2: a Gaussian direction; L-inf: random signs. Where noise would leave [0,1] it changes sign instead of being
    clipped: on a white background clipping would take half of it away, and the control would be too weak.
    """
    drawn = [torch.randn(images.shape[1:], generator=stream) for stream in generators]
    noise = threat.eps * threat.steepest(torch.stack(drawn).to(images.device))
    leaves = (images + noise < 0) | (images + noise > 1)
    return (images + torch.where(leaves, -noise, noise)).clamp(0, 1)


def size_of(images: Float[Tensor, "b 3 h w"]) -> tuple[int, int]:
    """Height and width."""
    return images.shape[-2], images.shape[-1]
