"""CLIPAG's ablation: ViT-B/16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import recipes
from robustclip.data.clipag import Data, Mix, Share, missing_sources
from robustclip.runs.folder import ResumeFrom, RunFolder

VARIES = "clipag-vit-b32"
ABLATION: dict[str, Any] = {"start": "ViT-B-16:laion2b_s34b_b88k", "name": "clipag-vit-b16"}


def recipe(
    *,
    data: Data = [],  # noqa: B006
    sbu: Annotated[str | None, "shards of SBU captions"] = None,
    cc3m: Annotated[str | None, "shards of CC3M"] = None,
    cc12m: Annotated[str | None, "shards of CC12M"] = None,
    laion: Annotated[str | None, "shards of LAION-400M"] = None,
    mix: Annotated[Mix, "the reading of the paper: by size with LAION reduced, or each source equally"] = "equal",
    eps: PositiveFloat = 1.5,
    attack_steps: PositiveInt = 5,
    steps: PositiveInt = 20_000,
    batch_size: Annotated[int, Field(ge=2)] = 256,
    lr: PositiveFloat = 1e-5,
    accumulate: PositiveInt = 1,
    grad_checkpointing: bool = False,
    max_skipped: Share | None = None,
    allow_commands: bool = False,
    workers: NonNegativeInt = 4,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """CLIPAG's ablation of the architecture: ViT-B/16 (App. C), which painted with artefacts.

      robustclip robustify clipag-vit-b16 --sbu 'sbu/{00000..00099}.tar' --cc3m ... --cc12m ... --laion ...
      robustclip robustify clipag-vit-b16 --data 'pairs/{00000..00099}.tar' --data captions.csv=2.0

    Four times the tokens of clipag-vit-b32, and about four times its cost. Which weights the paper started from is not
    in its text; LAION-2B's are ours.

    Everything else, and what is ours in it, is clipag-vit-b32's; these flags are the ones worth changing.
    """
    given = dict(locals())
    return recipes.run(VARIES, "robustify", ABLATION | given)


def faults(
    data: list[str], sbu: str | None, cc3m: str | None, cc12m: str | None, laion: str | None, quick: bool
) -> Iterator[str]:
    yield from missing_sources({"sbu": sbu, "cc3m": cc3m, "cc12m": cc12m, "laion": laion}, quick, data)
