"""CLIPAG's Table 1 in the embedded world: who paints what judges recognise, and what it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.data.prompts import embedded_prompts, prompts_path, real_drawings
from robustclip.devices import pick_device
from robustclip.evaluation.generation.grids import Grid
from robustclip.evaluation.generation.sets import overview, paint_set
from robustclip.evaluation.judges import load_judges
from robustclip.images import save_image
from robustclip.runs import ResumeFrom, Run, RunFolder
from robustclip.synthesis.painted import Result
from robustclip.synthesis.prompt_files import load_prompts
from robustclip.synthesis.session import PromptFile

REAL = {"real drawings, guide styles": False, "real drawings, unseen styles": True}


@dataclass(frozen=True)
class Cell:
    """One way to paint all prompts."""

    guide: str
    augment: bool
    canvas: Literal["pixels", "pyramid"]
    init: Literal["mixture", "noise"]
    optimised: bool = True

    def __str__(self) -> str:
        if not self.optimised:
            return "noise, unoptimised" if self.init == "noise" else f"{self.guide}'s choice of mixture, unoptimised"
        return f"{self.guide}, {'views' if self.augment else 'no views'}, {self.canvas}, from {self.init}"

    @property
    def folder(self) -> str:
        name = str(self).replace(", ", "_").replace("'", "").replace(" ", "-")
        return re.sub(r"[^\w.-]+", "-", name)  # a guide may be a folder, and its path is no way out of the run's

    @property
    def start(self) -> Cell:
        """The same, before the first step."""
        return Cell(self.guide, self.augment, self.canvas, self.init, optimised=False)


def recipe(
    *,
    control: Annotated[str, "the guide of equal training time that is not robust"] = "emoji-vanilla-long",
    robust: Annotated[str, "the guide that is"] = "emoji-robust",
    judges: Annotated[list[str], "who judge"] = ["emoji-judge", "emoji-judge-disjoint"],  # noqa: B006  (never changed)
    prompts: PromptFile = None,
    candidates: Annotated[list[PositiveInt], "of R-Precision"] = [10, 40],  # noqa: B006
    canvas: Annotated[list[Literal["pixels", "pyramid"]], "what is optimised"] = ["pixels", "pyramid"],  # noqa: B006
    init: Annotated[list[Literal["mixture", "noise"]], "where from"] = ["mixture", "noise"],  # noqa: B006
    steps: PositiveInt = 32,
    views: PositiveInt = 8,
    lr: PositiveFloat = 0.02,
    batch_size: PositiveInt = 32,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: NonNegativeInt = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """R-Precision of {control, robust} x {no views, views} x {pixels, pyramid} x {mixture, noise}, by two judges.

    robustclip reproduce table1

    Beside them the unoptimised starts and real drawings of the same names. All cells are painted by `clipag` with the
    same steps, so that they differ in what is named alone; a cell without views takes one pass a step, one with views
    `--views`. About an hour on two cores; `--resume` goes on where it was stopped. Writes table.txt, table.json with
    every picture's hits, contact_sheet.png, and all pictures.
    """
    arguments = dict(locals())
    path = prompts_path() if prompts is None else prompts
    named = load_prompts(path)
    run = Run.start(out, resume, recipe="table1", arguments=arguments, room="reproduce")
    settings: dict[str, Any] = {"steps": steps, "views": views, "lr": lr, "batch_size": batch_size}
    if quick:
        settings = {"steps": 2, "views": 2, "batch_size": 16, "candidates": 50}
        canvas, named = ["pixels"], named[:12]
        path = run.folder / "prompts.txt"
        path.write_text("".join(f"{one.prompt}\n" for one in named), encoding="utf-8")
        candidates = [10]
    settings |= {"prompts": path, "device": device, "dtype": dtype, "seed": seed, "ways": False}
    texts = [one.prompt.title for one in named]
    cells = [
        Cell(guide, augment, kind, start)
        for start in init
        for kind in canvas
        for augment in (False, True)
        for guide in (control, robust)
    ]
    starts = {str(cell.start): cell.start for cell in cells}
    with run:
        grid = Grid(texts, load_judges(judges, device=pick_device(device)), candidates, seed, groups(texts))
        if prompts is None and not quick:
            add_real(grid)
        pictures: dict[str, torch.Tensor] = {}
        for cell in [*starts.values(), *cells]:
            pictures[str(cell)] = painted(cell, run.folder / "cells" / cell.folder, settings).images
            grid.add(str(cell), pictures[str(cell)], texts)
        differences = list(pairs(cells))
        shares = [(str(cell), title) for cell in cells for title in REAL if cell.augment and title in grid.shown]
        grid.save(run.folder, differences, shares)
        save_image(overview(pictures, texts), run.folder / "contact_sheet.png")
        numbers = {
            str(cell): grid.rate(str(cell), grid.judges[0].name, candidates[-1]).interval.value for cell in cells
        }
        run.finish(numbers)
        return {"out": str(run.folder), **numbers}


def painted(cell: Cell, folder: Path, settings: dict[str, Any]) -> Result:
    """A cell's pictures."""
    named = {
        "referee": [cell.guide],
        "augment": "nudges" if cell.augment else "none",
        "canvas": cell.canvas,
        "init": cell.init,
    }
    return paint_set(folder, settings | named | ({} if cell.optimised else {"steps": 0}))


def pairs(cells: list[Cell]) -> Iterator[tuple[str, str]]:
    """What each cell is compared with: its start, and the control in its place."""
    control = cells[0].guide
    for cell in cells:
        yield str(cell), str(cell.start)
        if cell.guide != control:
            yield str(cell), str(Cell(control, cell.augment, cell.canvas, cell.init))


def groups(texts: list[str]) -> dict[str, frozenset[str]]:
    """The kinds of the embedded prompts."""
    kinds: dict[str, set[str]] = {}
    for one in embedded_prompts():
        if one.prompt in texts:
            kinds.setdefault(one.kind, set()).add(one.prompt)
    return {kind: frozenset(found) for kind, found in kinds.items()}


def add_real(grid: Grid) -> None:
    """A real drawing of each of the 160 names, in two rows: on which styles a judge was trained differs."""
    drawings, prompts = real_drawings()
    for title, unseen in REAL.items():
        rows: dict[str, int] = {}
        for row, (style, prompt) in enumerate(zip(drawings.styles, prompts, strict=True)):
            if (style in ("twemoji", "openmoji")) == unseen:
                rows.setdefault(prompt, row)
        grid.add(title, drawings.images[list(rows.values())], list(rows))
    grid.notes.append(
        "real drawings are of the 160 names; emoji-judge was trained on none of these, emoji-judge-disjoint on those "
        "of the unseen styles, and neither on any of a held-out name"
    )
