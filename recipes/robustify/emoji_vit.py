"""CLIPAG in the embedded world on a ViT: fine-tune emoji-vit-vanilla as `emoji` does its ResNet."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import recipes
from robustclip.attacks.threat import Norm
from robustclip.referees.registry import RefereeName
from robustclip.runs.folder import ResumeFrom, RunFolder


def recipe(
    *,
    start: str = "emoji-vit-vanilla",
    name: RefereeName = "emoji-vit-robust",
    norm: Norm = "l2",
    eps: PositiveFloat = 2.0,
    attack_steps: PositiveInt = 2,
    steps: PositiveInt = 900,
    batch_size: PositiveInt = 128,
    lr: PositiveFloat = 5e-4,
    warmup: NonNegativeInt = 100,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Robustify the small ViT of the embedded world, as the recipe emoji does the ResNet.

    robustclip robustify emoji-vit

    About 45 minutes on one CPU core. Where it differs from emoji: half the learning rate, and fewer steps, for a step
    costs twice as much. Every value that CLIPAG's text does not give is ours.
    """
    given = dict(locals())
    return recipes.run("emoji", "robustify", given)
