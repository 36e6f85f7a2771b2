"""Data classes of a report.

    from robustclip.pages.encoding import encode
    from robustclip.pages.pages import write_report

    cases = (encode(case) for case in ...)         # pictures shrink to what a page needs; the tensors may go
    write_report("report.html", Report(...), cases)

A report is a function of these data alone: the same data give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

Better = Literal["higher", "lower", ""]
Unit = Literal["percent", "number"]


@dataclass(frozen=True)
class About:
    """A referee of the report, for its foot: `card` is shown as it is, `fingerprint` is a hash of all its weights.

    `note` is said beside its name wherever that matters, e.g. why it has no maps.
    """

    name: str
    method: str = ""
    layer: str = ""
    fingerprint: str = ""
    card: Mapping[str, Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class View:
    """How one referee sees one case. Maps are (H,W) in [0,1], pictures (3,H,W) in [0,1], of the case's image's size.

    A map that is None, or a number that is NaN or None, was not made; `why` says why a map is missing. `attacked` is
    the image after an attack on this referee. `numbers` can be sorted by; a bool is told as yes or no.
    """

    referee: str
    score: float | None
    map: Float[Tensor, "H W"] | None = None
    gradient: Float[Tensor, "3 H W"] | None = None
    attacked: Float[Tensor, "3 H W"] | None = None
    attacked_score: float | None = None
    attacked_map: Float[Tensor, "H W"] | None = None
    attacked_gradient: Float[Tensor, "3 H W"] | None = None
    noisy_score: float | None = None
    noisy_map: Float[Tensor, "H W"] | None = None
    numbers: Mapping[str, float | bool | None] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Case:
    """An image and a text, seen by every referee. `other` is what the attack pulled towards: a negation, or a target.

    `box` (top, left, bottom, right; half-open pixels) is where the text's object is known to be. `noisy` is the control
    of all referees: the image with noise of the attack's norm.
    """

    id: str
    image: Float[Tensor, "3 H W"]
    text: str
    views: list[View]
    other: str = ""
    box: tuple[int, int, int, int] | None = None
    noisy: Float[Tensor, "3 H W"] | None = None


@dataclass(frozen=True)
class Number:
    """A measured number, its 95% interval, and how many samples it is of."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Line:
    """A line of the table: one metric on one kind of images ("clean", "l2:1.5@20", "random l2:1.5"), by referee.

    `better` says which way is good, so that the best can be marked; "" for a metric that has no good way.
    """

    metric: str
    images: str
    numbers: Mapping[str, Number]
    better: Better = ""
    unit: Unit = "number"


@dataclass(frozen=True)
class Report:
    """All of a report but its cases.

    `setting` is told at the foot, line by line: method, threat model with its size, objective, steps, seeds, versions.
    `notes` are for all to read before the pictures; `left_out` has a line for each image that could not be read.
    """

    title: str
    referees: list[About]
    summary: list[Line] = field(default_factory=list)
    setting: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    explanations: Mapping[str, str] = field(default_factory=dict)
    """What a metric means, in a sentence, by its name: shown under the table."""
