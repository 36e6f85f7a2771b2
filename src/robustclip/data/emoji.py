"""The embedded drawings, read from the shards of robustclip-emoji: two data sets with the same splits.

- emoji: eight drawing styles of 1,631 concepts at 64x64.
- icons: the same and further concepts in more styles, at 96x96.

Splits (see DATA_CARD.md beside the shards):

- guide-styles: training set of guides: their styles without the held-out concepts.
- unseen-styles: test set of guides: twemoji and openmoji without the held-out concepts.
- unseen-train: training set of the disjoint judge: the images of unseen-styles, and of icons also the styles that only
  judges train on.
- heldout-concepts: all styles of the concepts that no referee is trained on.
- judge-train: all styles, without the held-out concepts and the images held back from the judge.
- judge-heldback: two images (one guide style, one unseen) of each of the judge's 200 labels.

Beside them the embedded prompts, and the drawings that they describe.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from robustclip.data import embedded
from robustclip.data.images import from_pil
from robustclip.errors import RunError, UsageError


@dataclass(frozen=True, repr=False)
class Labels:
    """Metadata of N images.

    labels: (N,) int64 indices into `label_names`; label_names: every label of the data set, also those that no image
    here has; captions: for each image, one or more texts that describe it; ids: unique names; styles: the drawing
    style (or source) of each image.
    """

    labels: Int64[Tensor, " n"]
    label_names: list[str]
    captions: list[list[str]]
    ids: list[str]
    styles: list[str]

    def __post_init__(self) -> None:
        lengths = {len(self.labels), len(self.captions), len(self.ids), len(self.styles)}
        if len(lengths) != 1:
            raise ValueError(f"labels, captions, ids and styles differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} images, {len(self.label_names)} label names>"


@dataclass(frozen=True, repr=False)
class LabelledImages(Labels):
    """N images (N, 3, H, W), float32 in [0,1], with their metadata."""

    images: Float[Tensor, "n 3 h w"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels")

    def subset(self, indices: Int64[Tensor, " m"] | list[int]) -> LabelledImages:
        """The images at `indices`, in that order; `label_names` stay whole."""
        index = torch.as_tensor(indices, dtype=torch.long)
        rows = index.tolist()
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            captions=[self.captions[row] for row in rows],
            ids=[self.ids[row] for row in rows],
            styles=[self.styles[row] for row in rows],
        )

    def sample(self, n: int, generator: torch.Generator) -> LabelledImages:
        """`n` different images drawn without replacement, kept in their order here; all of them if there are fewer."""
        drawn = torch.randperm(len(self), generator=generator)[:n]
        return self.subset(drawn.sort().values)

    @classmethod
    def joined(cls, parts: Sequence[LabelledImages]) -> LabelledImages:
        """Concatenate the images of all parts. Raises ValueError unless they have the same label names."""
        names = parts[0].label_names
        if any(part.label_names != names for part in parts):
            raise ValueError("the parts number their labels differently")
        return cls(
            images=torch.cat([part.images for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            label_names=names,
            captions=[caption for part in parts for caption in part.captions],
            ids=[one for part in parts for one in part.ids],
            styles=[style for part in parts for style in part.styles],
        )


SIZES: Final = {"emoji": 64, "icons": 96}
"""Pixels of a side, by data set."""
SPLITS = ("guide-styles", "unseen-styles", "unseen-train", "heldout-concepts", "judge-train", "judge-heldback")


@dataclass(frozen=True)
class Sample:
    """One drawing of a shard: WebP bytes with alpha, and metadata."""

    id: str
    concept: str
    style: str
    captions: list[str]
    webp: bytes


@cache
def label_index(dataset: str = "emoji") -> tuple[list[str], dict[str, int]]:
    """(names of all labels in their fixed order, {concept id: position})."""
    records = label_records(dataset)
    return [record["label"] for record in records], {record["id"]: i for i, record in enumerate(records)}


@cache
def label_records(dataset: str) -> list[dict[str, Any]]:
    """Records of labels.json: id, label, group, keywords per concept; for icons also the label with its article.

    Raises UsageError if the set is not installed: the wheel of robustclip-emoji has no icons yet.
    """
    file = embedded.path(dataset, "labels.json")
    if not file.is_file():
        message = f"the {dataset} set is not in the installed robustclip-emoji: work in a checkout of robustclip"
        raise UsageError(message, "not_installed", dataset=dataset)
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def splits(dataset: str = "emoji") -> dict[str, Any]:
    """Held-out styles and concepts (see DATA_CARD.md)."""
    return json.loads(embedded.path(dataset, "splits.json").read_text(encoding="utf-8"))


def caption_forms(label: str, spoken: str, keywords: Sequence[str]) -> list[str]:
    """Several forms of caption for one concept, from its label, the label with its article, and keywords; the first is
    the label."""
    captions = [label, spoken, f"an emoji of {spoken}", f"a drawing of {spoken}", f"a colourful icon showing {spoken}"]
    if keywords:
        captions.append(f"{label}: {', '.join(keywords[:6])}")
        captions.append(f"{spoken}, {keywords[0]}")
    if len(keywords) > 1:
        captions.append(f"a picture of {spoken} ({', '.join(keywords[1:4])})")
    return list(dict.fromkeys(captions))


def load_emoji(split: str, rows: Sequence[int] | None = None, dataset: str = "emoji") -> LabelledImages:
    """Load the images of `split` on white, (N, 3, S, S) float32 in [0,1] with S of SIZES, with their metadata.

    N of emoji runs from 400 (judge-heldback) to about 11,000 (judge-train, half a gigabyte); judge-train of icons takes
    two gigabytes. `rows` selects images by number, in that order; others are not decoded.
    """
    rgba, labels = load_rgba(split, rows, dataset)
    images = torch.empty(len(rgba), 3, *rgba.shape[2:])
    for start in range(0, len(rgba), 1024):  # in parts: the whole in float with alpha would double the memory
        part = rgba[start : start + 1024].float() / 255
        colour, alpha = part[:, :3], part[:, 3:]
        images[start : start + 1024] = colour * alpha + (1 - alpha)
    return LabelledImages(images=images, **vars(labels))


def load_rgba(
    split: str, rows: Sequence[int] | None = None, dataset: str = "emoji"
) -> tuple[UInt8[Tensor, "n 4 h w"], Labels]:
    """The drawings of `split` (or these `rows` of it) with their alpha, (N, 4, S, S) uint8 with S of SIZES, colours not
    premultiplied, for any background.

    Raises UsageError for an unknown split, with a close match.
    """
    samples = list(samples_of(split, dataset))
    if rows is not None:
        samples = [samples[row] for row in rows]
    pixels = np.empty((len(samples), SIZES[dataset], SIZES[dataset], 4), dtype=np.uint8)
    for row, sample in enumerate(samples):
        pixels[row] = np.asarray(Image.open(io.BytesIO(sample.webp)).convert("RGBA"))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), _labels(samples, dataset)


def load_labels(split: str, dataset: str = "emoji") -> Labels:
    """Metadata of the images of `split`, without decoding them."""
    return _labels(list(samples_of(split, dataset)), dataset)


def _labels(samples: list[Sample], dataset: str) -> Labels:
    names, index = label_index(dataset)
    return Labels(
        labels=torch.tensor([index[sample.concept] for sample in samples], dtype=torch.long),
        label_names=names,
        captions=[sample.captions for sample in samples],
        ids=[sample.id for sample in samples],
        styles=[sample.style for sample in samples],
    )


def samples_of(split: str, dataset: str) -> Iterator[Sample]:
    """The drawings of a split, not decoded. Raises UsageError for an unknown split, with a close match."""
    label_records(dataset)  # raises if the set is not installed
    if split not in SPLITS:
        near = get_close_matches(split, SPLITS, n=1, cutoff=0.4)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        message = f'the {dataset} set has no split "{split}"{hint}; it has: {", ".join(SPLITS)}'
        raise UsageError(message, "unknown_split", split=split, near=near)
    record = splits(dataset)
    guide, unseen, judges = record["guide_styles"], record["unseen_styles"], record.get("judge_styles", [])
    held_out = set(record["heldout_concepts"])
    held_back = {f"{concept}-{style}" for concept, styles in record["judge_heldback"].items() for style in styles}
    match split:
        case "guide-styles":
            styles = guide
        case "unseen-styles":
            styles = unseen
        case "unseen-train":
            styles = [*unseen, *judges]
        case _:
            styles = [*guide, *unseen, *judges]
    for sample in chain.from_iterable(read_shard(style, dataset) for style in styles):
        match split:
            case "heldout-concepts":
                wanted = sample.concept in held_out
            case "judge-heldback":
                wanted = sample.id in held_back
            case "judge-train":
                wanted = sample.concept not in held_out and sample.id not in held_back
            case _:
                wanted = sample.concept not in held_out
        if wanted:
            yield sample


@cache
def read_shard(style: str, dataset: str = "emoji") -> list[Sample]:
    """Samples of one style in the order of the shard. Kept, since splits share shards: 25 MB for all of a set."""
    file = f"emoji-{style}.tar.gz" if dataset == "emoji" else f"{style}.tar.gz"
    plain = io.BytesIO(gzip.decompress(embedded.path(dataset, file).read_bytes()))
    with tarfile.open(fileobj=plain) as tar:
        contents = {member.name: _content(tar, member) for member in tar}
    if dataset != "emoji":  # these shards hold pictures only: labels.json has the metadata of all styles
        captions = _captions(dataset)
        concepts = {name.removesuffix(".webp"): webp for name, webp in contents.items()}
        return [Sample(f"{one}-{style}", one, style, captions[one], webp) for one, webp in concepts.items()]
    samples = []
    for name, content in contents.items():
        key, _, extension = name.partition(".")
        if extension == "json":
            record = json.loads(content)
            samples.append(Sample(key, record["concept"], record["style"], record["captions"], contents[f"{key}.webp"]))
    return samples


@cache
def _captions(dataset: str) -> dict[str, list[str]]:
    return {one["id"]: caption_forms(one["label"], one["spoken"], one["keywords"]) for one in label_records(dataset)}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise RunError(f"{member.name} in an embedded shard is not a file; reinstall robustclip-emoji")
    return file.read()


def load_split(dataset: str, split: str, rows: Sequence[int] | None = None) -> LabelledImages:
    """Load a split of an embedded data set, e.g. `load_split("emoji", "unseen-styles")`; with `rows` only these are
    decoded.

    Raises UsageError for an unknown data set or split, listing the known ones.
    """
    if not isinstance(split, str):
        message = f'a split is a name, not {split!r:.100}: e.g. load_split("emoji", "unseen-styles")'
        raise UsageError(message, "wrong_type", argument="split", given=split)
    if dataset not in SIZES:
        raise UsageError(
            f'there is no embedded data set "{dataset}", only: {", ".join(SIZES)}; '
            'e.g. load_split("emoji", "unseen-styles")',
            "unknown_data_set",
            dataset=dataset,
        )
    return load_emoji(split, rows, dataset)


PREFIX: Final = "emoji:"
STYLE: Final = "twemoji"
"""Flat drawings, in a style that no guide was trained on; it has one of every label."""


def emoji_drawing(name: str) -> Float[Tensor, "3 64 64"]:
    """The drawing of a label, e.g. "cat face", in [0,1] on white. Raises UsageError for an unknown label, with similar
    ones.
    """
    names, index = label_index()
    wanted = name.strip().casefold()
    concepts = {label.casefold(): concept for label, concept in zip(names, index, strict=True)}
    if wanted not in concepts:
        near = get_close_matches(wanted, concepts, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "give the name of an emoji, e.g. cat face"
        raise UsageError(f"there is no drawing of {name[:60]!r}: {hint}", "no_drawing", name=name, near=near)
    sample = next(one for one in read_shard(STYLE) if one.concept == concepts[wanted])
    return from_pil(Image.open(io.BytesIO(sample.webp)))


Kind = Literal["name", "held-out name", "phrase"]


@dataclass(frozen=True)
class EmbeddedPrompt:
    """A prompt, the name of its picture, and the concept it names (None: a free phrase)."""

    id: str
    prompt: str
    kind: Kind
    concept: str | None


def prompts_path() -> Path:
    """The file of embedded prompts, for `--prompts`."""
    return embedded.path("prompts", "embedded.jsonl")


@cache
def embedded_prompts() -> tuple[EmbeddedPrompt, ...]:
    """All 200, in their order: 140 names, 20 names of held-out concepts, 40 phrases."""
    with prompts_path().open(encoding="utf-8") as lines:
        return tuple(EmbeddedPrompt(**json.loads(line)) for line in lines)


def some_prompts(count: int) -> list[str]:
    """`count` of the embedded prompts, evenly spaced."""
    texts = [one.prompt for one in embedded_prompts()]
    return texts[:: max(1, len(texts) // count)][:count]


@cache
def real_drawings() -> tuple[LabelledImages, list[str]]:
    """(drawings on which emoji-judge was not trained, their prompts): the two held-back drawings of every name, and all
    of every held-out name. Phrases have none.

    emoji-judge-disjoint was trained on those of the unseen styles, except the held-out ones.
    """
    _, places = label_index()
    prompts = {places[one.concept]: one.prompt for one in embedded_prompts() if one.concept is not None}
    parts = []
    for split in ("judge-heldback", "heldout-concepts"):
        labels = load_labels(split).labels.tolist()
        parts.append(load_emoji(split, [row for row, label in enumerate(labels) if label in prompts]))
    together = LabelledImages.joined(parts)
    return together, [prompts[label] for label in together.labels.tolist()]


class Styled(NamedTuple):
    """A drawing's name and the text of its target style."""

    content: str
    style: str


def embedded_styles() -> list[Styled]:
    """Ten drawings, each in five styles, in a fixed order."""
    with embedded.path("prompts", "styles.csv").open(encoding="utf-8", newline="") as file:
        return [Styled(row["content"], row["style"]) for row in csv.DictReader(file)]
