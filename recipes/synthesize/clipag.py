"""CLIPAG's generator-free synthesis with our defaults: optimise pixels by a robust referee, from a sample of a
mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.canvases import Canvas, Pixels, Pyramid
from robustclip.flags import PictureFlags, SynthesisFlags, flat
from robustclip.losses import TotalVariation
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.session import BestOf, By, PromptFile, Prompts, Referees, Session, Size, call_faults
from robustclip.synthesis.starts import Candidates, Init
from robustclip.synthesis.studio import paint_batch
from robustclip.synthesis.terms import Stream, Term, linear_decay
from robustclip.views import GaussianNoise, RandomCrop, View, Views, diffaug, nudges

Augment = Literal["nudges", "diffaug", "none"]
NUDGES: tuple[View, ...] = nudges((-0.2, 0.2), (0.3, 1.7), (0.7, 1.3), (-25.0, 25.0), 0.15, (0.6, 1.3))
"""Wider than training augmentation, which suppresses details that only one view shows."""

QUICK: Final = {"steps": 6, "views": 2, "candidates": 50, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (not mutated; a list is what the command line shows)
    *,
    prompts: PromptFile = None,
    referee: Referees = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    size: Size = None,
    init: Init = "auto",
    candidates: Candidates = 1000,
    temperature: Annotated[PositiveFloat, "scale of the mixture's standard deviation"] = 1.0,
    strength: Annotated[float, Field(ge=0, le=1), "weight of the init image; the rest is noise"] = 1.0,
    canvas: Annotated[Literal["pixels", "pyramid"], "canvas"] = "pixels",
    steps: NonNegativeInt = 32,
    lr: Annotated[PositiveFloat, "RMS change of a pixel in the first step"] = 0.02,
    augment: Annotated[Augment, "view policy; none uses the picture itself"] = "nudges",
    views: Annotated[PositiveInt, "views of the whole picture per step"] = 8,
    patches: Annotated[NonNegativeInt, "views of random patches per step"] = 0,
    patch_size: Annotated[float, Field(gt=0, le=1), "patch side, as a fraction of the picture's"] = 128 / 224,
    patch_weight: Annotated[NonNegativeFloat, "weight of the patch loss; that of the views is 1"] = 1.0,
    noise: Annotated[NonNegativeFloat, "standard deviation of noise on each view"] = 0.05,
    total_variation: Annotated[NonNegativeFloat, "weight of total variation"] = 1.0,
    best_of: BestOf = 1,
    by: By = None,
    pictures: PictureFlags = PictureFlags(),
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """Text to image by a robust referee, without a generator.

    robustclip synthesize clipag "a green turtle" "a blue butterfly"

    CLIPAG's method with our defaults, chosen for R-Precision: 256 view passes per picture (a few seconds on two cores
    in batches), and 1,000 init candidates per seed. Differences from the paper: docs/synthesis.md; results:
    docs/painting.md (R-Precision among 10 names 91% on 200 prompts, by emoji-judge).
    """
    session = Session.open("clipag", flat(locals()), views=views + patches)
    guides = session.guides
    starts = session.starts(init, candidates=candidates, temperature=temperature, strength=strength)
    policy = {"nudges": NUDGES, "diffaug": diffaug(), "none": ()}[augment]
    whole = Views(views, (GaussianNoise(noise), *policy), name=augment) if augment != "none" else None
    crops = Views(max(patches, 1), (GaussianNoise(noise), RandomCrop(patch_size), *policy), name="patches")

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        cosine = guides.cosine([item.prompt for item in items])
        loss = (
            Term(cosine, whole)
            + Term(cosine, crops, weight=patch_weight if patches else 0.0)
            + Term(TotalVariation(), weight=total_variation)
        )
        start = starts(items)
        made: Canvas = Pixels(start)
        if canvas == "pyramid":
            made = Pyramid(len(items), session.size, device=guides.device)
            made.encode(start)
        stream = Stream(
            loss,
            torch.optim.SGD(made.parameters(), lr=lr),
            unit_rms=True,
            by_level=canvas == "pyramid",
            schedule=linear_decay(steps, last=0.05),
        )
        return paint_batch(made, [stream], items=items, guides=guides, steps=steps, watch=watch)

    return session.paint(paint, steps=steps)


faults = call_faults
