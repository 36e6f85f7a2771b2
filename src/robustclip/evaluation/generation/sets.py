"""Sets of pictures to compare, each painted by a recipe into its own folder: what is there is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.data.images import titled_grid
from robustclip.recipes import find
from robustclip.runs.folder import RECORD
from robustclip.synthesis.painted import Result

SHOWN: Final = 12


def paint_set(folder: Path, settings: Mapping[str, Any], recipe: str = "clipag") -> Result:
    """The pictures of a synthesis recipe with these arguments, in `folder`: those that are missing are painted."""
    place = {"resume": folder} if (folder / RECORD).is_file() else {"out": folder}
    result = cast("Result", find(recipe, "synthesize").function(**settings, **place))
    result.kept.clear()  # all are judged from their files, those that were there before and those that were not
    return result


def overview(sets: Mapping[str, Float[Tensor, "n 3 h w"]], texts: Sequence[str]) -> Float[Tensor, "3 H W"]:
    """Sets as rows, and as columns up to 12 of their prompts, spread over the list, not chosen."""
    columns = list(range(0, len(texts), max(1, len(texts) // SHOWN)))[:SHOWN]
    tiles = torch.cat([images[columns] for images in sets.values()])
    return titled_grid(list(sets), [texts[column] for column in columns], tiles)
