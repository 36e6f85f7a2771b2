"""DOODL's tables in the embedded world: guides, baselines, samplers and uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from robustclip.data.pairs import Pair, compositional_prompts
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.errors import UsageError
from robustclip.evaluation.generation.compositional import judge_pairs
from robustclip.evaluation.generation.doodl import (
    PLAIN,
    SCALE,
    ColumnValues,
    Part,
    World,
    aesthetics,
    exemplars,
    prompt_cosine,
    vocabulary,
)
from robustclip.evaluation.generation.grids import Columns, Study, paint_set, resumed_rows
from robustclip.evaluation.generation.results import Column, Results
from robustclip.evaluation.named import load_named
from robustclip.flags import SynthesisFlags, flat
from robustclip.referees.pair_readers import load_pair_reader
from robustclip.referees.weights import digest
from robustclip.runs.devices import pick_device
from robustclip.runs.folder import Run
from robustclip.synthesis.items import Seeds

PartName = Literal["text", "samplers", "vocabulary", "exemplars", "aesthetics", "curve", "chain"]
ALL: Final[list[PartName]] = ["text", "samplers", "vocabulary", "exemplars", "aesthetics", "curve", "chain"]
PAIRS: Final = ("text", "samplers", "curve", "chain")  # parts of pairs of things, which judges of pairs read
SAME: Final = (
    *("robust", "control", "model", "prompts", "few", "subjects", "given", "seeds"),
    *("steps", "chain_steps", "crops", "rcp_steps", "dtype", "quick"),
)
"""What the pictures of a resumed run depend on."""

QUICK: Final = dict.fromkeys(("chain_steps", "crops", "rcp_steps", "prompts", "few", "subjects", "given"), 2) | {
    "steps": 1
}


def recipe(
    *,
    parts: Annotated[list[PartName], "tables to measure"] = ALL,
    robust: Annotated[str, "guide"] = "emoji-robust",
    control: Annotated[str, "non-robust guide of equal training time"] = "emoji-vanilla-long",
    judges: Annotated[list[str], "judging referees"] = ["emoji-judge", "emoji-judge-disjoint"],  # noqa: B006
    readers: Annotated[list[str], "judging pair readers"] = ["emoji-blip2-judge", "emoji-blip2-judge-disjoint"],  # noqa: B006
    model: Annotated[str, "diffusion model"] = "emoji-diffusion",
    prompts: Annotated[PositiveInt, "number of the 60 compositional prompts"] = 60,
    few: Annotated[PositiveInt, "prompts of curve and chain"] = 12,
    subjects: Annotated[PositiveInt, "number of the 20 held-back classes, and of exemplars"] = 20,
    given: Annotated[PositiveInt, "pictures that aesthetics edits"] = 40,
    seeds: Seeds = [0],  # noqa: B006
    steps: Annotated[PositiveInt, "optimisation steps"] = 10,
    chain_steps: PositiveInt = 10,
    crops: PositiveInt = 8,
    rcp_steps: Annotated[PositiveInt, "steps of Referee-Can-Play"] = 100,
    batch_size: PositiveInt = 30,
    common: SynthesisFlags = SynthesisFlags(),
) -> dict[str, Any]:
    """DOODL with a robust guide and its control, against baselines of equal cost, by judges that did not guide.

    robustclip reproduce doodl --parts text

    text        compositional prompts
    samplers    plain samples of each sampler
    vocabulary  classes that the diffusion model was not trained on, by a classifier fitted here
    exemplars   similarity to one drawing each
    aesthetics  drawings edited towards shaded and flat, by a head fitted here
    curve       steps of the optimisation
    chain       steps of the chain

    `--resume` continues a stopped run, with more parts too. Writes table.md, results.json, contact sheets and all
    pictures.
    """
    arguments = flat(locals())
    seeds = arguments["seeds"]
    if common.resume is not None:
        asked = resumed_rows(common.resume, arguments, same=SAME, rows="parts")
        arguments["parts"] = parts = [part for part in ALL if part in asked]
    device = pick_device(common.device)
    jury = load_named(judges, device=device)
    for name in (robust, control):
        if name in {judge.name for judge in jury}:
            raise UsageError(f"{name} guides, and pictures made to please a judge please it: judge by others")
    pairs = {name: load_pair_reader(name, device) for name in readers} if {*PAIRS} & {*parts} else {}
    run = Run.start(common.out, common.resume, recipe="doodl", arguments=arguments, verb="reproduce")
    shared: dict[str, Any] = {"model": model, "referee": [robust], "seeds": seeds, "steps": steps, "crops": crops}
    shared |= common.where | {"chain_steps": chain_steps, "batch_size": batch_size, "save_frames": False}
    setting = {name: value for name, value in arguments.items() if name not in ("out", "resume", "parts", "batch_size")}
    setting["denoiser sha256"] = digest(load_diffusion(model).unet.state_dict())[:16]
    study = Study(run, Results(), setting)
    with run:
        for name in parts:
            world = World(
                *(robust, control, jury, pairs, subjects, given, seeds, steps, chain_steps, rcp_steps),
                folder=run.folder / name,
                device=device,
            )
            world.folder.mkdir(exist_ok=True)
            texts = [str(pair) for pair in compositional_prompts()[: few if name in ("curve", "chain") else prompts]]
            measured(study, name, PARTS[name](world, texts), shared)
        columns = study.results.columns()
        return study.finish(next(one for one in columns if one.judge == jury[0].name))


def measured(study: Study, name: str, part: Part, shared: Mapping[str, Any]) -> None:
    """Paint what is missing of a part, and measure all of it."""
    rows = study.results.rows
    compared = [*part.pairs, *((cell, part.base) for cell in [*part.fixed, *part.cells] if cell != part.base)]
    study.results.compared = [*study.results.compared, *((f"{name}: {a}", f"{name}: {b}") for a, b in compared)]
    for cell in [*part.fixed, *part.cells]:

        def measure(images: Tensor, cell: str = cell) -> Columns:
            base = rows.get(f"{name}: {part.base}")
            return part.measure(cell, images, base.columns if base else {})

        study.row(f"{name}: {cell}", part.prompts, partial(made, part, cell, shared), measure, timed=cell in part.cells)


def made(part: Part, cell: str, shared: Mapping[str, Any], folder: Path) -> Tensor:
    """The pictures of a row."""
    if cell in part.fixed:
        return part.fixed[cell]
    changes = dict(part.cells[cell])
    recipe = changes.pop("recipe", "doodl")
    places = [folder] if len(part.calls) == 1 else [folder / f"{number:02d}" for number in range(len(part.calls))]
    return torch.cat(
        [
            paint_set(place, {**OF_RECIPE[recipe](shared), **call, **changes}, recipe).images
            for place, call in zip(places, part.calls, strict=True)
        ]
    )


OF_RECIPE: Final[dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "doodl": dict,
    "referee_can_play": lambda shared: {k: v for k, v in shared.items() if k not in ("crops", "chain_steps")},
}


def text(world: World, texts: list[str]) -> Part:
    """The guides with crops and without, and what costs as much as DOODL by the robust guide."""
    control: dict[str, Any] = {"referee": [world.control]}
    rcp = {"recipe": "referee_can_play", "steps": world.rcp_steps, "sds_only": min(10, world.rcp_steps // 4)}
    cells: dict[str, dict[str, Any]] = {
        PLAIN: {"method": "plain"},
        "DOODL, robust": {},
        "DOODL, control": control,
        "DOODL, robust, no crops": {"crops": 0},
        "DOODL, control, no crops": control | {"crops": 0},
        "best of N, robust": {"method": "best-of", "crops": 0, "candidates": world.samples},
        "one-step guidance, robust": {"method": "one-step", "one_step_scale": SCALE},
        "Referee-Can-Play, robust": rcp | {"copies": 8},
    }
    others = ["DOODL, control", "best of N, robust", "one-step guidance, robust", "Referee-Can-Play, robust"]
    pairs = [("DOODL, robust", other) for other in others]
    pairs += [("DOODL, robust, no crops", "DOODL, control, no crops"), ("DOODL, robust", "DOODL, robust, no crops")]
    pairs += [("DOODL, control", "DOODL, control, no crops")]
    part = _pairs(world, texts, cells)
    guides = {name: world.guide(name) for name in (world.robust, world.control)}
    seen = part.measure

    def measure(cell: str, images: Tensor, base: Mapping[Column, Any]) -> ColumnValues:
        """hacking: by how much more the guide's similarity rose over plain sampling's than the judges' did."""
        found: ColumnValues = {
            Column("similarity", name): prompt_cosine(guide, images, part.prompts) for name, guide in guides.items()
        }
        found |= seen(cell, images, base)
        guide = Column("similarity", world.control if "control" in cell else world.robust)
        judged = [Column("similarity", judge.name) for judge in world.clips]
        first = base or found
        risen = sum(found[one] - first[one] for one in judged) / len(judged)
        return found | {Column("hacking"): found[guide] - first[guide] - risen}

    return Part(PLAIN, part.prompts, part.calls, cells, measure, pairs=pairs)


