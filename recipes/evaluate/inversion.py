"""Referee-Can-Play's ablation tables in the embedded world, on pairs of coloured objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.data.images import resize
from robustclip.data.pairs import Pair, compose_pair, compositional_prompts
from robustclip.diffusion.mutual_information import MARK
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.errors import RunError, UsageError
from robustclip.evaluation.generation.compositional import CHANCE, EVERY, Score, found_by_judges, judge_pairs
from robustclip.evaluation.generation.grids import Columns, Study, draw_set, paint_set, resumed_rows
from robustclip.evaluation.generation.results import Column, Results
from robustclip.flags import SynthesisFlags, flat
from robustclip.losses.scores import Pairing
from robustclip.referees.blip2 import Blip2
from robustclip.referees.pair_readers import load_pair_reader, pair_fingerprint
from robustclip.referees.registry import load_referee
from robustclip.referees.smoothed import fingerprint
from robustclip.runs.devices import pick_device
from robustclip.runs.files import write_text
from robustclip.runs.folder import Run
from robustclip.synthesis.items import Item, Seeds, items_of
from robustclip.synthesis.prompts import Prompt
from robustclip.views import Pooled, Views
from robustclip.views.policies import inverted

ROBUST, VANILLA = "emoji-robust", "emoji-vanilla-long"
ALSO_READER: Final = None  # in a cell's referees: who reads pairs in all others
SGD: Final[dict[str, Any]] = {"optimiser": "sgd", "lr": 1.0}
CELLS: Final[dict[str, dict[str, Any]]] = {
    # Table 3: what pulls. All others are compared with "both", which is Alg. 1.
    "both": {},
    "vlm": {"sds": False},
    "sds": {"vlm": False},
    "sds-guidance-30": {"vlm": False, "guidance": 30.0},
    # Table 7: the diffusion model's own pictures, by guidance.
    "sample-7.5": {"guidance": 7.5},
    "sample-30": {"guidance": 30.0},
    # The guidance of SDS (ours). "both" has the mode's 5, the paper 30.
    "guidance-10": {"guidance": 10.0},
    "guidance-30": {"guidance": 30.0},
    # Tables 1 and 2: augmented copies, with SDS and without it, where nothing but they keep it a picture.
    "copies-0": {"copies": 0},
    "copies-15": {"copies": 15},
    "copies-30": {"copies": 30},
    "vlm-copies-0": {"sds": False, "copies": 0},
    # Whose gradient (ours). "both" is the pair reader's.
    "referee-vanilla": {"referee": [VANILLA]},
    "referee-robust": {"referee": [ROBUST]},
    "referee-blip2+robust": {"referee": [ALSO_READER, ROBUST]},
    "referee-mi": {"referee": ["mi:emoji-diffusion"]},  # the diffusion model's own mutual information
    "referee-blip2+mi": {"referee": [ALSO_READER, "mi:emoji-diffusion"]},
    "referee-vanilla-copies-0": {"referee": [VANILLA], "copies": 0},
    "referee-robust-copies-0": {"referee": [ROBUST], "copies": 0},
    "referee-blip2+robust-copies-0": {"referee": [ALSO_READER, ROBUST], "copies": 0},
    "vlm-vanilla-copies-0": {"referee": [VANILLA], "sds": False, "copies": 0},
    "vlm-robust-copies-0": {"referee": [ROBUST], "sds": False, "copies": 0},
    "vlm-robust": {"referee": [ROBUST], "sds": False},
    # Table 4: the moving average. "both" restarts from it.
    "ema-none": {"ema": "none"},
    "ema-plain": {"ema": "plain"},
    # Table 5: the weight of SDS. "both" falls from 800 to 400 by a cosine.
    "sds-constant-800": {"sds_weight": 800.0, "sds_last": 800.0},
    "sds-constant-400": {"sds_weight": 400.0, "sds_last": 400.0},
    # Table 6: the referee's gradient in norms of that of SDS. "both" is Adam at 2, which hardly feels a scale.
    "w1-1-adam": {"w1": 1.0},
    "w1-3-adam": {"w1": 3.0},
    "w1-1-sgd": {"w1": 1.0} | SGD,
    "w1-2-sgd": {"w1": 2.0} | SGD,
    "w1-3-sgd": {"w1": 3.0} | SGD,
    # Table 9: noise on the latents. "both" has 0.2.
    "noise-0": {"noise": 0.0},
    "noise-0.1": {"noise": 0.1},
    "noise-0.4": {"noise": 0.4},
    # What the modes differ by, all at once. "both" is the mode fixed.
    "mode-faithful": {"mode": "faithful"},
    "mode-released": {"mode": "released"},
}
HEADLINE: Final = [
    *("both", "vlm", "sds", "sample-7.5", "sample-30", "copies-0", "vlm-copies-0"),
    *("referee-vanilla", "referee-robust", "referee-blip2+robust"),
]
QUICK: Final = {"prompts": 2, "steps": 3, "copies": 2, "cells": ["both", "sample-7.5"]}
BASE, NOISE, REAL = "both", "decoded noise", "real scenes"
COPIES: Final = 30  # of the loss over augmented copies (Table 2)
SPLIT: Final = "unseen-styles"  # of the real scenes: no guide and no diffusion model saw drawings of it
SAMPLING: Final = 50  # steps of DDIM
ASKED: Final = ("prompts", "seeds", "steps", "copies", "reader", "model", "judges", "score", "dtype", "quick")
"""What one table's cells have in common."""
SHOWN: Final = ("right", "attributes", "both", "L", "L augmented")  # results.json has the two things by themselves too


