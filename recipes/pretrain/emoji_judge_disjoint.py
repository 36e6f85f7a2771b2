"""Train the embedded judge that shares no image with the guides: on the unseen styles only."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat, PositiveInt

from robustclip import recipes
from robustclip.runs.folder import ResumeFrom, RunFolder


def recipe(
    *,
    steps: PositiveInt = 1000,
    batch_size: PositiveInt = 128,
    lr: PositiveFloat = 2e-3,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 2,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Train emoji-judge-disjoint, a second opinion on what the guides paint.

    robustclip robustify pretrain/emoji-judge-disjoint

    About ten minutes on two CPU cores. Sees twemoji and openmoji only, so that no image it knows has trained a guide;
    with a quarter of the images of emoji-judge it is the weaker judge, and the one whose agreement cannot be memory.
    All values are ours.
    """
    given = dict(locals())
    judge = {"name": "emoji-judge-disjoint", "tower": "ese_vovnet19b_slim", "split": "unseen-train"}
    return recipes.run("emoji-vanilla", "pretrain", judge | given)
