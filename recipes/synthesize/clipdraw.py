"""CLIPDraw (Frans et al. 2021) and CLIPDraw + CLIPAG: optimise vector strokes towards a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.canvases import Strokes
from robustclip.data.images import load_image, resize
from robustclip.drawing import Drawing, random_strokes
from robustclip.drawing.shapes import to_svg
from robustclip.drawing.svg_reader import read_svg
from robustclip.errors import UsageError
from robustclip.flags import PictureFlags, SynthesisFlags, flat
from robustclip.runs import terminal
from robustclip.runs.devices import check_memory
from robustclip.runs.files import is_file
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.prompts import Part, Prompt
from robustclip.synthesis.session import BestOf, By, PromptFile, Prompts, Referees, Session, Size, call_faults
from robustclip.synthesis.studio import paint_batch
from robustclip.synthesis.terms import Stream, Term, Terms, piecewise
from robustclip.views import Perspective, RandomResizedCrop, Views

NATIVE = 224  # pixels of CLIPDraw's canvas, the unit of its lengths and rates
NEGATIVES = ("A badly drawn sketch.", "Many ugly, messy drawings.")  # of its notebook, off by default there


def is_svg(init: str) -> bool:
    """Whether `init` is an SVG file, by its name."""
    return init.lower().endswith(".svg")


def _init(text: str) -> str:
    if text == "random":
        return text
    if not is_file(text):
        message = f"there is no file {text[:200]!r} to start from: give random, an SVG, or an image for colours"
        raise UsageError(message, "missing_file", path=text)
    if is_svg(text):
        read_svg(text, (NATIVE, NATIVE))
    else:
        load_image(text)
    return text


QUICK: Final = {"steps": 6, "strokes": 16, "views": 2, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (not mutated)
    *,
    prompts: PromptFile = None,
    referee: Referees = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    size: Size = None,
    normalise: Annotated[bool, "apply the referee's mean and std; CLIPDraw's default is --no-normalise"] = True,
    init: Annotated[str, AfterValidator(_init), "random, an SVG file, or an image whose colours are used"] = "random",
    strokes: PositiveInt = 128,
    curves: Annotated[PositiveInt, "maximum number of cubic Bezier curves per stroke"] = 3,
    reach: Annotated[PositiveFloat, "distance between control points, as a fraction of the side"] = 0.1,
    width: Annotated[PositiveFloat, "initial stroke width, in 1/224 of the side"] = 8.0,
    widest: Annotated[PositiveFloat, "maximum stroke width, in 1/224 of the side; the minimum is 1"] = 50.0,
    softness: Annotated[PositiveFloat, "edge softness in pixels; 1 is anti-aliasing"] = 1.0,
    steps: NonNegativeInt = 100,
    points_lr: Annotated[
        PositiveFloat, "learning rate of points in 1/224 of the side; x0.4 from half, x0.1 from 3/4 of the steps"
    ] = 3.0,
    widths_lr: Annotated[PositiveFloat, "learning rate of widths, in 1/224 of the side"] = 0.5,
    colours_lr: PositiveFloat = 0.03,
    augment: Annotated[bool, "random perspective and crop; --no-augment uses the picture itself"] = True,
    views: PositiveInt = 4,
    smallest_view: Annotated[float, Field(gt=0, le=1), "minimum area of a view, as a fraction of the picture"] = 0.7,
    largest_view: Annotated[float, Field(gt=0, le=1), "maximum area of a view"] = 0.9,
    negatives: Annotated[bool, "repel from 'badly drawn' and 'messy', each with --negative-weight"] = False,
    negative_weight: Annotated[PositiveFloat, Field(le=100)] = 0.3,
    best_of: BestOf = 1,
    by: By = None,
    pictures: PictureFlags = PictureFlags(),
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """CLIPDraw: optimise vector strokes (points, widths, colours) by a referee; writes pictures and SVG files.

    robustclip synthesize clipdraw "a green turtle" "a blue butterfly"

    Constants are those of clipdraw.ipynb (kvfrans/clipdraw 145dcc0), except for these: lengths and their rates are in
    224ths of the side, so that they are independent of the size; steps and, for the embedded referees' 64 pixels,
    width, number and rates of strokes are ours. CLIPDraw's are `--steps 1000 --no-normalise --strokes 256 --width 1
    --points-lr 1 --widths-lr 0.1 --colours-lr 0.01`. CLIPDraw + CLIPAG changes only `--referee`.
    """
    session = Session.open("clipdraw", flat(locals()), views=views)
    guides, unit = session.guides, min(session.size) / NATIVE
    svg = read_svg(init, session.size) if is_svg(init) else None
    area = (smallest_view, largest_view)
    look = Views(views, (Perspective(0.5, padding=1.0), RandomResizedCrop(guides.size, area)), name="perspective, crop")
    rates = {"points": points_lr * unit, "widths": widths_lr * unit, "colours": colours_lr}

    def start(items: Sequence[Item]) -> Drawing:
        if svg is not None:
            return svg[0].repeated(len(items)).to(guides.device)
        generators = [item.generator("start") for item in items]
        return random_strokes(
            strokes, session.size, generators, curves=(1, curves), reach=reach, width=width * unit, device=guides.device
        )

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        prompts = [item.prompt for item in items]
        if negatives:
            prompts = [Prompt((*one.parts, *(Part(text, -negative_weight) for text in NEGATIVES))) for one in prompts]
        canvas = Strokes(start(items), session.size, widths=(unit, widest * unit), softness=softness)
        if init != "random" and svg is None:
            image = resize(load_image(init)[None], session.size).clamp(0, 1)
            canvas.encode(image.expand(len(items), -1, -1, -1).to(guides.device))
        cosine = guides.cosine(prompts, normalise=normalise)
        groups = [
            {"name": name, "params": parameters, "lr": rates[name]} for name, parameters in canvas.groups().items()
        ]
        stream = Stream(
            Terms((Term(cosine, look if augment else None),)),
            torch.optim.Adam(groups),
            schedule={"points": piecewise(steps, {0.5: 0.4, 0.75: 0.1})},
        )
        painted = paint_batch(canvas, [stream], items=items, guides=guides, steps=steps, watch=watch)
        drawing = canvas.drawing
        painted.texts["svg"] = [
            to_svg(drawing.picture(row), session.size, title=item.prompt.title) for row, item in enumerate(items)
        ]
        return painted

    if svg is not None and svg[1]:
        session.run.note(left_out=svg[1])
        terminal.note(f"{Path(init).name}: left out {', '.join(svg[1])}")
    return session.paint(paint, steps=steps)


def faults(
    prompt: list[str],
    prompts: Path | None,
    strokes: int,
    curves: int,
    width: float,
    widest: float,
    smallest_view: float,
    largest_view: float,
) -> Iterator[str | UsageError]:
    """Faults of combinations of arguments."""
    try:  # points, gradients and both moments of Adam
        check_memory(4 * strokes * 2 * (3 * curves + 1) * 4, f"--strokes {strokes} of {curves} curves")
    except UsageError as error:
        yield str(error)
    if widest < 1:
        yield f"--widest {widest:g} is below 1, the narrowest stroke"
    elif not 1 <= width <= widest:
        yield f"--width {width:g} is not from 1, the narrowest stroke, to --widest {widest:g}"
    yield from call_faults(prompt, prompts)
    if smallest_view > largest_view:
        yield f"--smallest-view {smallest_view:g} is above --largest-view {largest_view:g}: swap them"
