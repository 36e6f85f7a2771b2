"""CLIPAG's generator-free synthesis with the constants of its released notebook, with or without its bugs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.canvases import Pixels
from robustclip.flags import PictureFlags, SynthesisFlags, flat
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.loop import KeepBest
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.session import PromptFile, Prompts, Referees, Session, Size, call_faults
from robustclip.synthesis.starts import Candidates, Init
from robustclip.synthesis.studio import paint_batch
from robustclip.synthesis.terms import MEAN, Stream, Term, Terms, ZeroBelowQuantile
from robustclip.views import Clamp, GaussianNoise, RandomCrop, Views, diffaug

CROP = 128 / 224  # the notebook's crops, as a share of the picture's side

QUICK: Final = {"steps": 6, "views": 2, "patches": 2, "candidates": 60, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (not mutated)
    *,
    prompts: PromptFile = None,
    referee: Referees = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    size: Size = None,
    notebook: Annotated[bool, "keep the notebook's bugs; --no-notebook fixes them"] = True,
    init: Init = "auto",
    candidates: Candidates = 1000,
    steps: NonNegativeInt = 100,
    lr: PositiveFloat = 0.0175,
    views: PositiveInt = 32,
    patches: PositiveInt = 32,
    patch_weight: NonNegativeFloat = 5.0,
    patch_quantile: Annotated[
        float, Field(ge=0, lt=1), "fraction of patch losses that count as zero (Rejection)"
    ] = 0.0,
    noise: NonNegativeFloat = 0.01,
    clip_norm: PositiveFloat = 0.001,
    threshold: Annotated[float, Field(gt=0, le=1), "quantile of dynamic thresholding"] = 0.95,
    pictures: PictureFlags = PictureFlags(),
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """CLIPAG's notebook: 32 DiffAugment views and 32 patches, AdamW, dynamic thresholding.

    robustclip synthesize clipag-faithful "a green turtle"

    6,400 views per picture, 25 times as many as `clipag`. Constants are those of CLIPAG_T2I.ipynb (CLIPAG 94c7b20). Its
    bugs are kept unless --no-notebook: candidates of the first 20 classes only, ranked without the referee's
    normalisation, and the picture of the lowest view loss is saved one step late. Deviations: its mixture is of
    Tiny-ImageNet, ours of emoji or of your images (robustclip mixture fit); gradients are clipped per picture, where
    the notebook has one picture; its precision is --dtype float16.
    """
    session = Session.open("clipag-faithful", flat(locals()), views=views + patches)
    guides = session.guides
    starts = session.starts(init, candidates=candidates, notebook=notebook)
    whole = Views(views, (GaussianNoise(noise), *diffaug()), name="diffaug")
    # One noise for all patches, then crop, resize, clamp, DiffAugment: the notebook's order.
    crop = (GaussianNoise(noise, shared=True), RandomCrop(CROP, session.size), Clamp())
    crops = Views(patches, (*crop, *diffaug()), name="patches")

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        cosine = guides.cosine([item.prompt for item in items])
        rejection = ZeroBelowQuantile(patch_quantile) if patch_quantile else MEAN
        loss = Terms(
            (
                Term(cosine, whole, name="views"),
                Term(cosine, crops, weight=patch_weight, reduce=rejection, name="patches"),
            )
        )
        canvas = Pixels(starts(items), "threshold", quantile=threshold)
        stream = Stream(loss, torch.optim.AdamW(canvas.parameters(), lr=lr), clip_norm=clip_norm)
        keep = KeepBest("views", late=notebook)
        return paint_batch(canvas, [stream], items=items, guides=guides, steps=steps, watch=watch, keep=keep)

    return session.paint(paint, steps=steps)


faults = call_faults
