"""TeCoA on OpenAI's ViT-L/14 (supervised: classify under attack), with RobustVLM's released settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import recipes
from robustclip.data.clipag import Share
from robustclip.runs.folder import ResumeFrom, RunFolder

VARIES = "fare-vit-l14"
ABLATION: dict[str, Any] = {"objective": "tecoa", "name": "tecoa-vit-l14"}


def recipe(
    *,
    data: Annotated[str | None, "ImageNet's training images, one sub-folder a class"] = None,
    template: Annotated[str, "the text of a class"] = "This is a photo of a {}",
    eps: PositiveFloat = 2 / 255,
    attack_steps: PositiveInt = 10,
    steps: PositiveInt = 20_000,
    batch_size: PositiveInt = 128,
    lr: PositiveFloat = 1e-5,
    accumulate: PositiveInt = 1,
    grad_checkpointing: bool = False,
    max_skipped: Share | None = None,
    workers: NonNegativeInt = 4,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "float32",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """TeCoA on ViT-L/14 with the settings that FARE was compared with.

      robustclip robustify tecoa-vit-l14 --data imagenet/train

    The loss is the cross-entropy among the texts of all classes (Mao et al. 2023), as RobustVLM trains it; the folders'
    names, or the lines of classnames.txt beside them, are the classes' names. Mao et al.'s own code trains ViT-B/32
    with SGD for ten epochs: other settings than these. All else is fare-vit-l14's; these flags are the ones worth
    changing.
    """
    given = dict(locals())
    return recipes.run(VARIES, "robustify", ABLATION | given)


def faults(data: str | None, template: str, quick: bool) -> Iterator[str]:
    yield from recipes.find(VARIES, "robustify").module.faults(data, template, quick)
