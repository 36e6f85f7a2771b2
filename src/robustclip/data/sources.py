"""Data sources by name: the flags --data and --data-weights."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from robustclip.data import embedded
from robustclip.data.emoji import label_index, load_labels, splits
from robustclip.data.folders import read_folder
from robustclip.data.loader import Loader, Preparation
from robustclip.data.mixture import Mixture, Weights, check_weights
from robustclip.data.samples import SampleSource, positive_id
from robustclip.data.shards import PIPE, SUFFIXES, ShardSource, shards_in
from robustclip.data.tables import FolderSource, TableSource
from robustclip.errors import UsageError, raise_faults
from robustclip.runs.files import expand_home
from robustclip.runs.processes import ALONE, Place
from robustclip.signatures import QUOTIENT

TABLES = (".csv", ".tsv")
EMOJI = {"guide-styles": "guide_styles", "unseen-train": "unseen_styles"}  # our split: its name in splits.json
FORMS = (
    "shards ('cc3m/{00000..00331}.tar', also at a URL, or their folder), a .csv or .tsv table of paths and captions, a "
    "folder with one sub-folder of images a class, or emoji"
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
    shares: Sequence[float] | None = None,
    place: Place = ALONE,
    max_skipped: float | None = None,
    allow_commands: bool = False,
    cache: Path | None = None,
) -> Loader:
    """Training batches from one source, or from several joined by `::` (or a list): shards, a table, an image folder,
    or `emoji` (the embedded guide styles without the held-out concepts; `emoji/unseen-train`).

    `weights` are "size" (all samples once an epoch), "equal", or one number a source: "1,1,2"; sources written as
    SOURCE=WEIGHT say theirs themselves, and the others among them weigh 1. `caption` names the column, the member or
    the JSON key that holds it; `templates` make captions of class names; `shares` say what part of each source an epoch
    takes (all of it). For `batch_size`, `place` and `max_skipped` see Loader; shards that are commands (`pipe:COMMAND`)
    are read with `allow_commands` only, and shards at URLs are kept in the folder `cache`, if given.

    Raises one UsageError that lists every fault of the call, including missing shards.
    """
    parts, named = weighted(split_data(data))
    weights = weights if named is None else named
    shares = [1.0] * len(parts) if shares is None else shares
    if len(shares) != len(parts):
        message = f"{len(shares)} shares for {len(parts)} sources: give one number for each"
        raise UsageError(message, "unequal_counts", shares=len(shares), sources=len(parts))
    opened = partial(open_source, caption=caption, templates=templates, shuffle_buffer=shuffle_buffer)
    opened = partial(opened, allow_commands=allow_commands, cache=cache)
    sources, faults = open_each(partial(opened, part, share=share) for part, share in zip(parts, shares, strict=True))
    odds: Weights = "size"
    try:
        odds = check_weights(parse_weights(weights), len(parts))
    except UsageError as error:
        faults.append(error)
    try:
        preparation = Preparation(size, crop, scale, background)
    except UsageError as error:
        faults.append(error)
    raise_faults("open_data()", faults)
    return Loader(
        Mixture(sources, odds),
        preparation,
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        place=place,
        max_skipped=max_skipped,
    )


def open_each(sources: Iterable[Callable[[], SampleSource]]) -> tuple[list[SampleSource], list[UsageError]]:
    """Opened sources, and the UsageErrors of the others."""
    opened: list[SampleSource] = []
    faults: list[UsageError] = []
    for source in sources:
        try:
            opened.append(source())
        except UsageError as error:
            faults.append(error)
    return opened, faults


def open_source(
    part: str,
    *,
    caption: str | None = None,
    templates: Sequence[str] = ("{}",),
    share: float = 1.0,
    shuffle_buffer: int = 10_000,
    allow_commands: bool = False,
    cache: Path | None = None,
) -> SampleSource:
    """Open one part of --data. Raises UsageError for anything that is not a data source."""
    path = expand_home(part)
    shards = partial(
        ShardSource,
        caption=caption,
        share=share,
        shuffle_buffer=shuffle_buffer,
        allow_commands=allow_commands,
        cache=cache,
    )
    if part.startswith(PIPE):
        return shards(part)
    if path.is_dir():
        return shards(path) if shards_in(path) else FolderSource(path, templates=templates, share=share)
    if path.suffix.lower() in TABLES:
        return TableSource(path, caption_column=caption, share=share)
    if part.partition("/")[0] == "emoji" and not part.endswith(SUFFIXES):
        paths, heldout = emoji_shards(part.partition("/")[2] or "guide-styles")
        return shards(paths, name="emoji", without=heldout)
    if part.endswith(SUFFIXES) or any(sign in part for sign in "{*?:"):
        return shards(part)
    raise UsageError(f"no data at {part!r}: give {FORMS}")


def emoji_shards(split: str) -> tuple[list[str], list[str]]:
    """(shards of an embedded split of whole styles, held-out concepts to exclude)."""
    if split not in EMOJI:
        message = f"emoji/{split} is not training data: use {' or '.join(f'emoji/{name}' for name in EMOJI)}"
        raise UsageError(message, "not_for_training", split=split)
    record = splits()
    shards = [str(embedded.path("emoji", f"emoji-{style}.tar.gz")) for style in record[EMOJI[split]]]
    return shards, record["heldout_concepts"]


def split_data(data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Split `a::b`, or a list, into its non-blank parts. Raises UsageError if there are none."""
    listed = [data] if isinstance(data, str | os.PathLike) else data
    parts = [part.strip() for item in listed for part in os.fspath(item).split(SEVERAL)]
    if not any(parts):
        raise UsageError(f"no data: give {FORMS}; several are joined by {SEVERAL}", "no_data")
    return [part for part in parts if part]


