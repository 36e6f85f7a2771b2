"""CLIPAG's Table 1 in the embedded world: R-Precision of generated pictures by method and referee, with costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import PositiveFloat, PositiveInt

from robustclip.data.emoji import PREFIX, embedded_prompts, embedded_styles, emoji_drawing, prompts_path, real_drawings
from robustclip.evaluation.generation.embeddings import content_similarity, directional_similarity, embed
from robustclip.evaluation.generation.grids import Columns, PromptRecognition, Study, paint_set
from robustclip.evaluation.generation.results import Column, Results
from robustclip.evaluation.named import NamedReferee, load_named
from robustclip.flags import TableFlags, flat
from robustclip.referees.image_judges import Aesthetics, load_aesthetics
from robustclip.runs.devices import pick_device
from robustclip.runs.files import write_text
from robustclip.runs.folder import Run
from robustclip.synthesis.items import Named, load_prompts
from robustclip.synthesis.session import PromptFile

REAL = {"real drawings, guide styles": False, "real drawings, unseen styles": True}
Init = Literal["mixture", "noise", "own"]
Framework = Literal["pixels", "pyramid", "strokes", "vqgan", "styler", "styler-pixels"]
STYLED = ("styler", "styler-pixels")
OWN = {"strokes": "random strokes", "vqgan": "random codes", "styler": "contents", "styler-pixels": "contents"}
"""What canvases start from that have a start of their own."""
SOURCE = "an emoji"  # of the restyled contents, in words
RESTYLING_LR = 0.01  # of `styler-pixels`, chosen on other pairs; CLIPAG does not publish its own


@dataclass(frozen=True)
class Cell:
    """One way to paint all prompts."""

    guide: str
    augment: bool
    canvas: Framework
    init: Init
    optimised: bool = True

    def __str__(self) -> str:
        if self.canvas in OWN:
            start = OWN[self.canvas]
            views = "views" if self.augment else "no views"
            return f"{self.guide}, {views}, {self.canvas}" if self.optimised else f"{start}, unoptimised"
        if not self.optimised:
            return "noise, unoptimised" if self.init == "noise" else f"{self.guide}'s choice of mixture, unoptimised"
        return f"{self.guide}, {'views' if self.augment else 'no views'}, {self.canvas}, from {self.init}"

    @property
    def start(self) -> Cell:
        """The same, before the first step."""
        return replace(self, optimised=False)


QUICK: Final = dict.fromkeys(("steps", "views", "stroke_steps", "vqgan_steps", "styler_steps", "slow_pictures"), 2) | {
    "canvas": ["pixels", "strokes", "vqgan", "styler"],
    "pictures": 12,
    "candidates": [10],
    "batch_size": 16,
}


def recipe(
    *,
    control: Annotated[str, "non-robust guide of equal training time"] = "emoji-vanilla-long",
    robust: Annotated[str, "robust guide"] = "emoji-robust",
    judges: Annotated[list[str], "judging referees"] = ["emoji-judge", "emoji-judge-disjoint"],  # noqa: B006  (never changed)
    prompts: PromptFile = None,
    candidates: Annotated[list[PositiveInt], "candidates of R-Precision"] = [10, 40],  # noqa: B006
    canvas: Annotated[list[Framework], "methods"] = ["pixels", "pyramid", "strokes", "vqgan", "styler"],  # noqa: B006
    init: Annotated[list[Literal["mixture", "noise"]], "init of pixels and pyramid"] = ["mixture", "noise"],  # noqa: B006
    pictures: Annotated[
        PositiveInt | None, "prompts for pixels, pyramid and strokes, evenly spaced; default: all"
    ] = None,
    slow_pictures: Annotated[PositiveInt, "prompts for vqgan and styler"] = 50,
    steps: Annotated[PositiveInt, "for pixels and pyramid"] = 32,
    views: Annotated[PositiveInt, "for pixels and pyramid"] = 8,
    lr: Annotated[PositiveFloat, "for pixels and pyramid"] = 0.02,
    stroke_steps: PositiveInt = 80,
    vqgan_steps: PositiveInt = 80,
    styler_steps: PositiveInt = 80,
    aesthetics: Annotated[Path | None, "weights of an aesthetic predictor, .pth or .safetensors"] = None,
    batch_size: PositiveInt = 32,
    common: TableFlags = TableFlags(),
) -> dict[str, Any]:
    """R-Precision of {control, robust} x {no views, views} x {pixels, pyramid, strokes, VQGAN, styler}, by two judges.

    robustclip reproduce table1

    Beside them the unoptimised starts and real drawings of the same names. Pixels and pyramid are painted by `clipag`
    from each of `--init`, strokes by `clipdraw`, codes by `vqgan`, and restyled drawings by `clipstyler`, which have
    prompts of their own (50 pairs of a drawing and a style; `styler-pixels` optimises pixels without the network).
    Cells of a canvas have the same steps, so that they differ in what is named alone; a cell without views takes one
    pass a step. `--canvas`, `--init` and `--pictures` take less; `--resume` goes on where it was stopped. Steps and
    views are in proportion to 64 pixels: a tenth of the papers'. Writes table.txt, table.md, results.json (R-Precision,
    cosines by judges with preferences, seconds, and how restyled drawings moved), contact sheets, and all pictures.
    """
    arguments = flat(locals())
    path = prompts_path() if prompts is None else prompts
    named = load_prompts(path)
    run = Run.start(common.out, common.resume, recipe="table1", arguments=arguments, verb="reproduce")
    of_steps = {"strokes": stroke_steps, "vqgan": vqgan_steps} | dict.fromkeys(STYLED, styler_steps)
    settings = common.where | {"batch_size": batch_size, "seed": common.seed, "save_frames": False}
    pixels: dict[str, Any] = {"steps": steps, "views": views, "lr": lr}
    if common.quick:
        named = named[:12]
        pixels |= {"candidates": 50}
    texts = [one.prompt.title for one in named]
    cells = list(cells_of(canvas, init, (control, robust)))
    starts = {str(cell.start): cell.start for cell in cells}
    with run:
        jury = load_named(judges, device=pick_device(common.device))
        predictor = None if aesthetics is None else load_aesthetics(aesthetics)
        if predictor is not None and predictor.width not in {judge.referee.width for judge in jury}:
            predictor(torch.zeros(1, jury[0].referee.width))  # says which CLIP must judge
        recognised = PromptRecognition(texts, jury, candidates, common.seed)
        compared = [pair for cell in cells for pair in pairs(cell, control)]
        shares = [(str(cell), title) for cell in cells if cell.augment and cell.canvas not in STYLED for title in REAL]
        results = Results(common.seed, groups(texts), recognised.chance, compared=compared, shares=shares)
        study = Study(run, results, recognised.setting | {"aesthetics": predictor and predictor.describe()})
        if prompts is None and not common.quick:
            add_real(results, recognised)
        for cell in [*starts.values(), *cells]:
            most = slow_pictures if cell.canvas in ("vqgan", *STYLED) else pictures
            asked: dict[str, Any] = {"steps": of_steps[cell.canvas]} if cell.init == "own" else dict(pixels)
            if cell.canvas in STYLED:
                asked |= styled(most)
                shown = [
                    f"{content.removeprefix(PREFIX)}, {style}"
                    for content, style in zip(asked["content"], asked["prompt"], strict=True)
                ]
                measure: Callable[[torch.Tensor], Columns] = partial(restyled, jury, asked)
            else:
                asked["prompts"] = subset(run.folder, named, most)
                shown = [one.prompt.title for one in load_prompts(asked["prompts"])]
                measure = partial(recognised_and_liked, recognised, predictor, shown)
            study.row(str(cell), shown, partial(painted, cell, settings | asked), measure, timed=cell.optimised)
        painting = [str(cell) for cell in cells if cell.canvas not in STYLED]
        return study.finish(Column(f"R-Precision@{candidates[-1]}", jury[0].name), painting)


def cells_of(canvases: Sequence[Framework], inits: Sequence[Init], guides: Sequence[str]) -> Iterator[Cell]:
    """All ways to paint, canvas by canvas."""
    for canvas in canvases:
        starts: Sequence[Init] = ("own",) if canvas in OWN else inits
        for init in starts:
            for augment in (False, True):
                yield from (Cell(guide, augment, canvas, init) for guide in guides)


def painted(cell: Cell, settings: dict[str, Any], folder: Path) -> torch.Tensor:
    """A cell's pictures (n,3,h,w)."""
    method: dict[str, dict[str, Any]] = {
        "strokes": {"augment": cell.augment},
        "vqgan": {"augment": cell.augment, "init": "codes"} | ({} if cell.augment else {"views": 1}),
        "styler": {"augment": cell.augment},
        "styler-pixels": {"augment": cell.augment, "canvas": "pixels", "lr": RESTYLING_LR},
    }
    named = method.get(cell.canvas) or {
        "augment": "nudges" if cell.augment else "none",
        "canvas": cell.canvas,
        "init": cell.init,
    }
    named |= {"referee": [cell.guide]} | ({} if cell.optimised else {"steps": 0})
    recipe = {"strokes": "clipdraw", "vqgan": "vqgan"} | dict.fromkeys(STYLED, "clipstyler")
    if not cell.optimised and cell.canvas == "styler":
        named["canvas"] = "pixels"  # the contents themselves; a network that nothing trained gives noise
    return paint_set(folder, settings | named, recipe.get(cell.canvas, "clipag")).images


