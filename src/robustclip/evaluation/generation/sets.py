"""Sets of pictures to compare, each painted by a recipe into its own folder: what is there is not done again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from robustclip.recipes import find
from robustclip.runs import RECORD
from robustclip.synthesis.painted import Result


def paint_set(folder: Path, settings: Mapping[str, Any], recipe: str = "clipag") -> Result:
    """The pictures of a synthesis recipe with these arguments, in `folder`: those that are missing are painted."""
    place = {"resume": folder} if (folder / RECORD).is_file() else {"out": folder}
    result = cast("Result", find(recipe, "synthesize").function(**settings, **place))
    result.kept.clear()  # all are judged from their files, those that were there before and those that were not
    return result
