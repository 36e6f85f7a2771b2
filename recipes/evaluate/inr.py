"""Pixels against implicit neural representations, with a plain and a robust guide: recognition, distances, hacking."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final

from pydantic import PositiveInt
from torch import Tensor

from robustclip.data.emoji import embedded_prompts, real_drawings, some_prompts
from robustclip.evaluation.generation.grids import Columns, PromptRecognition, Study, paint_images
from robustclip.evaluation.generation.hacking import Similarity, hacking, scaled
from robustclip.evaluation.generation.judge import judge_pictures
from robustclip.evaluation.generation.measure import JudgeOptions
from robustclip.evaluation.generation.pictures import from_tensor
from robustclip.evaluation.generation.results import Column, Results
from robustclip.evaluation.named import load_named
from robustclip.flags import TableFlags, flat
from robustclip.runs.devices import pick_device
from robustclip.runs.files import write_text
from robustclip.runs.folder import Run

CANVASES: Final[dict[str, dict[str, Any]]] = {
    "start": {"recipe": "clipag", "steps": 0},
    "pixels": {"recipe": "clipag"},
    "INR": {"recipe": "inr"},
    "INR, corrected": {"recipe": "inr", "reference": "emoji/guide-styles"},
}

QUICK: Final = {"prompts": 6, "batch_size": 4}


def recipe(
    *,
    control: Annotated[str, "non-robust guide of equal training time"] = "emoji-vanilla-long",
    robust: Annotated[str, "robust guide"] = "emoji-robust",
    judges: Annotated[list[str], "judging referees"] = ["emoji-judge", "emoji-judge-disjoint"],  # noqa: B006  (never changed)
    prompts: Annotated[PositiveInt, "number of the 200 prompts, evenly spaced"] = 200,
    batch_size: PositiveInt = 16,
    common: TableFlags = TableFlags(),
) -> dict[str, Any]:
    """{pixels, INR} x {control, robust}: R-Precision, distances to real drawings, and hacking of the guide.

    robustclip reproduce inr --prompts 40

    Pixels by `clipag`, networks by `inr`, at 256 view passes each and from the same starts; INR also with targets
    corrected for the modality gap. Similarity is a referee's mean cosine in units of what it gives real drawings (1)
    and drawings of other names (0); hacking is the guide's minus the mean of the judges'. Three seconds a picture on
    one core. Writes table.md, results.json, judgement.json (Frechet distance, CMMD), contact_sheet.png, all pictures.
    """
    arguments = flat(locals())
    everything = [one.prompt for one in embedded_prompts()]
    texts = some_prompts(prompts)
    device = pick_device(common.device)
    run = Run.start(common.out, common.resume, recipe="inr", arguments=arguments, verb="reproduce")
    with run:
        file = run.folder / "prompts.txt"
        write_text(file, "".join(f"{text}\n" for text in texts))
        shared = common.where | {"prompts": file, "seed": common.seed, "save_frames": False}
        shared |= {"batch_size": batch_size} | ({"steps": 2, "views": 2, "candidates": 50} if common.quick else {})
        jury = load_named(judges, device=device)
        recognised = PromptRecognition(everything, jury, [10, 40], common.seed)
        compared = [(f"{guide}, INR", f"{guide}, pixels") for guide in (control, robust)]
        compared += [(f"{guide}, INR, corrected", f"{guide}, INR") for guide in (control, robust)]
        compared += [(f"{robust}, {canvas}", f"{control}, {canvas}") for canvas in CANVASES]
        study = Study(run, Results(common.seed, chance=recognised.chance, compared=compared), recognised.setting)
        alike = {one.name: scaled(one) for one in [*load_named([control, robust], device=device), *jury]}
        for canvas, changed in CANVASES.items():
            for guide in (control, robust):
                method = {key: value for key, value in changed.items() if key != "recipe"}
                make = partial(paint_images, shared | {"referee": [guide]} | method, recipe=changed["recipe"])
                measure = partial(measured, recognised, texts, guide, alike, [judge.name for judge in jury])
                study.row(f"{guide}, {canvas}", texts, make, measure, timed=canvas != "start")
        drawings, shown = real_drawings()
        report = judge_pictures(
            [from_tensor(images, texts, name=name) for name, images in study.pictures.items()],
            [judge.referee for judge in jury],
            options=JudgeOptions(("frechet", "cmmd"), seed=common.seed),
            reference=from_tensor(drawings.images, shown, name="real drawings"),
            device=device,
        )
        report.save(run.folder)
        return study.finish(Column("R-Precision@10", jury[0].name))


def measured(
    recognised: PromptRecognition,
    texts: Sequence[str],
    guide: str,
    alike: dict[str, Similarity],
    judges: Sequence[str],
    images: Tensor,
) -> Columns:
    """R-Precision by judges, similarity by guide and judges, and hacking, of each picture."""
    return dict(recognised(images, texts)) | hacking(alike, guide, judges, images, texts)
