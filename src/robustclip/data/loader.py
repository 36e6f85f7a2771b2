"""From a stream of samples to batches: decoded by worker processes, bad ones skipped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustclip import rng
from robustclip.data.batch import Batch
from robustclip.data.decoding import Preparation, Skip
from robustclip.data.mixture import Mixture
from robustclip.data.samples import Fault, Sample, positive_id, stable_number
from robustclip.errors import RunError, UsageError

CHUNK = 32  # samples a worker decodes at a time: enough that handing them over costs little beside decoding them


class Loader:
    """Batches of exactly `batch_size` usable pairs, without end; a batch may span two epochs.

    Samples are read in one place, in the mixture's order, and decoded in `workers` processes (0: in this one), which
    hand them back in that order: the batches are the same for any number of workers. What is random about a sample
    (crop, background, choice of caption) is keyed by seed, epoch and the sample's id.

    `faults` counts skipped samples by kind since `batches` was called, and `examples` names the first of each kind.
    """

    faults: Counter[str]

    def __init__(
        self, mixture: Mixture, preparation: Preparation, *, batch_size: int, seed: int = 0, workers: int = 0
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise UsageError(f"batch size {batch_size} (at least 1) and workers {workers} (at least 0) do not go")
        self.mixture = mixture
        self.preparation = preparation
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.faults = Counter()
        self.examples: dict[str, str] = {}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ...; the ones before are read and decoded too, since only that tells how many
        samples each took. Raises RunError where a whole epoch of a source held nothing usable."""
        self.faults.clear()
        self.examples.clear()
        return islice(self._batches(), start, None)

    def _batches(self) -> Iterator[Batch]:
        images: list[Tensor] = []
        pairs: list[Pair] = []
        for image, pair in self._usable():
            images.append(image)
            pairs.append(pair)
            if len(pairs) == self.batch_size:
                yield Batch(
                    torch.stack(images).float().div_(255),
                    [pair.caption for pair in pairs],
                    torch.tensor([pair.positive for pair in pairs]),
                    [pair.id for pair in pairs],
                )
                images, pairs = [], []

    def _usable(self) -> Iterator[tuple[UInt8[Tensor, "3 h w"], Pair]]:
        met: dict[str, Counter[str]] = {}  # of each source: faults by kind, and "usable"
        for image, pair in self._decoded():
            counts = met.setdefault(pair.source, Counter())
            if pair.epoch > 0 and not counts["usable"]:
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common() if count)
                raise RunError(f"empty data: none of the samples of {pair.source} can be used ({kinds})")
            if pair.fault is None:
                counts["usable"] += 1
                yield image, pair
            else:
                counts[pair.fault.value] += 1
                self.faults[pair.fault.value] += 1
                self.examples.setdefault(pair.fault.value, pair.id)

    def _decoded(self) -> Iterator[tuple[UInt8[Tensor, "3 h w"], Pair]]:
        # Encoded samples take the place of a sampler's indices: the loader sends each chunk to the next free worker
        # and returns the results in the order sent.
        stream = self.mixture.stream(self.seed)
        loader: DataLoader[tuple[Tensor, list[Pair]]] = DataLoader(
            Decoder(self.preparation, self.seed),
            sampler=iter(lambda: list(islice(stream, CHUNK)), []),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            generator=torch.Generator(),  # else its seed for the workers is drawn from the global one
        )
        for images, pairs in loader:
            yield from zip(images, pairs, strict=True)

    def report(self) -> str:
        """One line a kind of fault, with its count and the first sample that had it; empty where none was skipped."""
        return "\n".join(
            f"{count:,} skipped: {kind} (first: {self.examples[kind]})" for kind, count in self.faults.most_common()
        )

    def describe(self) -> dict[str, Any]:
        preparation = {
            "size": list(self.preparation.shape),
            "crop": self.preparation.crop,
            "scale": list(self.preparation.scale),
            "background": self.preparation.background,
        }
        return {**self.mixture.describe(), **preparation, "batch_size": self.batch_size, "seed": self.seed}


@dataclass(slots=True)
class Pair:
    """What is known of a sample after decoding, besides its picture; with a fault there is none."""

    id: str
    source: str
    epoch: int
    fault: Fault | None
    caption: str = ""
    positive: int = 0


class Decoder(Dataset[tuple[Tensor, list[Pair]]]):
    """What a worker does: decode a chunk of samples into one tensor, undefined where a sample has a fault."""

    def __init__(self, preparation: Preparation, seed: int) -> None:
        self.preparation = preparation
        self.seed = seed

    def __getitem__(self, samples: list[Sample]) -> tuple[UInt8[Tensor, "n 3 h w"], list[Pair]]:
        images = torch.empty(len(samples), 3, *self.preparation.shape, dtype=torch.uint8)
        pairs = [Pair(sample.id, sample.source, sample.epoch, sample.fault) for sample in samples]
        for sample, pair, image in zip(samples, pairs, images, strict=True):
            if sample.fault is not None:
                continue
            generator = rng.generator(self.seed, "augmentation", sample.epoch, stable_number(sample.id))
            pair.caption = sample.captions[int(torch.randint(len(sample.captions), (), generator=generator))]
            pair.positive = positive_id(concept=sample.concept, caption=pair.caption)
            try:
                image.copy_(self.preparation(sample.image, generator))
            except Skip as skip:
                pair.fault = skip.fault
        return images, pairs


def _as_it_is(chunk: Any) -> Any:
    return chunk