def samplers(world: World, texts: list[str]) -> Part:
    """Plain samples by each sampler, steps and guidance."""
    cells = {
        f"{sampler}, {steps} steps, guidance {guidance:g}": {
            "method": "plain",
            "sampler": sampler,
            "chain_steps": steps,
            "guidance": guidance,
        }
        for steps, guidance in ((50, 3.0), (10, 3.0), (10, 7.5), (50, 7.5))
        for sampler in ("ddim", "bdia", "o-belm", "edict")
    }
    part = _pairs(world, texts, cells)
    part.base = next(iter(cells))
    return part


def curve(world: World, texts: list[str]) -> Part:
    """Steps of the optimisation, by guide."""
    counts = sorted({max(1, round(world.steps * share)) for share in (0.2, 0.5, 1, 2, 4)})
    cells: dict[str, dict[str, Any]] = {PLAIN: {"method": "plain"}}
    return _pairs(world, texts, cells | {f"{count} steps": {"steps": count} for count in counts})


def chain(world: World, texts: list[str]) -> Part:
    """Steps of the chain, DOODL and plain sampling at each."""
    cells: dict[str, dict[str, Any]] = {}
    for steps in (2, 4) if world.chain_steps == 2 else (10, 5, 20, 50):
        cells[f"plain, chain of {steps}"] = {"method": "plain", "chain_steps": steps}
        cells[f"DOODL, chain of {steps}"] = {"chain_steps": steps}
    part = _pairs(world, texts, cells)
    part.base = next(iter(cells))
    names = [*cells]
    part.pairs = list(zip(names[1::2], names[::2], strict=True))
    return part


