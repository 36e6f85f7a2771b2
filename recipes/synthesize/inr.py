"""CLIP^-1 (D'Orazio et al. 2026): optimise the weights of an implicit neural representation, coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.canvases import Implicit
from robustclip.flags import SynthesisFlags, flat
from robustclip.losses import Cosine
from robustclip.synthesis.guides import Reference, ReferenceData, ReferencePairs
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.session import PromptFile, Prompts, Referees, Session, Size, call_faults, parse_size
from robustclip.synthesis.starts import Candidates, Init
from robustclip.synthesis.studio import paint_batch
from robustclip.synthesis.terms import Stream, Term, Terms, moving_peak
from robustclip.views import GaussianNoise, Views, nudges

QUICK: Final = {"steps": 6, "views": 2, "candidates": 50, "fit_steps": 4, "reference_pairs": 32, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (never changed)
    *,
    prompts: PromptFile = None,
    referee: Referees = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    size: Size = None,
    render: Annotated[Size, "size of the picture that is written; default: --size"] = None,
    init: Init = "auto",
    candidates: Candidates = 1000,
    fit_steps: Annotated[NonNegativeInt, "steps that fit a network to its init; 0: random weights"] = 60,
    width: Annotated[PositiveInt, "units of a layer"] = 64,
    layers: Annotated[PositiveInt, "sine layers"] = 4,
    omega: PositiveFloat = 10.0,
    steps: NonNegativeInt = 32,
    lr: PositiveFloat = 1e-3,
    spread: Annotated[PositiveFloat, "standard deviation of the rates' peak, in layers"] = 1.0,
    reference: ReferenceData = "none",
    reference_pairs: ReferencePairs = 1000,
    neighbours: Annotated[PositiveInt, "nearest captions that a prompt's rotation is fitted to"] = 16,
    blending: Annotated[NonNegativeFloat, "weight of the nearest pictures' blend"] = 0.5,
    views: PositiveInt = 8,
    batch_size: PositiveInt = 16,
    save_frames: Annotated[bool | None, "save film strips and GIFs; default: for up to 16 pictures"] = None,
    channels_last: bool = True,
    compile: bool = False,
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """CLIP^-1: paint with a sine network per picture, towards text targets corrected for the modality gap.

    robustclip synthesize inr "a green turtle" "a blue butterfly" --render 256

    As in the paper: FINER networks, a Gaussian peak of the layers' rates that moves from first to last, embeddings
    averaged over views, and with --reference Procrustes and a blend of retrieved pictures. Ours: all numbers (it takes
    40 or 400 steps), Adam, `clipag`'s views; networks are fitted to the init, not retrieved (docs/synthesis.md).
    """
    session = Session.open("inr", flat(locals()), views=views)
    guides, larger = session.guides, parse_size(render)
    starts = session.starts(init, candidates=candidates)
    pairs = Reference(reference, guides, reference_pairs)
    policy = nudges((-0.2, 0.2), (0.3, 1.7), (0.7, 1.3), (-25.0, 25.0), 0.15, (0.6, 1.3))
    look = Views(views, (GaussianNoise(0.05), *policy), name="nudges")

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        asked = [item.prompt for item in items]
        cosine = Cosine(
            pairs.targets(guides, asked, neighbours=neighbours, blending=blending), guides.dtype, pooled=True
        )
        drawn = [item.generator("network", device=guides.device) for item in items]
        canvas = Implicit(session.size, drawn, width=width, layers=layers, omega=omega, device=guides.device)
        if fit_steps:
            canvas.encode(torch.nn.functional.avg_pool2d(starts(items), 2), steps=fit_steps)
        groups = canvas.groups()
        optimiser = torch.optim.Adam([{"params": found, "name": name} for name, found in groups.items()], lr=lr)
        schedule = {name: moving_peak(place, len(groups), steps, spread) for place, name in enumerate(groups)}
        stream = Stream(Terms((Term(cosine, look),)), optimiser, schedule=schedule)
        painted = paint_batch(canvas, [stream], items=items, guides=guides, steps=steps, watch=watch)
        images = painted.images if larger is None else canvas.render(larger)["image"].detach()
        return replace(painted, images=images, similarity=guides.similarity(images, asked))

    return session.paint(paint, steps=steps)


faults = call_faults
