"""Hacking: a guide's similarity of pictures and prompts minus that of judges, which guided nothing.

Similarity is a referee's cosine of picture and prompt, in units of what it gives real drawings: 1 as with their own
names, 0 as with all others'. Hacking is the guide's similarity minus the mean of the judges'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from robustclip import __version__
from robustclip.data.emoji import embedded_prompts, real_drawings, some_prompts
from robustclip.evaluation.generation.embeddings import embed, embed_texts
from robustclip.evaluation.generation.grids import PromptRecognition, paint_images
from robustclip.evaluation.generation.results import Column
from robustclip.evaluation.named import NamedReferee, load_named
from robustclip.evaluation.report import Measurement, Report, compare
from robustclip.runs.devices import pick_device, pick_dtype

JUDGES: Final = ("emoji-judge", "emoji-judge-disjoint")
AMONG: Final = 10  # names of R-Precision
PAINTED: Final = "clipag without views"
Similarity = Callable[[Float[Tensor, "n 3 h w"], Sequence[str]], Float[Tensor, " n"]]


def scaled(referee: NamedReferee) -> Similarity:
    """Cosine of pictures and prompts, scaled by real drawings: 1 as with their own names, 0 as with all others'."""
    drawings, shown = real_drawings()
    names = embed_texts(referee.referee, shown)
    cosines = embed(referee.referee, drawings.images, title=referee.name) @ names.embeddings.T
    places = names.index(shown)[:, None]
    own = cosines.gather(1, places).mean()
    other = cosines.scatter(1, places, 0).sum() / (cosines.numel() - len(cosines))

    def similarity(images: Float[Tensor, "n 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        seen = embed(referee.referee, images) * embed_texts(referee.referee, prompts).of(prompts)
        return (seen.sum(1) - other) / (own - other)

    return similarity


def hacking(
    similarities: Mapping[str, Similarity], guide: str, judges: Sequence[str], images: Tensor, prompts: Sequence[str]
) -> dict[Column, NDArray[Any]]:
    """The similarity of each picture by guide and judges, and hacking."""
    similar = {name: similarities[name](images, prompts).numpy() for name in (guide, *judges)}
    judged = sum(similar[name] for name in judges) / len(judges)
    found: dict[Column, NDArray[Any]] = {
        Column("similarity", name if name in judges else "guide"): value for name, value in similar.items()
    }
    return found | {Column("hacking"): similar[guide] - judged}


def paint(folder: Path, guide: str, count: int, settings: Mapping[str, Any]) -> Float[Tensor, "n 3 h w"]:
    """Pictures of `count` embedded prompts by `clipag` without views, which follow the guide's own gradient; in
    `folder`, where only missing ones are painted. Processes of a launcher share them out, so that all have to call it.

    `settings` are further arguments of `clipag`, such as batch_size and seed.
    """
    method = {"prompt": some_prompts(count), "referee": [guide], "augment": "none", "save_frames": False}
    return paint_images(method | dict(settings), folder)


def judged(guide: str, judges: Sequence[str], images: Float[Tensor, "n 3 h w"], setting: dict[str, Any]) -> Report:
    """R-Precision of the pictures of `paint` by the judges (task "synthesis"), and similarity by guide and judges, the
    judges' cosines and hacking (task "hacking").

    `setting` is the call's, with data, device, dtype and seed. No judge may be the guide (`check_judge`).
    """
    device, seed = pick_device(setting["device"]), setting["seed"]
    named, *jury = load_named([guide, *judges], device=device)
    prompts = some_prompts(len(images))
    recognised = PromptRecognition([one.prompt for one in embedded_prompts()], jury, [AMONG], seed)
    similarities = {one.name: scaled(one) for one in (named, *jury)}
    columns = recognised(images, prompts, cosines=True)
    columns |= hacking(similarities, named.name, [one.name for one in jury], images, prompts)
    rows = []
    for task in ("synthesis", "hacking"):
        measured = [
            Measurement(f"{metric} ({_whose(metric, judge, recognised)})", PAINTED, outcomes)
            for (metric, judge), outcomes in columns.items()
            if (outcomes.dtype == bool) == (task == "synthesis")
        ]
        rows += compare(task, {named.name: measured}, baseline=named.name, seed=seed)
    where = {"device": str(device), "dtype": str(pick_dtype(setting["dtype"], device)).removeprefix("torch.")}
    versions = {"robustclip": __version__, "torch": torch.__version__}
    return Report(setting | where | {"images": len(images), "versions": versions} | recognised.setting, {}, rows)


def _whose(metric: str, judge: str, recognised: PromptRecognition) -> str:
    if metric == "hacking":
        return f"judges {' and '.join(one.name for one in recognised.judges)}"
    return judge if judge == "guide" else f"judge {judge}"
