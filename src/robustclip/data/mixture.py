"""Weighted mixture of several sources as one endless stream of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, count
from typing import Any, Literal

from robustclip.data.samples import SampleSource
from robustclip.data.stream import Concatenated, Drawn
from robustclip.errors import UsageError
from robustclip.runs.processes import ALONE, Place

Weights = Literal["size", "equal"] | Sequence[float]


class Mixture:
    """Samples of several sources, chosen by `weights`; a function of the seed.

    "size"   every sample of every source once an epoch, well mixed: the sources concatenated (CLIPAG App. A.1,
             "without resampling").
    "equal"  each draw is from any source with the same probability (CLIPAG §3); a small source comes round more often.
    1, 1, 2  the same with these odds.

    In the last two each source goes through its own epochs, so within a source no sample is left out or favoured.
    Raises UsageError for weights that do not fit the sources.
    """

    def __init__(self, sources: Sequence[SampleSource], weights: Weights = "size") -> None:
        self.sources = dict(zip(unique_names(sources), sources, strict=True))
        self.weights = check_weights(weights, len(sources))

    def stream(self, seed: int, place: Place = ALONE, state: dict[str, Any] | None = None) -> Drawn:
        """This process's samples without end, from `state` on if given. Raises RunError where a source is empty."""
        if len(self.sources) > 1 and self.weights == "size":
            return Concatenated(self.sources, seed, place, state or {})
        odds = [1.0] * len(self.sources) if isinstance(self.weights, str) else list(self.weights)
        return Drawn(self.sources, odds, seed, place, state or {})

    def describe(self) -> dict[str, Any]:
        weights = self.weights if isinstance(self.weights, str) else list(self.weights)
        sources = [{**source.describe(), "name": name} for name, source in self.sources.items()]
        return {"weights": weights, "sources": sources}


def unique_names(sources: Sequence[SampleSource]) -> list[str]:
    """The sources' names; of equal ones, the second is called "train-2"."""
    names: list[str] = []
    for source in sources:
        forms = chain([source.name], (f"{source.name}-{number}" for number in count(2)))
        names.append(next(form for form in forms if form not in names))
    return names


def check_weights(weights: Weights, sources: int) -> Weights:
    """The weights as they came. Raises UsageError unless they are "size", "equal", or one positive number a source."""
    if isinstance(weights, str):
        if weights not in ("size", "equal"):
            raise UsageError(f"weights {weights!r}: use size, equal, or one number a source, e.g. 1,1,2")
    elif len(weights) != sources:
        raise UsageError(f"{len(weights)} weights for {sources} sources: give one number for each, or size, or equal")
    elif not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"weights {list(weights)}: each must be greater than 0; leave a source out to switch it off")
    return weights