def subset(folder: Path, named: Sequence[Named], most: int | None) -> Path:
    """A file of at most so many prompts, spread evenly over the list."""
    chosen = list(named)
    if most is not None and most < len(named):
        chosen = [named[index * len(named) // most] for index in range(most)]
    path = folder / f"prompts-{len(chosen)}.jsonl"
    write_text(path, "".join(json.dumps({"id": one.id, "prompt": one.prompt.title}) + "\n" for one in chosen))
    return path


def styled(most: int | None) -> dict[str, Any]:
    """The committed pairs, as arguments of `clipstyler`."""
    chosen = embedded_styles()[:most]
    return {
        "prompt": [one.style for one in chosen],
        "content": [f"{PREFIX}{one.content}" for one in chosen],
        "pairs": True,
        "source": SOURCE,
    }


def recognised_and_liked(
    recognised: PromptRecognition, predictor: Aesthetics | None, prompts: Sequence[str], images: torch.Tensor
) -> Columns:
    """What judges say of pictures and their prompts."""
    found = recognised(images, prompts, cosines=True)
    for judge in recognised.judges:
        if predictor is not None and judge.referee.width == predictor.width:
            found[Column("aesthetics", judge.name)] = predictor(embed(judge.referee, images)).numpy()
    return found


def restyled(jury: Sequence[NamedReferee], asked: dict[str, Any], images: torch.Tensor) -> Columns:
    """What judges say of restyled pictures: the cosine of how picture and text moved, and of picture and content."""
    contents = torch.stack([emoji_drawing(one.removeprefix(PREFIX)) for one in asked["content"]])
    found = {}
    for judge in jury:
        along = directional_similarity(judge.referee, images, contents, asked["prompt"], SOURCE)
        found[Column("directional", judge.name)] = along.numpy()
        found[Column("content", judge.name)] = content_similarity(judge.referee, images, contents).numpy()
    return found


def pairs(cell: Cell, control: str) -> Iterator[tuple[str, str]]:
    """What a cell is compared with: its start, and the control in its place."""
    yield str(cell), str(cell.start)
    if cell.guide != control:
        yield str(cell), str(replace(cell, guide=control))


def groups(texts: list[str]) -> dict[str, frozenset[str]]:
    """The kinds of the embedded prompts."""
    kinds: dict[str, set[str]] = {}
    for one in embedded_prompts():
        if one.prompt in texts:
            kinds.setdefault(one.kind, set()).add(one.prompt)
    return {kind: frozenset(found) for kind, found in kinds.items()}


def add_real(results: Results, recognised: PromptRecognition) -> None:
    """A real drawing of each of the 160 names, in two rows: on which styles a judge was trained differs."""
    drawings, prompts = real_drawings()
    for title, unseen in REAL.items():
        rows: dict[str, int] = {}
        for row, (style, prompt) in enumerate(zip(drawings.styles, prompts, strict=True)):
            if (style in ("twemoji", "openmoji")) == unseen:
                rows.setdefault(prompt, row)
        results.add(title, list(rows), recognised(drawings.images[list(rows.values())], list(rows)))
    results.notes.append(
        "real drawings are of the 160 names; emoji-judge was trained on none of these, emoji-judge-disjoint on those "
        "of the unseen styles, and neither on any of a held-out name"
    )
