"""Batches from a stream of samples: decoded by worker processes; broken samples are skipped and counted."""

from __future__ import annotations

import atexit
import math
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustclip.data.images import MAX_PIXELS, decode
from robustclip.data.mixture import Drawn, Mixture, redealt_stream
from robustclip.data.samples import Batch, Sample, positive_id, stable_number
from robustclip.errors import Fault, RunError, Skip, UsageError
from robustclip.runs import rng
from robustclip.runs.processes import ALONE, Place

BICUBIC = Image.Resampling.BICUBIC
RATIO = (3 / 4, 4 / 3)  # of width to height, Inception's range, as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Preparation:
    """Crop, resize and background of pictures; `size` is (height, width) or one number for a square.

    crop        "random": a crop of `scale` of the area and a ratio of 3:4 to 4:3, resized; "center": the shorter side
                resized, the middle kept (CLIP's evaluation transform).
    scale       (0.9, 1.0) is open_clip's for training; CLIPAG's text names no augmentation.
    background  behind transparent pictures: "white", or a "random" colour per sample.

    Resizing is bicubic and antialiased, as in CLIP. Raises UsageError for values outside their ranges.
    """

    size: int | tuple[int, int]
    crop: Literal["random", "center"] = "random"
    scale: tuple[float, float] = (0.9, 1.0)
    background: Literal["white", "random"] = "white"

    def __post_init__(self) -> None:
        faults = []
        if min(self.shape) < 1:
            faults.append(UsageError(f"size {self.size}: give pixels, e.g. 224", "not_a_size", size=self.size))
        if self.crop not in ("random", "center"):
            faults.append(
                UsageError(f"crop {self.crop!r}: use 'random' or 'center'", "unknown_choice", argument="crop")
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            message = f"scale {self.scale}: give two shares of the area, e.g. (0.9, 1.0)"
            faults.append(UsageError(message, "not_a_range", argument="scale"))
        if self.background not in ("white", "random"):
            message = f"background {self.background!r}: use 'white' or 'random'"
            faults.append(UsageError(message, "unknown_choice", argument="background"))
        if faults:
            raise UsageError("\n".join(map(str, faults)), "faults", faults=faults)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(
        self, encoded: bytes | Path, generator: torch.Generator, remarks: Counter[str] | None = None
    ) -> UInt8[Tensor, "3 h w"]:
        """The prepared picture. Raises Skip where there is none; `remarks` as in `images.decode`."""
        colour = (255, 255, 255)
        if self.background == "random":
            red, green, blue = torch.randint(256, (3,), generator=generator).tolist()
            colour = (red, green, blue)
        picture = decode(encoded, colour, remarks)
        if self.crop == "center":
            return pixels(center_crop(picture, self.shape))
        box = random_box(picture.height, picture.width, self.scale, generator)
        return pixels(picture.crop(box).resize(self.shape[::-1], BICUBIC))


def center_crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the shorter side to `size` (height, width) and centre-crop: pixel-equal to torchvision's Resize and
    CenterCrop, CLIP's evaluation transform.

    Raises Skip for an aspect ratio at which the resized picture would exceed MAX_PIXELS.
    """
    height, width = size
    if picture.width * height < picture.height * width:  # too tall
        tall, wide = max(height, int(width * picture.height / picture.width)), width
    else:
        tall, wide = height, max(width, int(height * picture.width / picture.height))
    if tall * wide > MAX_PIXELS:
        raise Skip(Fault.TOO_LARGE)
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    return picture.resize((wide, tall), BICUBIC).crop((left, top, left + width, top + height))


def random_box(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop, drawn as by torchvision's RandomResizedCrop, which takes no generator.

    Falls back to the largest central crop of an allowed ratio after ten draws.
    """
    shares = torch.empty(10).uniform_(*scale, generator=generator).tolist()
    ratios = torch.empty(10).uniform_(math.log(RATIO[0]), math.log(RATIO[1]), generator=generator).exp().tolist()
    for share, ratio in zip(shares, ratios, strict=True):
        w = round(math.sqrt(height * width * share * ratio))
        h = round(math.sqrt(height * width * share / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(width - w + 1, (), generator=generator))
            top = int(torch.randint(height - h + 1, (), generator=generator))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * RATIO[1])))
    h = max(1, min(height, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def pixels(picture: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """An RGB picture as a tensor of its 8-bit values."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


CHUNK = 32  # samples a worker decodes at a time, so that the transfer costs little beside the decoding
JUDGED_FROM = 100  # samples of a source before its share of faults can be an error
USABLE = "usable"
POSITION = {"place", "stream", "taken", "met", "examples"}

Chunk = tuple[list[Sample], dict[str, Any]]  # samples, and the state of the stream before them
Decoded = tuple[UInt8[Tensor, "n 3 h w"], list[Sample], dict[str, Any]]
"""A decoded chunk; its samples have no bytes and one caption. Pictures of samples with a fault are undefined."""


class Loader:
    """Batches of exactly `batch_size` usable pairs, without end; a batch may span two epochs. Their images are uint8
    (see `Batch.to`).

    Samples are read in this process, in the mixture's order, and decoded in `workers` processes (0: in this one), which
    return them in that order, so batches do not depend on the number of workers. The randomness of a sample (crop,
    background, choice of caption) is keyed by seed, epoch and the sample's id.

    With several processes, `place` selects this one's share of each batch; together they yield every sample once per
    epoch. They do not wait for each other, so one with fewer samples starts its next epoch earlier.

    `faults` counts skipped samples by kind, `remarks` irregularities of used samples; `examples` names the first sample
    of each kind. All are saved in a batch's `position`. If more than `max_skipped` of all samples are skipped (None: no
    limit), `batches` raises RunError.
    """

    faults: Counter[str]

    def __init__(
        self,
        mixture: Mixture,
        preparation: Preparation,
        *,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        place: Place = ALONE,
        max_skipped: float | None = None,
    ) -> None:
        if workers < 0:
            message = f"workers {workers}: give at least 0, which decodes in the main process"
            raise UsageError(message, "out_of_range", argument="workers", given=workers)
        if max_skipped is not None and not 0 <= max_skipped <= 1:
            message = f"max_skipped {max_skipped}: give a share of the samples from 0 to 1, e.g. 0.05"
            raise UsageError(message, "out_of_range", argument="max_skipped", given=max_skipped)
        self.share = place.share(batch_size)
        self.mixture = mixture
        self.preparation = preparation
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.place = place
        self.max_skipped = max_skipped
        self.faults = Counter()
        self.remarks: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.met: dict[str, Counter[str]] = {}  # of each source: samples usable, and skipped by kind

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... With `position`, nothing before it is decoded, and of each source only the
        current round is read again. Without it, the batches before `start` are made and discarded, since how many
        samples each takes is unknown.

        Raises RunError if a whole epoch of a source has no usable sample, or too many are skipped; UsageError for a
        position of other data or another process.
        """
        at = self._check(position) if position else {}
        self.met = {name: Counter(counts) for name, counts in at.get("met", {}).items()}
        self.examples = dict(at.get("examples", {}))
        self.faults.clear()
        self.faults.update(sum(self.met.values(), Counter()))
        del self.faults[USABLE]
        self.remarks = Counter(at.get("remarks", {}))
        stream = self.mixture.stream(self.seed, self.place, at.get("stream"))
        for _ in range(at.get("taken", 0)):
            next(stream)
        return islice(self._batches(stream), 0 if position else start, None)

    def _check(self, position: dict[str, Any]) -> dict[str, Any]:
        if not position.keys() >= POSITION:
            raise UsageError(
                "the position in the data is not one that this version wrote: start a new run", "not_a_position"
            )
        ours = [self.place.rank, self.place.world_size]
        if position["place"] != ours:
            raise UsageError(
                "the position in the data is that of process {} of {}, and this is process {} of {}: continue each "
                "process from its own, or give those of all processes to `redealt`".format(*position["place"], *ours),
                "other_process",
                theirs=position["place"],
                ours=ours,
            )
        if set(position["stream"]["sources"]) != set(self.mixture.sources):
            raise UsageError(
                f"the position in the data is one in {', '.join(position['stream']['sources'])}, and the data are now "
                f"{', '.join(self.mixture.sources)}: resume with the same",
                "other_data",
                theirs=[*position["stream"]["sources"]],
                ours=[*self.mixture.sources],
            )
        return position

    def _batches(self, stream: Drawn) -> Iterator[Batch]:
        images: list[Tensor] = []
        samples: list[Sample] = []
        for decoded, chunk, state in self._decoded(stream):
            for taken, (image, sample) in enumerate(zip(decoded, chunk, strict=True), 1):
                if not self._usable(sample):
                    continue
                images.append(image)
                samples.append(sample)
                if len(samples) == self.share:
                    captions = [sample.captions[0] for sample in samples]
                    yield Batch(
                        torch.stack(images),
                        captions,
                        torch.tensor(
                            [
                                positive_id(concept=sample.concept, caption=caption)
                                for sample, caption in zip(samples, captions, strict=True)
                            ]
                        ),
                        [sample.id for sample in samples],
                        self._position(state, taken),
                    )
                    images, samples = [], []

    def _position(self, state: dict[str, Any], taken: int) -> dict[str, Any]:
        """The position after `taken` samples of the chunk that began at this state of the stream."""
        met = {name: dict(counts) for name, counts in self.met.items()}
        place = [self.place.rank, self.place.world_size]
        reported = {"examples": dict(self.examples), "remarks": dict(self.remarks)}
        return {"place": place, "stream": state, "taken": taken, "met": met, **reported}

    def _usable(self, sample: Sample) -> bool:
        counts = self.met.setdefault(sample.source, Counter())
        judged = self.place == ALONE or counts.total() >= JUDGED_FROM  # a share may be one sample, and that a bad one
        if sample.epoch > 0 and judged and not counts[USABLE]:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common() if count)
            message = f"empty data: none of the samples of {sample.source} is usable ({kinds})"
            raise RunError(message, "empty_data", source=sample.source, skipped=dict(counts))
        if sample.fault is None:
            counts[USABLE] += 1
            for remark in sample.remarks:
                self.remarks[remark] += 1
                self.examples.setdefault(remark, sample.id)
            return True
        counts[sample.fault.value] += 1
        self.faults[sample.fault.value] += 1
        self.examples.setdefault(sample.fault.value, sample.id)
        skipped, total = self.faults.total(), sum(one.total() for one in self.met.values())
        if self.max_skipped is not None and total >= JUDGED_FROM and skipped > self.max_skipped * total:
            raise RunError(
                f"{skipped:,} of {total:,} samples ({skipped / total:.1%}) cannot be used, more than the "
                f"{self.max_skipped:.1%} that --max-skipped allows:\n{self.report()}",
                "too_many_skipped",
                skipped=skipped,
                total=total,
            )
        return False

    def _decoded(self, stream: Drawn) -> Iterator[Decoded]:
        # Encoded samples take the place of a sampler's indices: the loader sends each chunk to the next free worker
        # and returns the results in the order sent.
        def chunks() -> Iterator[Chunk]:
            while True:
                state = stream.state()
                yield list(islice(stream, CHUNK)), state

        loader: DataLoader[Decoded] = DataLoader(
            Decoder(self.preparation, self.seed),
            sampler=chunks(),
            batch_size=None,
            collate_fn=_identity,
            num_workers=self.workers,
            generator=torch.Generator(),  # else the workers' seed is drawn from the global generator
            worker_init_fn=_leave_signals_to_the_main_process,
        )
        running = [iter(loader)]
        atexit.register(running.clear)  # ends the workers, for which multiprocessing would wait
        try:
            while True:
                yield next(running[0])
        finally:
            atexit.unregister(running.clear)
            running.clear()

    def report(self) -> str:
        """One line per kind of fault or remark, with its count and first sample; empty if there were none."""
        lines = [f"{count:,} skipped: {kind}" for kind, count in self.faults.most_common()]
        lines += [f"{count:,} used: {kind}" for kind, count in self.remarks.most_common()]
        return "\n".join(f"{line} (first: {self.examples[line.split(': ', 1)[1]]})" for line in lines)

    def describe(self) -> dict[str, Any]:
        preparation = {
            "size": list(self.preparation.shape),
            "crop": self.preparation.crop,
            "scale": list(self.preparation.scale),
            "background": self.preparation.background,
        }
        odd = {"odd_samples": dict(self.remarks)} if self.remarks else {}
        return {**self.mixture.describe(), **preparation, "batch_size": self.batch_size, "seed": self.seed, **odd}


def redealt(positions: Sequence[dict[str, Any]], place: Place) -> dict[str, Any]:
    """Position from which the process at `place` continues the run of another number of processes, whose `positions`
    these are; for the samples see `redealt_stream`.

    At most `CHUNK` samples of each former process, the last that it met, come once more; none is left out. Counts of
    skipped samples go to the first process.
    """
    if not all(position.keys() >= POSITION for position in positions):
        return dict(positions[0])  # which `Loader.batches` refuses
    stream = redealt_stream([(Place(*position["place"]), position["stream"]) for position in positions], place)
    met: dict[str, Counter[str]] = {}
    remarks: Counter[str] = Counter()
    faults: Counter[str] = Counter()  # of captions, which are not counted by source
    for position in positions if place.rank == 0 else []:
        remarks.update(position.get("remarks", {}))
        faults.update(position.get("faults", {}))
        for name, counts in position["met"].items():
            met.setdefault(name, Counter()).update(counts)
    return {
        "place": [place.rank, place.world_size],
        "stream": stream,
        "taken": 0,
        "met": {name: dict(counts) for name, counts in met.items()},
        "examples": {kind: sample for position in reversed(positions) for kind, sample in position["examples"].items()},
        "remarks": dict(remarks),
        "faults": dict(faults),
    }


class Decoder(Dataset[Decoded]):
    """Dataset of the workers: decodes a chunk of samples."""

    def __init__(self, preparation: Preparation, seed: int) -> None:
        self.preparation = preparation
        self.seed = seed

    def __getitem__(self, chunk: Chunk) -> Decoded:
        samples, state = chunk
        images = torch.empty(len(samples), 3, *self.preparation.shape, dtype=torch.uint8)
        return images, [self._decode(sample, image) for sample, image in zip(samples, images, strict=True)], state

    def _decode(self, sample: Sample, image: UInt8[Tensor, "3 h w"]) -> Sample:
        """Decode into `image`; the sample without its bytes, with one caption, and with the picture's fault or
        remarks."""
        if sample.fault is not None:
            return replace(sample, image=b"")
        generator = rng.generator(self.seed, "augmentation", sample.epoch, stable_number(sample.id))
        caption = sample.captions[int(torch.randint(len(sample.captions), (), generator=generator))]
        remarks: Counter[str] = Counter()
        fault = None
        try:
            image.copy_(self.preparation(sample.image, generator, remarks))
        except Skip as skip:
            fault, remarks = skip.fault, Counter()
        return replace(sample, image=b"", captions=(caption,), fault=fault, remarks=tuple(remarks))


def _identity(chunk: Any) -> Any:
    return chunk


def _leave_signals_to_the_main_process(worker: int) -> None:  # noqa: ARG001
    """Ignore Ctrl-C and a first SIGTERM, which reach the workers too, so that the main process can finish its step and
    write a checkpoint. A second SIGTERM ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
