"""Mixture of several data sources: an endless, resumable stream of samples for one process, drawn by weights."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain, count
from typing import Any, Literal, Self

import torch

from robustclip.data.samples import Sample, SampleSource, stable_number
from robustclip.errors import RunError, UsageError
from robustclip.runs import rng
from robustclip.runs.processes import ALONE, Place


class Share:
    """One process's samples of an epoch of a source: the rest of them after `taken` samples of the round.

    `keep` has triples (low, high, of): of samples hashed to numbers below `of`, only those from low to below high are
    taken, so that several processes share what another left (`redealt_stream`).
    """

    def __init__(
        self,
        source: SampleSource,
        seed: int,
        place: Place,
        at: Sequence[int] = (0, 0, 0),
        keep: Sequence[Sequence[int]] = (),
    ) -> None:
        self.source, self.seed, self.place, self.keep = source, seed, place, keep
        self.epoch, self.round, self.taken = at
        self._samples: Iterator[Sample] | None = None

    @property
    def at(self) -> list[int]:
        """Epoch, round, and samples taken of the round."""
        return [self.epoch, self.round, self.taken]

    def state(self) -> dict[str, Any]:
        return {"place": [self.place.rank, self.place.world_size], "at": self.at, "keep": list(self.keep)}

    def take(self) -> Sample | None:
        """The next sample; None at the end."""
        if self._samples is None:
            self._samples = self.source.epoch(self.seed, self.epoch, self.place, self.round)
            for _ in range(self.taken):  # read, but not decoded
                next(self._samples, None)
        for sample in self._samples:
            if sample.round != self.round:
                self.round, self.taken = sample.round, 0
            self.taken += 1
            if self._kept(sample):
                return sample
        return None

    def _kept(self, sample: Sample) -> bool:
        return all(
            low <= stable_number(f"{level} dealt {sample.key}") % of < high
            for level, (low, high, of) in enumerate(self.keep)
        )


class Cursor:
    """Position in one source's endless samples: what is `left` of former processes' shares, then epochs of this
    process's own, from `at` on."""

    def __init__(
        self,
        name: str,
        source: SampleSource,
        seed: int,
        place: Place,
        at: Sequence[int] = (0, 0, 0),
        left: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.name, self.source, self.seed, self.place = name, source, seed, place
        former = [Share(source, seed, Place(*one["place"]), one["at"], one["keep"]) for one in left]
        self.shares = [*former, Share(source, seed, place, at)]
        self._empty_epochs = 0

    @property
    def epoch(self) -> int:
        """The epoch of the next sample."""
        return self.shares[0].epoch

    def take(self) -> Sample | None:
        """The next sample; None once at the end of each epoch. Raises RunError if the source has none."""
        share, *others = self.shares
        if (sample := share.take()) is not None:
            return replace(sample, source=self.name, epoch=share.epoch)
        if others:
            self.shares = others
            return self.take() if len(others) > 1 else None  # the last former share ends its epoch
        self._empty_epochs = self._empty_epochs + 1 if share.round == share.taken == 0 else 0
        # Fewer samples than processes leave some processes none, and an empty shard the one that draws it.
        empty = self._empty_epochs >= self.place.world_size
        if empty and next(self.source.epoch(self.seed, share.epoch), None) is None:
            message = f"empty data: {self.name} contains no samples ({self.source.describe()})"
            raise RunError(message, "no_samples", source=self.name)
        self.shares = [Share(self.source, self.seed, self.place, (share.epoch + 1, 0, 0))]
        return None


class WeightedChoice:
    """Weighted random choices; the n-th is a function of seed, process and n."""

    BLOCK = 4096

    def __init__(self, seed: int, place: Place, draws: int = 0) -> None:
        self.seed, self.place, self.draws = seed, place, draws
        self._block, self._numbers = -1, [0.0]

    def choose(self, names: Sequence[str], odds: Sequence[float]) -> str:
        block, place = divmod(self.draws, self.BLOCK)
        if block != self._block:
            stream = rng.generator(self.seed, "mixture", self.place.rank, block)
            self._block = block
            self._numbers = torch.rand(self.BLOCK, generator=stream, dtype=torch.float64).tolist()
        self.draws += 1
        *bounds, total = accumulate(odds)
        return names[bisect(bounds, self._numbers[place] * total)]


class Drawn(Iterator[Sample]):
    """Each sample from a source chosen by `odds`; each source goes through its own epochs."""

    def __init__(
        self, sources: Mapping[str, SampleSource], odds: Sequence[float], seed: int, place: Place, state: dict[str, Any]
    ) -> None:
        self.odds = odds
        self.choice = WeightedChoice(seed, place, state.get("draws", 0))
        at, left = state.get("sources", {}), state.get("shares", {})
        self.cursors = {
            name: Cursor(name, source, seed, place, at.get(name, (0, 0, 0)), left.get(name, ()))
            for name, source in sources.items()
        }

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Sample:
        cursor = self.cursors[self.choice.choose(list(self.cursors), self.odds)]
        while (sample := cursor.take()) is None:
            pass
        return sample

    def state(self) -> dict[str, Any]:
        """The stream's position in JSON's types, which the constructor takes."""
        own = {name: cursor.shares[-1].at for name, cursor in self.cursors.items()}
        former = {name: [one.state() for one in cursor.shares[:-1]] for name, cursor in self.cursors.items()}
        return {"draws": self.choice.draws, "sources": own, "shares": {n: left for n, left in former.items() if left}}


class Concatenated(Drawn):
    """Every sample of every source once per epoch. Each draw is proportional to the samples left, so that sources end
    together; one whose size was underestimated is drawn from until it is exhausted."""

    def __init__(self, sources: Mapping[str, SampleSource], seed: int, place: Place, state: dict[str, Any]) -> None:
        super().__init__(sources, (), seed, place, state)
        counted = state.get("sizes") or {name: source.size() for name, source in sources.items()}
        self.sizes: dict[str, int] = counted
        self.left: dict[str, int] = dict(state.get("left", {}))
        self.world_size = place.world_size

    def __next__(self) -> Sample:
        while True:
            if not self.left:
                self.left = {name: size // self.world_size for name, size in self.sizes.items()}
            name = self.choice.choose(list(self.left), [max(1, number) for number in self.left.values()])
            sample = self.cursors[name].take()
            if sample is not None:
                self.left[name] -= 1
                return sample
            del self.left[name]

    def state(self) -> dict[str, Any]:
        return {**super().state(), "sizes": self.sizes, "left": dict(self.left)}


def redealt_stream(streams: Sequence[tuple[Place, Mapping[str, Any]]], place: Place) -> dict[str, Any]:
    """State in which the process at `place` continues streams of another number of processes, given with their places.

    Of each source all processes first share what the former ones left of the epochs that any of them had begun, so that
    every sample is met once in these too; the next epoch is dealt as usual. Of n former shares a process reads only
    those from n * rank / world_size to n * (rank + 1) / world_size, the first and last of them in part.
    """
    world, first = place.world_size, streams[0][1]
    own: dict[str, list[int]] = {}
    shares: dict[str, list[dict[str, Any]]] = {}
    for name in first["sources"]:
        ats = [stream["sources"][name] for _, stream in streams]
        begun = max(epoch if done or taken else epoch - 1 for epoch, done, taken in ats)
        own[name] = [begun + 1, 0, 0]
        left: list[dict[str, Any]] = []
        for (former, stream), at in zip(streams, ats, strict=True):
            starts = [at if epoch == at[0] else [epoch, 0, 0] for epoch in range(at[0], begun + 1)]
            left += stream.get("shares", {}).get(name, [])
            left += [{"place": [former.rank, former.world_size], "at": start, "keep": []} for start in starts]
        dealt = []
        for number, share in enumerate(left):
            low = max(0, len(left) * place.rank - world * number)
            high = min(world, len(left) * (place.rank + 1) - world * number)
            if low < high:
                part = [] if high - low == world else [[low, high, world]]
                dealt.append(share | {"keep": [*share["keep"], *part]})
        if dealt:
            shares[name] = sorted(dealt, key=lambda share: share["at"][0])
    state = {"draws": max(stream["draws"] for _, stream in streams), "sources": own, "shares": shares}
    if "sizes" in first:  # concatenated: sources of which nothing is left wait for the others
        left_of_epoch = {name: first["sizes"][name] // world for name in shares}
        state |= {"sizes": first["sizes"], "left": left_of_epoch}
    return state


Weights = Literal["size", "equal"] | Sequence[float]


class Mixture:
    """Samples of several sources, chosen by `weights`; a function of the seed.

    "size"   every sample of every source once per epoch: the sources concatenated and shuffled (CLIPAG App. A.1,
             "without resampling").
    "equal"  each source with the same probability (CLIPAG §3), so small sources repeat more often.
    1, 1, 2  each source with these odds.

    In the last two each source goes through its own epochs. Raises UsageError for weights that do not fit the sources.
    """

    def __init__(self, sources: Sequence[SampleSource], weights: Weights = "size") -> None:
        self.sources = dict(zip(unique_names(sources), sources, strict=True))
        self.weights = check_weights(weights, len(sources))

    def stream(self, seed: int, place: Place = ALONE, state: dict[str, Any] | None = None) -> Drawn:
        """This process's endless samples, from `state` on if given. Raises RunError if a source is empty."""
        if len(self.sources) > 1 and self.weights == "size":
            return Concatenated(self.sources, seed, place, state or {})
        odds = [1.0] * len(self.sources) if isinstance(self.weights, str) else list(self.weights)
        return Drawn(self.sources, odds, seed, place, state or {})

    def describe(self) -> dict[str, Any]:
        weights = self.weights if isinstance(self.weights, str) else list(self.weights)
        sources = [{**source.describe(), "name": name} for name, source in self.sources.items()]
        return {"weights": weights, "sources": sources}


def unique_names(sources: Sequence[SampleSource]) -> list[str]:
    """The sources' names; duplicates are numbered: "train-2"."""
    names: list[str] = []
    for source in sources:
        forms = chain([source.name], (f"{source.name}-{number}" for number in count(2)))
        names.append(next(form for form in forms if form not in names))
    return names


def check_weights(weights: Weights, sources: int) -> Weights:
    """Return the weights. Raises UsageError unless they are "size", "equal", or one positive number per source."""
    if isinstance(weights, str):
        if weights not in ("size", "equal"):
            message = f"weights {weights!r}: use size, equal, or one number a source, e.g. 1,1,2"
            raise UsageError(message, "unknown_choice", argument="weights", given=weights)
    elif len(weights) != sources:
        message = f"{len(weights)} weights for {sources} sources: give one number for each, or size, or equal"
        raise UsageError(message, "unequal_counts", weights=len(weights), sources=sources)
    elif not all(math.isfinite(weight) and weight > 0 for weight in weights):
        message = f"weights {list(weights)}: each must be greater than 0; leave out unused sources"
        raise UsageError(message, "not_positive", argument="weights", given=list(weights))
    return weights
