"""Batches of captions for the training of text towers: the sources of `open_data`, whose pictures are not decoded, and
text files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from robustclip.data.loader import JUDGED_FROM
from robustclip.data.mixture import Drawn, Mixture
from robustclip.data.samples import Sample, readable, stable_number
from robustclip.data.sources import open_each, open_source, split_data, weighted
from robustclip.data.tables import shuffled
from robustclip.errors import Fault, RunError, UsageError, raise_faults
from robustclip.runs.files import expand_home, read_lines
from robustclip.runs.processes import ALONE, Place
from robustclip.runs.rng import generator


class CaptionFile:
    """The lines of a UTF-8 text file, one caption each; empty lines are left out. Raises UsageError if all are."""

    def __init__(self, file: Path) -> None:
        self.file, self.name = file, file.stem
        lines = [(number, readable(line)) for number, line in enumerate(read_lines(file), 1)]
        self.samples = [Sample(f"line-{number}", captions=(line,)) for number, line in lines if line]
        if not self.samples:
            raise UsageError(f"{file} contains no captions: write one a line", "no_captions", path=file)

    def epoch(self, seed: int, epoch: int, place: Place = ALONE, first_round: int = 0) -> Iterator[Sample]:
        return shuffled(self.samples, self.size(), seed, self.name, epoch, place)

    def size(self) -> int:
        return len(self.samples)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "kind": "captions", "file": str(self.file), "samples": len(self.samples)}


@dataclass(frozen=True)
class Captions:
    """B captions, the ids of their samples, and where this process's next batch begins (in JSON's types)."""

    texts: list[str]
    ids: list[str]
    position: dict[str, Any]


class CaptionBatches:
    """Batches of this process's share of `batch_size` captions, without end; of a sample's captions each epoch draws
    one. Samples without a caption are skipped and counted in `faults`."""

    def __init__(self, mixture: Mixture, batch_size: int, *, seed: int = 0, place: Place = ALONE) -> None:
        self.mixture, self.batch_size, self.seed, self.place = mixture, batch_size, seed, place
        self.share = place.share(batch_size)
        self.faults: Counter[str] = Counter()

    def batches(self, position: dict[str, Any] | None = None) -> Iterator[Captions]:
        """The batches, from a batch's `position` on if given. Raises RunError if a source's whole epoch has no caption,
        UsageError for a position of other data."""
        at = position or {"stream": {}, "faults": {}, "used": []}
        names = set(self.mixture.sources)
        if position and (set(at["stream"]["sources"]) != names or at["place"][1] != self.place.world_size):
            raise UsageError("the position in the captions is one in other data: resume with the same", "other_data")
        self.faults = Counter(at.get("faults", {}))
        return self._batches(self.mixture.stream(self.seed, self.place, at["stream"]), set(at.get("used", names)))

    def _batches(self, stream: Drawn, used: set[str]) -> Iterator[Captions]:
        texts: list[str] = []
        ids: list[str] = []
        for sample in stream:
            if sample.fault is not None or not sample.captions:
                self.faults[(sample.fault or Fault.NO_CAPTION).value] += 1  # plain text, which checkpoints hold
                judged = self.place == ALONE or self.faults.total() >= JUDGED_FROM  # a share may be one bad sample
                if sample.epoch > 0 and judged and sample.source not in used:
                    message = f"empty data: none of the samples of {sample.source} has a caption"
                    raise RunError(message, "empty_data", source=sample.source)
                continue
            used.add(sample.source)
            draw = generator(self.seed, "caption", sample.epoch, stable_number(sample.id))
            texts.append(sample.captions[int(torch.randint(len(sample.captions), (), generator=draw))])
            ids.append(sample.id)
            if len(texts) == self.share:
                yield Captions(texts, ids, self._position(stream.state(), used))
                texts, ids = [], []

    def _position(self, stream: dict[str, Any], used: set[str]) -> dict[str, Any]:
        # as of a Loader, so that `redealt` gives it to another number of processes
        place = [self.place.rank, self.place.world_size]
        known = {"faults": dict(self.faults), "used": sorted(used)}
        return {"place": place, "stream": stream, "taken": 0, "met": {}, "examples": {}, **known}

    def describe(self) -> dict[str, Any]:
        """Description of the data for the run record, in JSON's types."""
        return {**self.mixture.describe(), "batch_size": self.batch_size, "seed": self.seed}


def open_captions(
    data: Sequence[str],
    *,
    batch_size: int,
    seed: int = 0,
    place: Place = ALONE,
    templates: Sequence[str] = ("a photo of a {}.",),
    **options: Any,
) -> CaptionBatches:
    """Captions of one or several sources, each as in `open_data`, or a .txt file with one caption a line; several as
    SOURCE=WEIGHT. `options` are those of `open_source`. Raises one UsageError that lists every fault."""
    parts, weights = weighted(split_data(data))
    sources, faults = open_each(
        partial(CaptionFile, expand_home(part))
        if expand_home(part).suffix.lower() == ".txt"
        else partial(open_source, part, templates=templates, **options)
        for part in parts
    )
    raise_faults("open_captions()", faults)
    return CaptionBatches(Mixture(sources, weights or "size"), batch_size, seed=seed, place=place)
