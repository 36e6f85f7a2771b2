"""What each choice in `clipag` is worth: one changed at a time, judged by referees that did not guide."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import torch
from pydantic import NonNegativeInt, PositiveInt

from robustclip.data.images import save_image
from robustclip.data.prompts import embedded_prompts
from robustclip.evaluation.generation.grids import Grid
from robustclip.evaluation.generation.sets import overview, paint_set
from robustclip.evaluation.judges import load_judges
from robustclip.runs.devices import pick_device
from robustclip.runs.files import atomic_write
from robustclip.runs.folder import ResumeFrom, Run, RunFolder

DEFAULT: Final = "clipag"
CHANGES: Final[dict[str, dict[str, Any]]] = {
    "no total variation": {"total_variation": 0.0},
    "total variation 3": {"total_variation": 3.0},
    "lr 0.01": {"lr": 0.01},
    "lr 0.04": {"lr": 0.04},
    "16 steps": {"steps": 16},
    "64 steps": {"steps": 64},
    "no noise": {"noise": 0.0},
    "DiffAugment": {"augment": "diffaug"},
    "4 views and 4 patches": {"views": 4, "patches": 4},
    "2 views": {"views": 2},
    "pyramid": {"canvas": "pyramid"},
    "mixture at temperature 0.5": {"temperature": 0.5},
    "from grey": {"init": "grey"},
    "from noise": {"init": "noise"},
}


def recipe(
    *,
    referee: Annotated[str, "who guides"] = "emoji-robust",
    others: Annotated[list[str], "guides to compare with it, all else equal"] = [],  # noqa: B006  (never changed)
    judges: Annotated[list[str], "who judge"] = ["emoji-judge", "emoji-judge-disjoint"],  # noqa: B006
    prompts: Annotated[PositiveInt, "so many of the 200, evenly spread"] = 67,
    batch_size: PositiveInt = 32,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: NonNegativeInt = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """R-Precision of `clipag` with one of its settings changed at a time.

    robustclip reproduce ablation

    Candidates are drawn from all 200 prompts of the embedded world, and every row is compared with the default on the
    same prompts. About 15 minutes on two cores; `--resume` goes on. Writes table.txt, table.json, contact_sheet.png.
    """
    if quick:
        prompts, batch_size = 6, 4
    arguments = dict(locals())
    everything = [one.prompt for one in embedded_prompts()]
    changes = CHANGES | {f"guided by {other}": {"referee": [other]} for other in others}
    settings: dict[str, Any] = {"referee": [referee], "batch_size": batch_size}
    if quick:
        changes = {"from grey": CHANGES["from grey"]}
        settings |= {"quick": True}
    chosen = embedded_prompts()[:: max(1, len(everything) // prompts)][:prompts]
    texts = [one.prompt for one in chosen]
    run = Run.start(out, resume, recipe="ablation", arguments=arguments, room="reproduce")
    with run:
        file = run.folder / "prompts.txt"
        with atomic_write(file, "w") as written:
            written.writelines(f"{text}\n" for text in texts)
        settings |= {"prompts": file, "device": device, "dtype": dtype, "seed": seed, "ways": False}
        grid = Grid(everything, load_judges(judges, device=pick_device(device)), [10, 40], seed)
        rows_of: dict[str, dict[str, Any]] = {DEFAULT: {}} | changes
        rows: dict[str, torch.Tensor] = {}
        for name, changed in rows_of.items():
            rows[name] = paint_set(run.folder / "sets" / re.sub(r"[^\w.-]+", "-", name), settings | changed).images
            grid.add(name, rows[name], texts)
            grid.save(run.folder, [(one, DEFAULT) for one in rows if one != DEFAULT])  # what is known so far
        save_image(overview(rows, texts), run.folder / "contact_sheet.png")
        numbers = {name: grid.rate(name, grid.judges[0].name, 40).interval.value for name in rows}
        run.finish(numbers)
        return {"out": str(run.folder), **numbers}
