"""CLIPAG's data: four web sources of image-text pairs, mixed by either reading of the paper (§3 and App. A.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from robustclip.data.loader import Loader
from robustclip.data.sources import open_data, open_source

Mix = Literal["concatenated", "equal"]
"""The two readings of CLIPAG's data: "concatenated" is App. A.1 (SBU, CC3M and CC12M without resampling, LAION-400M
down-sampled), "equal" is §3 (each source drawn about equally often)."""

EMBEDDED = "emoji"


def mixed(
    sources: list[str], mix: Mix, laion_share: float, batch_size: int, size: tuple[int, int], seed: int, workers: int
) -> Loader:
    """The sources as one stream, by either reading of the paper; "concatenated" draws from each source in proportion
    to its size, the last one's times `laion_share`."""
    weights: str | list[float] = "equal"
    if mix == "concatenated":
        *whole, reduced = (open_source(source).size() for source in sources)
        weights = [*map(float, whole), reduced * laion_share]
    return open_data(sources, batch_size=batch_size, size=size, weights=weights, seed=seed, workers=workers)


def missing_sources(named: Mapping[str, str | None], quick: bool) -> Iterator[str]:
    """What a call lacks of the data, unless it is only tried out."""
    if not quick:
        for flag, value in named.items():
            if value is None:
                yield f"--{flag} is missing: shards, e.g. --{flag} '{flag}/{{00000..00331}}.tar' (or try --quick)"