def recipe(
    *,
    cells: Annotated[list[str], "row names; default: the headline's"] = HEADLINE,
    judges: Annotated[list[str], "judges"] = ["emoji-blip2-judge", "emoji-blip2-judge-disjoint"],  # noqa: B006  (never changed)
    score: Annotated[Score, "score of a picture and a text"] = "sum",
    reader: Annotated[str, "guide of rows that name no other; its losses are reported"] = "emoji-blip2",
    model: Annotated[str, "diffusion model"] = "emoji-diffusion",
    prompts: Annotated[PositiveInt, "number of the 60 prompts, from the first"] = 60,
    seeds: Seeds = [0],  # noqa: B006
    steps: PositiveInt = 160,
    copies: Annotated[NonNegativeInt, "augmented views per step, unless the row sets it"] = 8,
    budget: Annotated[PositiveFloat | None, "time budget in minutes: no row starts that would exceed it"] = None,
    batch_size: PositiveInt = 60,
    common: SynthesisFlags = SynthesisFlags(),
) -> dict[str, Any]:
    """Two-object R-Precision of Referee-Can-Play and its parts, by two judges that took no part.

    robustclip reproduce inversion

    60 prompts of two coloured things that no model was trained on. A judge finds a picture right where its caption wins
    against 29 others: colours exchanged, another colour, another thing, one of them missing. First come decoded noise,
    and real scenes in unseen styles, the most that judges can find. `--cells` names rows, and a wrong name tells the
    list; `--budget` stops in time; `--resume` goes on, with more cells too, and what is painted is not painted again.
    160 steps as in the paper; 8 copies where it has 30, for two cores. Writes table.txt, table.md,
    results.json, contact_sheet.png, and all pictures with a sheet of each cell.
    """
    arguments = flat(locals())
    seeds = arguments["seeds"]
    if common.resume is not None:
        asked = resumed_rows(common.resume, arguments, same=ASKED, rows="cells")
        arguments["cells"] = cells = [cell for cell in asked if cell in CELLS]
    pairs = compositional_prompts()[:prompts]
    device = pick_device(common.device)
    jury = {name: load_pair_reader(name, device) for name in judges}
    guide = load_pair_reader(reader, device)
    refuse_guides(jury, guide, cells)
    run = Run.start(common.out, common.resume, recipe="inversion", arguments=arguments, verb="reproduce")
    items = items_of([Prompt.literal(str(pair)) for pair in pairs], seeds)
    shown = [pair for pair in pairs for _ in seeds]
    sampling_steps = 2 if common.quick else SAMPLING
    setting = {name: arguments[name] for name in ASKED} | {
        "steps": steps,
        "copies": copies,
        "prompts": len(pairs),
        "sampling_steps": sampling_steps,
        "fingerprints": {name: pair_fingerprint(one) for name, one in {**jury, reader: guide}.items()},
    }
    with run:
        file = run.folder / f"prompts-{len(pairs)}.txt"
        write_text(file, "".join(f"{pair}\n" for pair in pairs))
        shared: dict[str, Any] = {"prompts": file, "seeds": seeds, "model": model, "referee": [reader]}
        shared |= {"steps": steps, "sds_only": min(10, steps // 4), "copies": copies, "batch_size": batch_size}
        shared |= common.where | {"save_frames": False}
        compared = [(cell, BASE) for cell in (NOISE, REAL, *cells) if cell != BASE]
        study = Study(run, Results(chance=CHANCE, shown=SHOWN, compared=compared), setting, budget)

        def judged(images: torch.Tensor) -> Columns:
            verdicts = {name: judge_pairs(one, images, shown, score=score) for name, one in jury.items()}
            return found_by_judges(verdicts) | losses(guide, images, items, 2 if common.quick else COPIES)

        def size() -> tuple[int, int]:
            return study.pictures[NOISE].shape[-2], study.pictures[NOISE].shape[-1]

        def painted(cell: str, folder: Path) -> torch.Tensor:
            if cell == REAL:  # as large as what is painted, so that judges and sheets take all alike
                return resize(draw_set(folder, items, scenes), size())
            if cell.startswith("sample-"):
                draw = sampling(cell, model, size(), sampling_steps, device, common.dtype)
                return draw_set(folder, items, draw, batch_size)
            return inverted_from(folder, shared | changed(cell, reader), items)

        for cell in [NOISE, REAL, *cells]:
            study.row(cell, [str(pair) for pair in shown], partial(painted, cell), judged, timed=cell in CELLS)
        for judge in study.results.at_chance(REAL, "right"):
            run.warn(
                f"{judge} finds the captions of real scenes no surer than by chance: what it says of others is void"
            )
        return study.finish(Column("right", EVERY))


def changed(cell: str, reader: str) -> dict[str, Any]:
    """A cell's own arguments of `synthesize referee-can-play`."""
    asked: dict[str, Any] = {"steps": 0, "copies": 0} if cell == NOISE else dict(CELLS[cell])
    if "referee" in asked:
        asked["referee"] = [reader if name is ALSO_READER else name for name in asked["referee"]]
    return asked


def refuse_guides(jury: Mapping[str, Blip2], guide: Blip2, cells: Sequence[str]) -> None:
    """Raises UsageError for a judge that guides, or looks through a guide's own image tower: pictures made to please a
    referee please it whatever they show."""
    named = dict.fromkeys(name for cell in cells for name in CELLS[cell].get("referee", []) if name is not ALSO_READER)
    clips = [name for name in named if not name.startswith(MARK)]
    towers = {guide.card.architecture.get("fingerprint"): guide.card.name}
    towers |= {fingerprint(load_referee(name)): name for name in clips}
    for name, judge in jury.items():
        same = pair_fingerprint(judge) == pair_fingerprint(guide)
        tower = judge.card.architecture.get("fingerprint")
        if same or (tower is not None and tower in towers):
            problem = "guides" if same else f"looks through the image tower of the guide {towers[tower]}"
            raise UsageError(
                f"the judge {name!r} {problem}: pictures made to please a referee please it whatever they show. Judge "
                "with others, e.g. --judges emoji-blip2-judge emoji-blip2-judge-disjoint",
                "judge_guides" if same else "same_tower",
                judge=name,
            )


def inverted_from(folder: Path, asked: Mapping[str, Any], items: Sequence[Item]) -> torch.Tensor:
    """Pictures of `synthesize referee-can-play` with these arguments, in the order of the items."""
    result = paint_set(folder, asked, "referee_can_play")
    if [(one.prompt.title, one.seed) for one in result.items] != [(one.prompt.title, one.seed) for one in items]:
        raise RunError(f"{folder} has other pictures than those asked for: start a new run")
    return result.images


def scenes(items: Sequence[Item]) -> torch.Tensor:
    """Composed scenes of items, of drawings in styles that no guide has seen."""
    return torch.stack([compose_pair(Pair.parse(one.prompt.title), split=SPLIT, seed=one.seed) for one in items])


def sampling(
    cell: str, model: str, size: tuple[int, int], steps: int, device: torch.device, dtype: str
) -> Callable[[Sequence[Item]], torch.Tensor]:
    """Plain DDIM samples of the diffusion model for the rows that need them; loaded lazily."""

    def draw(items: Sequence[Item]) -> torch.Tensor:
        painter = load_diffusion(model, device, dtype=dtype)
        streams = [item.generator("sample", device=device) for item in items]
        texts = [item.prompt.title for item in items]
        guidance = CELLS[cell]["guidance"]
        return painter.sample(texts, size=size, steps=steps, guidance=guidance, generators=streams).cpu()

    return draw


@torch.no_grad()
def losses(guide: Blip2, images: torch.Tensor, items: Sequence[Item], copies: int) -> dict[Column, NDArray[Any]]:
    """The pair reader's loss L of each picture, and its mean over augmented copies (Table 2)."""
    look = Views(copies, (Pooled(guide.image_size), *inverted()))
    found: dict[str, list[float]] = {"L": [], "L augmented": []}
    for image, item in zip(images, items, strict=True):
        shown = image[None].to(guide.device)
        loss = Pairing(guide, [item.prompt.title], captioning=1.0 if guide.can_caption else 0.0)
        found["L"].append(float(loss(shown[None])[0, 0]))
        augmented = look(shown, [item.generator("augmented loss", device=guide.device)])
        found["L augmented"].append(float(loss(augmented).mean()))
    return {Column(name): np.array(values) for name, values in found.items()}


def faults(cells: list[str], judges: list[str], prompts: int) -> Iterator[UsageError]:
    """What is wrong with values that are fine alone."""
    for cell in cells:
        if cell not in CELLS:
            message = f"there is no cell {re.sub(r'[^ -~]', '?', cell)[:60]!r}: cells are {', '.join(CELLS)}"
            yield UsageError(message, "unknown_cell", given=cell)
    if not cells or len(set(cells)) < len(cells):
        yield UsageError("cells are one or more, each once: --cells both sds", "not_distinct", argument="cells")
    if not judges or len(set(judges)) < len(judges):
        message = "judges are one or more, each once: --judges emoji-blip2-judge emoji-blip2-judge-disjoint"
        yield UsageError(message, "not_distinct", argument="judges")
    if prompts > (most := len(compositional_prompts())):
        yield UsageError(f"there are {most} prompts: --prompts {most}", "too_many", argument="prompts", most=most)
