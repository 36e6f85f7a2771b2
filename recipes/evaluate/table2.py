"""CLIPAG's Table 2 in the embedded world: distances of picture sets to real ones, and CLIPScore."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from pydantic import PositiveFloat, PositiveInt

from robustclip.data.emoji import embedded_prompts, real_drawings
from robustclip.data.images import save_image
from robustclip.evaluation.generation.grids import overview, paint_set
from robustclip.evaluation.generation.judge import judge_pictures
from robustclip.evaluation.generation.measure import JudgeOptions
from robustclip.evaluation.generation.pictures import Pictures, from_tensor
from robustclip.evaluation.named import load_named
from robustclip.flags import TableFlags, flat
from robustclip.runs.devices import pick_device
from robustclip.runs.files import write_text
from robustclip.runs.folder import Run
from robustclip.synthesis.painted import Result

METRICS = ("frechet", "cmmd", "label-score", "clipscore", "cosine")

QUICK: Final = {"seeds": 1, "steps": 2, "views": 2, "batch_size": 16}


def recipe(
    *,
    control: Annotated[str, "non-robust guide of equal training time"] = "emoji-vanilla-long",
    robust: Annotated[str, "robust guide"] = "emoji-robust",
    judges: Annotated[list[str], "judging referees"] = ["emoji-judge", "emoji-judge-disjoint"],  # noqa: B006  (never changed)
    seeds: Annotated[PositiveInt, "pictures per prompt, with seeds from 0"] = 2,
    steps: PositiveInt = 32,
    views: PositiveInt = 8,
    lr: PositiveFloat = 0.02,
    batch_size: PositiveInt = 32,
    common: TableFlags = TableFlags(),
) -> dict[str, Any]:
    """Distance to real drawings, label score and CLIPScore: control, robust, and raw samples of the mixture.

    robustclip reproduce table2

    Pictures are of the 160 names of the embedded prompts, `--seeds` of each, by `clipag` with views from the mixture.
    Real drawings are of the same names, and no judge but emoji-judge-disjoint (which saw the unseen styles) was trained
    on any. Raw samples are each guide's choice among 1,000 candidates, unoptimised, and one drawn blindly a picture. In
    place of FID and IS stand the Frechet distance and CMMD of the judges' embeddings and the Inception Score's formula
    on their labels: a network trained on photographs says little of emoji. About 25 minutes on two cores; `--resume`
    goes on. Writes table.txt, judgement.json and .csv, pictures.json, contact_sheet.png, and all pictures.
    """
    arguments = flat(locals())
    names = [one for one in embedded_prompts() if one.concept is not None]
    run = Run.start(common.out, common.resume, recipe="table2", arguments=arguments, verb="reproduce")
    settings: dict[str, Any] = {"steps": steps, "views": views, "lr": lr, "batch_size": batch_size}
    if common.quick:
        names = names[:6]
        settings |= {"candidates": 50}
    prompts = run.folder / "prompts.jsonl"
    write_text(prompts, "".join(json.dumps({"id": one.id, "prompt": one.prompt}) + "\n" for one in names))
    settings |= common.where | {"prompts": prompts, "save_frames": False}
    settings |= {"seeds": [common.seed + more for more in range(seeds)]}
    with run:
        sets: dict[str, dict[str, Any]] = {
            "mixture, drawn blindly": {"referee": [robust], "steps": 0, "candidates": 1},
            f"mixture, {control}'s choice": {"referee": [control], "steps": 0},
            f"mixture, {robust}'s choice": {"referee": [robust], "steps": 0},
            control: {"referee": [control]},
            robust: {"referee": [robust]},
        }
        painted = {
            name: paint_set(run.folder / "sets" / str(number), settings | changed)
            for number, (name, changed) in enumerate(sets.items())
        }
        drawings, shown = real_drawings()
        chosen = [row for row, prompt in enumerate(shown) if prompt in {one.prompt for one in names}]
        reference = from_tensor(drawings.images[chosen], [shown[row] for row in chosen], name="real drawings")
        jury = load_named(judges, device=pick_device(common.device))
        report = judge_pictures(
            [_pictures(name, result) for name, result in painted.items()],
            [one.referee for one in jury],
            options=JudgeOptions(METRICS, seed=common.seed),
            reference=reference,
            device=pick_device(common.device),
        )
        report.save(run.folder)
        prompts_of_pictures = [item.prompt.title for item in painted[robust].items]
        images = {name: result.images for name, result in painted.items()}
        save_image(overview(images, prompts_of_pictures), run.folder / "contact_sheet.png")
        numbers = {
            f"{metric}, {name}": report.figure(metric, pictures=name, judge=jury[0].referee.card.name).value
            for metric in ("frechet", "clipscore")
            for name in painted
        }
        run.finish(numbers)
        return {"out": str(run.folder), **numbers}


def _pictures(name: str, result: Result) -> Pictures:
    items = result.items
    prompts = [item.prompt.title for item in items]
    return Pictures(name, result.images, prompts, [item.id for item in items], [item.seed for item in items])
