"""TeCoA in the embedded world."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import recipes
from robustclip.attacks.threat import Norm
from robustclip.referees.registry import RefereeName
from robustclip.runs.folder import ResumeFrom, RunFolder

VARIES = "emoji"
ABLATION: dict[str, Any] = {"objective": "tecoa"}


def recipe(
    *,
    start: str = "emoji-vanilla",
    name: RefereeName = "emoji-tecoa",
    norm: Norm = "linf",
    eps: PositiveFloat = 4 / 255,
    attack_steps: PositiveInt = 10,
    step_size: PositiveFloat = 1 / 255,
    attack_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
    steps: PositiveInt = 1500,
    batch_size: PositiveInt = 128,
    lr: PositiveFloat = 1e-3,
    warmup: NonNegativeInt = 100,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """TeCoA on emoji: the text of the right class among those of all, under RobustVLM's attack.

    robustclip robustify emoji-tecoa

    Class texts are "an emoji of a {}". The attack is the released one at eps 4/255 (PGD-10, step 1/255, momentum 0.9);
    rate, schedule and batch are the recipe emoji's, and so ours. A step costs three times that of emoji's PGD-2:
    `--attack-steps 2` is within reach of a CPU. On equal terms with all other objectives: docs/robustness.md.
    """
    given = dict(locals())
    return recipes.run(VARIES, "robustify", ABLATION | given)