def weighted(parts: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Parse `SOURCE=WEIGHT` flags: (sources, weights); 1 for unweighted ones, None if none is weighted.

    Raises UsageError for a weight that is not a positive number.
    """
    parsed = [(part, 1.0, False) if Path(part).exists() else _weighted(part) for part in parts]
    weights = [weight for _, weight, _ in parsed] if any(explicit for _, _, explicit in parsed) else None
    return [source for source, _, _ in parsed], weights


def _weighted(part: str) -> tuple[str, float, bool]:
    source, equals, text = part.rpartition("=")
    quotient = QUOTIENT.fullmatch(text)
    is_path = quotient is None and any(sign in text for sign in "/\\{*?:")
    # The end of a URL's query is KEY=VALUE, whose value may end with =; a weight follows a whole one.
    query = "://" in part and "?" in part and (not text or "=" not in re.split(r"[?&]", source)[-1])
    if not equals or part.startswith(PIPE) or is_path or query or text.endswith(SUFFIXES):
        return part, 1.0, False  # the sign belongs to a path, a URL or a command
    if quotient is not None:
        weight = float(quotient[1]) / (float(quotient[2]) or math.inf)
    else:
        weight = float(text) if re.fullmatch(r"\d*\.?\d+(e[+-]?\d+)?", text, re.ASCII) else 0.0
    if not source or not 0 < weight < math.inf:
        message = f"the weight {text[:40]!r} of {source[:100]!r} is not a positive number: write e.g. {source}=2.0"
        raise UsageError(message, "not_positive", argument=source, given=text)
    return source, weight, True


def parse_weights(text: str | Sequence[float]) -> Weights:
    """`size` and `equal` as they are, `1,1,2` as numbers. Raises UsageError for anything else."""
    if not isinstance(text, str):
        return [float(weight) for weight in text]
    if text in ("size", "equal"):
        return cast("Literal['size', 'equal']", text)
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError:
        message = f"weights {text!r}: use size, equal, or one number a source, e.g. 1,1,2"
        raise UsageError(message, "unknown_choice", argument="weights", given=text) from None


def training_classes(data: str) -> tuple[list[str], list[int]]:
    """(class names, their `positives` in batches of `open_data(data)`) of a folder with one sub-folder per class, or of
    `emoji`.

    Raises UsageError for data without classes, and for a single class.
    """
    path = expand_home(data)
    if data == EMBEDDED:
        labels, index = load_labels("guide-styles"), label_index()[1]
        concepts = {place: concept for concept, place in index.items()}
        named = [(labels.label_names[place], concepts[place]) for place in labels.labels.unique().tolist()]
    elif path.is_dir() and not shards_in(path) and (folder := read_folder(path)).layout == "classes":
        named = [(name, concept) for concept, name in dict(folder.classes()).items()]
    else:
        raise UsageError(
            f"{data} has no classes, which TeCoA needs for its class texts: give a folder with one sub-folder of "
            "images per class (optionally with classnames.txt), or use the objective fare, which needs none",
            "no_classes",
            data=data,
        )
    if len(named) < 2:
        message = f"{data} has one class, {named[0][0]!r}: a loss among classes needs at least two"
        raise UsageError(message, "single_class", name=named[0][0])
    return [name for name, _ in named], [positive_id(concept=concept) for _, concept in named]


Mix = Literal["concatenated", "equal"]
"""Two readings of CLIPAG's data: "concatenated" is App. A.1 (SBU, CC3M and CC12M without resampling, LAION-400M
down-sampled), "equal" is §3 (each source drawn about equally often)."""

Data = Annotated[
    list[str],
    "data instead of the four sources: shards, a table or a folder; several as SOURCE=WEIGHT",
]
"""The type of a `data` flag that may be given several times."""

Share = Annotated[float, Field(gt=0, le=1)]

EMBEDDED = "emoji"


def mixed(
    sources: list[str],
    mix: Mix,
    laion_share: float,
    batch_size: int,
    size: tuple[int, int],
    **options: Any,
) -> Loader:
    """CLIPAG's four sources as one stream, by either reading of the paper (`Mix`); `options` are those of `open_data`.
    "concatenated" takes every sample of each source once per epoch, but of the last one a share `laion_share`, redrawn
    each epoch."""
    *whole, reduced = map(split_data, sources)
    last = laion_share if mix == "concatenated" else 1.0
    return open_data(
        sources,
        batch_size=batch_size,
        size=size,
        weights="size" if mix == "concatenated" else "equal",
        shares=[*(1.0 for parts in whole for _ in parts), *(last for _ in reduced)],
        **options,
    )


def missing_sources(named: Mapping[str, str | None], quick: bool, data: Sequence[str] = ()) -> Iterator[UsageError]:
    """Missing or duplicate data flags of a call, unless it is a quick run."""
    if data:
        if flags := [f"--{flag}" for flag, value in named.items() if value is not None]:
            message = f"--data and {', '.join(flags)}: give one or the other, since --data replaces all sources"
            yield UsageError(message, "clash")
        try:
            weighted(split_data(data))
        except UsageError as error:
            yield UsageError(f"--data: {error}", error.code)
    elif not quick:
        for flag, value in named.items():
            if value is None:
                yield UsageError(
                    f"--{flag} is missing: shards, e.g. --{flag} '{flag}/{{00000..00331}}.tar' "
                    "(or name all data with --data, or try --quick)",
                    "missing",
                    argument=flag,
                )
