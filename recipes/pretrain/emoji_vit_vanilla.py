"""Train the embedded CLIP with a ViT on clean emoji, as `emoji-vanilla` is trained."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import recipes
from robustclip.referees.registry import RefereeName
from robustclip.runs.folder import ResumeFrom, RunFolder


def recipe(
    *,
    name: RefereeName = "emoji-vit-vanilla",
    start: str | None = None,
    steps: PositiveInt = 2400,
    batch_size: PositiveInt = 128,
    lr: PositiveFloat = 1e-3,
    warmup: NonNegativeInt = 200,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Train the small ViT of the embedded world on clean emoji.

    robustclip robustify pretrain/emoji-vit-vanilla

    About half an hour on two CPU cores. The tower is open_clip's own ViT (4 blocks of width 128, 8x8 patches of 64x64
    pixels, the embedding read from the CLS token, as in CLIP), so that what is found of maps on the CNN can be looked
    for on a ViT. The control of emoji-vit-robust is this recipe again, as long as that took:

      --name emoji-vit-vanilla-long --start emoji-vit-vanilla --steps 2200 --lr 5e-4

    All values are ours.
    """
    given = dict(locals())
    return recipes.run("emoji-vanilla", "pretrain", {"tower": "vit_mini_patch8"} | given)
