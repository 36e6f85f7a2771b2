"""CLIPAG's data: four web sources of image-text pairs, mixed by either reading of the paper (§3 and App. A.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from robustclip.data.loader import Loader
from robustclip.data.sources import open_data, split_data, weighted
from robustclip.errors import UsageError
from robustclip.runs.processes import ALONE, Place

Mix = Literal["concatenated", "equal"]
"""The two readings of CLIPAG's data: "concatenated" is App. A.1 (SBU, CC3M and CC12M without resampling, LAION-400M
down-sampled), "equal" is §3 (each source drawn about equally often)."""

Data = Annotated[
    list[str],
    "any pairs instead of the four sources: shards, a table or a folder, several as SOURCE=WEIGHT",
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
    seed: int,
    workers: int,
    *,
    place: Place = ALONE,
    max_skipped: float | None = None,
    shuffle_buffer: int = 10_000,
    allow_commands: bool = False,
) -> Loader:
    """The sources as one stream, by either reading of the paper. "concatenated" takes every sample of each source once
    an epoch, of the last one the part `laion_share`, another one each epoch."""
    *whole, reduced = map(split_data, sources)
    last = laion_share if mix == "concatenated" else 1.0
    return open_data(
        sources,
        batch_size=batch_size,
        size=size,
        weights="size" if mix == "concatenated" else "equal",
        shares=[*(1.0 for parts in whole for _ in parts), *(last for _ in reduced)],
        seed=seed,
        workers=workers,
        place=place,
        max_skipped=max_skipped,
        shuffle_buffer=shuffle_buffer,
        allow_commands=allow_commands,
    )


def missing_sources(named: Mapping[str, str | None], quick: bool, data: Sequence[str] = ()) -> Iterator[str]:
    """What a call lacks of the data, unless it is only tried out, and what it says twice."""
    if data:
        if given := [f"--{flag}" for flag, value in named.items() if value is not None]:
            yield f"--data and {', '.join(given)}: give either, for --data names all of the data"
        try:
            weighted(split_data(data))
        except UsageError as error:
            yield f"--data: {error}"
    elif not quick:
        for flag, value in named.items():
            if value is None:
                yield (
                    f"--{flag} is missing: shards, e.g. --{flag} '{flag}/{{00000..00331}}.tar' "
                    "(or name all data with --data, or try --quick)"
                )
