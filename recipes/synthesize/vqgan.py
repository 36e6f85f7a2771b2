"""VQGAN+CLIP (Crowson et al. 2022), after the VQGAN-CLIP repository: optimise a VQGAN's codes towards a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.canvases import Codes
from robustclip.diffusion.vqgan import load_vqgan
from robustclip.errors import UsageError
from robustclip.flags import PictureFlags, SynthesisFlags, flat
from robustclip.losses import LatentPrior
from robustclip.runs import terminal
from robustclip.runs.devices import pick_device
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.session import (
    LARGEST,
    BestOf,
    By,
    PromptFile,
    Prompts,
    Referees,
    Session,
    Size,
    call_faults,
    parse_size,
)
from robustclip.synthesis.starts import Candidates, check_init
from robustclip.synthesis.studio import paint_batch
from robustclip.synthesis.terms import Stream, Term, Weight
from robustclip.views import ClampThrough, Pooled, RandomSquares, View, Views
from robustclip.views.policies import augmented

OPTIMISERS: Final[dict[str, Any]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "adamax": torch.optim.Adamax,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
}
Optimiser = Literal["adam", "adamw", "adagrad", "adamax", "radam", "rmsprop"]
Mode = Literal["faithful", "fixed"]
Prior = Literal["zero", "start"]


def _init(text: str) -> str:
    return text if text == "codes" else check_init(text)


QUICK: Final = {"steps": 6, "views": 2, "candidates": 50, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (not mutated)
    *,
    prompts: PromptFile = None,
    referee: Referees = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    model: Annotated[str, "VQGAN: a name, or a folder from robustclip convert"] = "emoji-vqgan",
    size: Size = None,
    mode: Annotated[Mode, "faithful: with the release's bugs; fixed: without"] = "fixed",
    init: Annotated[
        str, AfterValidator(_init), "codes (random), or as in clipag: auto, mixture, noise, gradient, an image ..."
    ] = "auto",
    candidates: Candidates = 1000,
    steps: NonNegativeInt = 100,
    optimiser: Optimiser = "adam",
    lr: PositiveFloat = 0.1,
    cut_method: Annotated[Literal["latest", "original"], "views: the whole picture, or square cutouts"] = "latest",
    views: Annotated[PositiveInt, "cutouts per step"] = 8,
    cut_pow: Annotated[
        float, Field(ge=0.001, le=100), "exponent of the cutout size; above 1, cutouts are smaller"
    ] = 1.0,
    cut_min: Annotated[
        Annotated[int, Field(ge=1, le=LARGEST)] | None,
        "pixels of the smallest square; default: the referee's input, at most half of the picture's side",
    ] = None,
    augment: Annotated[
        bool | None, "augmentations of cutouts: affine, perspective, colour, erasing, noise; default: those of latest"
    ] = None,
    init_weight: Annotated[NonNegativeFloat, "weight of the latent prior"] = 0.0,
    prior: Annotated[Prior | None, "target of the latent prior; default: zero in mode faithful, else the start"] = None,
    best_of: BestOf = 1,
    by: By = None,
    pictures: PictureFlags = PictureFlags(),
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """VQGAN+CLIP: optimise the codes of a VQGAN by a referee.

    robustclip synthesize vqgan "a green turtle" "a clock:0.5:0.9 | blurry:-0.3"

    Constants are those of VQGAN-CLIP's generate.py (592d555). Fewer steps and views, a start from the mixture, the
    small generator and its size are ours, for the embedded 64-pixel world: the release is --mode faithful --init codes
    --steps 500 --views 32 --size 512 --model FOLDER, of the ImageNet VQGAN (robustclip convert taming-vqgan), with
    --batch-size 1 if memory is short.

    A prompt's third number is its `stop`, the distance at which its gradient becomes 0. --mode faithful keeps two bugs:
    views shift vertically only, and --init-weight regularises latents towards zero, with decay, instead of the start.
    The smallest square of --cut-method original has the referee's size or, for pictures that are not larger, half their
    side (ours).

    Deviations: image prompts are embedded whole, not as cutouts; resizing is bicubic, not Lanczos; views follow current
    kornia; the release takes one step more than requested. Not implemented: other cut methods, DiffGrad and AdamP,
    story phases (^), zoom and video.
    """
    arguments = flat(locals())
    generator = load_vqgan(model, pick_device(common.device))
    if requested := parse_size(size):
        whole_codes(requested, generator.factor)
    session = Session.open("vqgan", arguments, views=views)
    guides, requested = session.guides, session.size
    session.size = whole_codes(requested, generator.factor)
    session.run.note(size=list(session.size))
    if session.size != requested:
        terminal.note(
            f"{requested[0]}x{requested[1]} is not whole in codes of {generator.factor} pixels: "
            f"painting {session.size[0]}x{session.size[1]}"
        )
    starts = None if init == "codes" else session.starts(init, candidates=candidates)
    translate = (0.1, 0.0) if mode == "faithful" else (0.1, 0.1)
    cut: tuple[View, ...] = (Pooled(guides.size),)
    if cut_method == "original":
        room = min(session.size) > max(guides.size)
        smallest = cut_min if cut_min is not None or room else max(1, min(session.size) // 2)
        cut = (RandomSquares(guides.size, cut_pow, smallest), ClampThrough())
    if augment is None:
        augment = cut_method == "latest"
    look = Views(views, (*cut, *(augmented(translate) if augment else ())), name=cut_method)
    to_zero = (prior or ("zero" if mode == "faithful" else "start")) == "zero"

    def prior_weight(step: int) -> float:
        """Weight of the latent prior: decaying in the step, as in the release, or half for the start."""
        return init_weight / (2 * (2 * step + 1)) if to_zero else init_weight / 2

    weight: Weight = prior_weight if init_weight else 0.0

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        canvas = Codes(generator, session.size, [item.generator("start", device=guides.device) for item in items])
        if starts is not None:
            canvas.encode(starts(items))
        start = None if to_zero or not init_weight else canvas.render()["latent"]
        loss = Term(guides.spherical([item.prompt for item in items]), look) + Term(
            LatentPrior(start), reads="latent", weight=weight
        )
        stream = Stream(loss, OPTIMISERS[optimiser](canvas.parameters(), lr=lr))
        return paint_batch(canvas, [stream], items=items, guides=guides, steps=steps, watch=watch)

    return session.paint(paint, steps=steps)


def whole_codes(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """The size rounded down to multiples of a code. Raises UsageError if it is smaller than a code."""
    height, width = (side // factor * factor for side in size)
    if not height or not width:
        raise UsageError(
            f"a picture of {size[0]}x{size[1]} is smaller than a code of this generator, {factor}x{factor} pixels: "
            f"give e.g. --size {4 * factor}",
            "too_small",
            size=size,
            factor=factor,
        )
    return height, width


def faults(
    prompt: list[str], prompts: Path | None, cut_method: str, cut_min: int | None, cut_pow: float
) -> Iterator[UsageError]:
    """Faults of combinations of arguments."""
    yield from call_faults(prompt, prompts)
    if cut_method != "original" and (cut_min is not None or cut_pow != 1):
        yield UsageError("--cut-pow and --cut-min need square cutouts: add --cut-method original", "not_original")
