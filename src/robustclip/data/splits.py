"""Load a split of an embedded data set by name."""

from __future__ import annotations

from collections.abc import Sequence

from robustclip.data.emoji import SIZES, load_emoji
from robustclip.data.labelled import LabelledImages
from robustclip.errors import UsageError


def load_split(dataset: str, split: str, rows: Sequence[int] | None = None) -> LabelledImages:
    """The labelled images of an embedded data set's split, e.g. `load_split("emoji", "unseen-styles")`; with `rows`
    those of these numbers, and no other is decoded.

    Raises UsageError for a data set or split that is not there, listing those that are.
    """
    if not isinstance(split, str):
        raise UsageError(f'a split is a name, not {split!r:.100}: e.g. load_split("emoji", "unseen-styles")')
    if dataset not in SIZES:
        raise UsageError(
            f'there is no embedded data set "{dataset}", only: {", ".join(SIZES)}; '
            'e.g. load_split("emoji", "unseen-styles")'
        )
    return load_emoji(split, rows, dataset)
