"""Direct Ascent Synthesis (Fort & Whitaker 2025): optimise a sum over resolutions, under jitter and noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.canvases import Pyramid
from robustclip.flags import PictureFlags, SynthesisFlags, flat
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.session import BestOf, By, PromptFile, Prompts, Referees, Session, Size, call_faults
from robustclip.synthesis.studio import paint_batch
from robustclip.synthesis.terms import Stream, Term, Terms
from robustclip.views import Clamp, Jitter, UniformNoise, Views

QUICK: Final = {"steps": 6, "views": 2, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (not mutated)
    *,
    prompts: PromptFile = None,
    referee: Referees = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    size: Size = None,
    every_size: Annotated[bool, "one level per side length from 1, as in the demo; else powers of two"] = False,
    steps: NonNegativeInt = 100,
    lr: PositiveFloat = 0.01,
    unit_steps: Annotated[bool, "normalise the step: lr is the RMS change of each level"] = True,
    views: PositiveInt = 8,
    margin: Annotated[float, Field(ge=0, le=1), "padding beyond each edge, as a fraction of the side"] = 56 / 224,
    jitter: Annotated[float, Field(ge=0, le=1), "maximum shift, as a fraction of the side"] = 28 / 224,
    noise: NonNegativeFloat = 0.2,
    best_of: BestOf = 1,
    by: By = None,
    pictures: PictureFlags = PictureFlags(),
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """Direct Ascent Synthesis: optimise all resolutions at once, from grey.

    robustclip synthesize direct-ascent "a green turtle" --referee emoji-robust --referee emoji-vanilla=0.5

    Written from the paper's description (margins, jitter, uniform noise, SGD, 100 steps, tanh). It is designed for
    ensembles of ordinary CLIPs: pass several referees. Two choices are ours: levels at powers of two (--every-size is
    the demo's), and steps of a fixed length for each level (--no-unit-steps --lr 0.1 is the demo's plain SGD).
    """
    session = Session.open("direct-ascent", flat(locals()), views=views)
    guides, (height, width) = session.guides, session.size
    short = min(height, width)
    border = round(margin * short)
    sides = list(range(1, short + 2 * border + 1)) if every_size else None
    look = Views(
        views, (Jitter(round(jitter * short), (height, width)), UniformNoise((0.0, noise)), Clamp()), name="jitter"
    )

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        cosine = guides.cosine([item.prompt for item in items])
        canvas = Pyramid(len(items), (height, width), sides, margin=border, device=guides.device)
        optimiser = torch.optim.SGD(canvas.parameters(), lr=lr)
        stream = Stream(Terms((Term(cosine, look),)), optimiser, unit_rms=unit_steps, by_level=unit_steps)
        return paint_batch(canvas, [stream], items=items, guides=guides, steps=steps, watch=watch)

    return session.paint(paint, steps=steps)


faults = call_faults
