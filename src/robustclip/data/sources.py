"""Data by name: what the flags --data and --data-weights stand for."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from robustclip.data.decoding import Preparation
from robustclip.data.emoji import ASSETS
from robustclip.data.loader import Loader
from robustclip.data.mixture import Mixture, Weights, check_weights
from robustclip.data.samples import SampleSource
from robustclip.data.shards import SUFFIXES, ShardSource, shards_in
from robustclip.data.tables import FolderSource, TableSource
from robustclip.errors import UsageError
from robustclip.signatures import raise_faults

TABLES = (".csv", ".tsv")
EMOJI = {"guide-styles": "guide_styles", "unseen-train": "unseen_styles"}  # our split: its name in splits.json
FORMS = (
    "shards ('cc3m/{00000..00331}.tar', or their folder), a .csv or .tsv table of paths and captions, a folder with "
    "one sub-folder of images a class, or emoji"
)
SEVERAL = "::"


def open_data(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    batch_size: int,
    size: int | tuple[int, int],
    weights: str | Sequence[float] = "size",
    seed: int = 0,
    workers: int = 0,
    crop: Literal["random", "center"] = "random",
    scale: tuple[float, float] = (0.9, 1.0),
    background: Literal["white", "random"] = "white",
    caption: str | None = None,
    templates: Sequence[str] = ("a photo of a {}.",),
    shuffle_buffer: int = 10_000,
) -> Loader:
    """Training batches from one source, or from several joined by `::` (or a list), each of them shards, a table, an
    image folder, or `emoji` (the embedded guide styles without the held-out concepts; `emoji/unseen-train`).

    `weights` are "size" (all samples once an epoch), "equal", or one number a source: "1,1,2". `caption` names the
    column, the member or the JSON key that holds it; `templates` make captions of class names.
    Raises one UsageError that lists every fault of the call, missing shards among them.
    """
    sources: list[SampleSource] = []
    faults = []
    parts = split_data(data)
    for part in parts:
        try:
            sources.append(open_source(part, caption=caption, templates=templates, shuffle_buffer=shuffle_buffer))
        except UsageError as error:
            faults.append(str(error))
    odds: Weights = "size"
    try:
        odds = check_weights(parse_weights(weights), len(parts))
    except UsageError as error:
        faults.append(str(error))
    try:
        preparation = Preparation(size, crop, scale, background)
    except UsageError as error:
        faults.append(str(error))
    raise_faults("open_data()", faults)
    return Loader(Mixture(sources, odds), preparation, batch_size=batch_size, seed=seed, workers=workers)


def open_source(
    part: str, *, caption: str | None = None, templates: Sequence[str] = ("{}",), shuffle_buffer: int = 10_000
) -> SampleSource:
    """The source that one part of --data stands for. Raises UsageError for what is none."""
    path = Path(part).expanduser()
    if path.is_dir():
        if shards_in(path):
            return ShardSource(path, caption=caption, shuffle_buffer=shuffle_buffer)
        return FolderSource(path, templates=templates)
    if path.suffix.lower() in TABLES:
        return TableSource(path, caption_column=caption)
    if part.partition("/")[0] == "emoji" and not part.endswith(SUFFIXES):
        return emoji_shards(part.partition("/")[2] or "guide-styles", caption=caption, shuffle_buffer=shuffle_buffer)
    if part.endswith(SUFFIXES) or any(sign in part for sign in "{*?:"):
        return ShardSource(part, caption=caption, shuffle_buffer=shuffle_buffer)
    raise UsageError(f"no data at {part!r}: give {FORMS}")


def emoji_shards(split: str, *, caption: str | None = None, shuffle_buffer: int = 10_000) -> ShardSource:
    """The embedded shards of a split that is made of whole styles, without the held-out concepts."""
    if split not in EMOJI:
        raise UsageError(f"emoji/{split} is no data to train on: use {' or '.join(f'emoji/{name}' for name in EMOJI)}")
    splits = json.loads((ASSETS / "splits.json").read_text(encoding="utf-8"))
    shards = [str(ASSETS / f"emoji-{style}.tar.gz") for style in splits[EMOJI[split]]]
    return ShardSource(
        shards, name="emoji", caption=caption, without=splits["heldout_concepts"], shuffle_buffer=shuffle_buffer
    )


def split_data(data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """`a::b`, or a list, as its parts; blank ones are none. Raises UsageError where nothing is left."""
    listed = [data] if isinstance(data, str | os.PathLike) else data
    parts = [part.strip() for item in listed for part in os.fspath(item).split(SEVERAL)]
    if not any(parts):
        raise UsageError(f"no data: give {FORMS}; several are joined by {SEVERAL}")
    return [part for part in parts if part]


def parse_weights(text: str | Sequence[float]) -> Weights:
    """`size` and `equal` as they are, `1,1,2` as numbers. Raises UsageError for anything else."""
    if not isinstance(text, str):
        return [float(weight) for weight in text]
    if text in ("size", "equal"):
        return cast("Literal['size', 'equal']", text)
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError:
        raise UsageError(f"weights {text!r}: use size, equal, or one number a source, e.g. 1,1,2") from None
