"""Train the embedded judge: another architecture and seed than the guides, on all drawing styles."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat, PositiveInt

from robustclip import recipes
from robustclip.runs.folder import ResumeFrom, RunFolder


def recipe(
    *,
    steps: PositiveInt = 3600,
    batch_size: PositiveInt = 128,
    lr: PositiveFloat = 2e-3,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 1,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Train emoji-judge, which scores what the guides paint and is never optimised against.

    robustclip robustify pretrain/emoji-judge

    About half an hour on one CPU core. Sees all eight styles except the held-out concepts and two images of each of the
    200 committed labels, on which it is measured (`judge-heldback`). VoVNet is another family than the guides'
    ResNet. All values are ours.
    """
    given = dict(locals())
    judge = {"name": "emoji-judge", "tower": "ese_vovnet19b_slim", "split": "judge-train"}
    return recipes.run("emoji-vanilla", "pretrain", judge | given)