def _pairs(world: World, texts: list[str], cells: dict[str, dict[str, Any]]) -> Part:
    """A part of compositional prompts, and what judges find in their pictures."""
    prompts = world.shown(texts)
    guide = world.guide(world.robust)

    def measure(cell: str, images: Tensor, base: Mapping[Column, Any]) -> ColumnValues:
        del cell, base
        found: ColumnValues = {Column("similarity", world.robust): prompt_cosine(guide, images, prompts)}
        found |= {
            Column("similarity", judge.name): prompt_cosine(judge.referee, images, prompts) for judge in world.clips
        }
        for name, reader in world.readers.items():
            verdict = judge_pairs(reader, images, [Pair.parse(one) for one in prompts], score="sum")
            found |= {Column("right", name): verdict.right.numpy(), Column("both", name): verdict.both.numpy()}
        return found

    return Part(PLAIN, prompts, [{"prompt": texts}], cells, measure)


PARTS: Final[dict[str, Callable[[World, list[str]], Part]]] = {
    "text": text,
    "samplers": samplers,
    "vocabulary": vocabulary,
    "exemplars": exemplars,
    "aesthetics": aesthetics,
    "curve": curve,
    "chain": chain,
}


def faults(parts: list[str], prompts: int) -> Iterator[str]:
    """What is wrong with values that are fine alone."""
    if not parts or len(set(parts)) < len(parts):
        yield f"parts are one or more, each once, of {', '.join(PARTS)}"
    if prompts > (most := len(compositional_prompts())):
        yield f"there are {most} prompts: --prompts {most}"
