"""Several sources as one endless stream of samples."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any, Literal

from robustclip import rng
from robustclip.data.samples import Sample, SampleSource
from robustclip.errors import RunError, UsageError

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

    def stream(self, seed: int) -> Iterator[Sample]:
        """Samples without end. Raises RunError where a source turns out to be empty."""
        if self.weights == "size":
            return self._concatenated(seed)
        return self._drawn(seed, [1.0] * len(self.sources) if self.weights == "equal" else list(self.weights))

    def _drawn(self, seed: int, odds: Sequence[float]) -> Iterator[Sample]:
        draw = random.Random(rng.generator(seed, "mixture").initial_seed())
        streams = [epochs(name, source, seed) for name, source in self.sources.items()]
        while True:
            yield next(draw.choices(streams, odds)[0])

    def _concatenated(self, seed: int) -> Iterator[Sample]:
        """Each draw is in proportion to what the sources have left, so that they end together. A source that was
        taken for smaller than it is stays in play until it is read out."""
        if len(self.sources) == 1:
            return (yield from epochs(*next(iter(self.sources.items())), seed))
        sizes = {name: source.size() for name, source in self.sources.items()}
        epoch = 0
        while True:
            draw = random.Random(rng.generator(seed, "mixture", epoch).initial_seed())
            streams = {name: one_epoch(name, source, seed, epoch) for name, source in self.sources.items()}
            left = dict(sizes)
            while left:
                name = draw.choices(list(left), [max(1, number) for number in left.values()])[0]
                sample = next(streams[name], None)
                if sample is None:
                    del left[name]
                else:
                    left[name] -= 1
                    yield sample
            epoch += 1

    def describe(self) -> dict[str, Any]:
        weights = self.weights if isinstance(self.weights, str) else list(self.weights)
        sources = [{**source.describe(), "name": name} for name, source in self.sources.items()]
        return {"weights": weights, "sources": sources}


def one_epoch(name: str, source: SampleSource, seed: int, epoch: int) -> Iterator[Sample]:
    """The source's samples of an epoch, marked as such. Raises RunError where there are none."""
    empty = True
    for sample in source.epoch(seed, epoch):
        empty = False
        yield replace(sample, source=name, epoch=epoch)
    if empty:
        raise RunError(f"empty data: {name} holds no samples ({source.describe()})")


def epochs(name: str, source: SampleSource, seed: int) -> Iterator[Sample]:
    """The source's epochs, one after another without end."""
    return chain.from_iterable(one_epoch(name, source, seed, epoch) for epoch in count())


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
