"""Ablation of `clipag`: change one choice at a time, judge by referees that did not guide."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

from pydantic import PositiveInt

from robustclip.data.emoji import embedded_prompts, some_prompts
from robustclip.evaluation.generation.grids import PromptRecognition, Study, paint_images
from robustclip.evaluation.generation.results import Column, Results
from robustclip.evaluation.named import load_named
from robustclip.flags import TableFlags, flat
from robustclip.runs.devices import pick_device
from robustclip.runs.files import write_text
from robustclip.runs.folder import Run

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

QUICK: Final = {"prompts": 6, "batch_size": 4}


def recipe(
    *,
    referee: Annotated[str, "guiding referee"] = "emoji-robust",
    others: Annotated[list[str], "other guides to compare with"] = [],  # noqa: B006  (never changed)
    judges: Annotated[list[str], "judging referees"] = ["emoji-judge", "emoji-judge-disjoint"],  # noqa: B006
    prompts: Annotated[PositiveInt, "number of the 200 prompts, evenly spaced"] = 67,
    batch_size: PositiveInt = 32,
    common: TableFlags = TableFlags(),
) -> dict[str, Any]:
    """R-Precision of `clipag` with one of its settings changed at a time.

    robustclip reproduce ablation

    Candidates are drawn from all 200 prompts of the embedded world, and every row is compared with the default on the
    same prompts. About 15 minutes on two cores; `--resume` goes on. Writes table.txt, table.md, results.json and
    contact_sheet.png.
    """
    arguments = flat(locals())
    everything = [one.prompt for one in embedded_prompts()]
    changes = CHANGES | {f"guided by {other}": {"referee": [other]} for other in others}
    settings: dict[str, Any] = {"referee": [referee], "batch_size": batch_size}
    if common.quick:
        changes = {"from grey": CHANGES["from grey"]}
        settings |= {"quick": True}
    texts = some_prompts(prompts)
    run = Run.start(common.out, common.resume, recipe="ablation", arguments=arguments, verb="reproduce")
    with run:
        file = run.folder / "prompts.txt"
        write_text(file, "".join(f"{text}\n" for text in texts))
        settings |= common.where | {"prompts": file, "seed": common.seed, "save_frames": False}
        recognised = PromptRecognition(
            everything, load_named(judges, device=pick_device(common.device)), [10, 40], common.seed
        )
        results = Results(common.seed, chance=recognised.chance, compared=[(name, DEFAULT) for name in changes])
        study = Study(run, results, recognised.setting)
        rows: dict[str, dict[str, Any]] = {DEFAULT: {}} | changes
        for name, changed in rows.items():
            study.row(name, texts, partial(paint_images, settings | changed), partial(recognised, prompts=texts))
        return study.finish(Column("R-Precision@40", recognised.judges[0].name))
