"""Mutual information against judges as a ranking of pictures, and MI-TUNE before and after, in the embedded world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from rich.console import Console, Group
from safetensors.torch import load_file, save

from robustclip import signatures
from robustclip.data.images import resize
from robustclip.data.pairs import Pair, compose_pair, compositional_prompts
from robustclip.diffusion.adapters import load_adapter
from robustclip.diffusion.mutual_information import FORMS, Form, evaluations_needed, pointwise_forms
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.selection import Rater, Selection, load_rater
from robustclip.diffusion.stable import LatentDiffusion
from robustclip.errors import UsageError
from robustclip.evaluation.generation.compositional import CHANCE, EVERY, alternatives, found_by_judges, judge_pairs
from robustclip.evaluation.generation.grids import Columns, Study, draw_set
from robustclip.evaluation.generation.ranks import agreement, caption_accuracy, compared, table
from robustclip.evaluation.generation.results import Column, Results
from robustclip.flags import TableFlags, flat
from robustclip.recipes import find
from robustclip.referees.pair_readers import is_pair_reader, load_pair_reader, pair_fingerprint
from robustclip.runs import terminal
from robustclip.runs.devices import pick_device
from robustclip.runs.files import atomic_write, is_file, plain, read_json, write_json
from robustclip.runs.folder import RECORD, Run
from robustclip.runs.progress import watched
from robustclip.synthesis.items import Item, Seeds, items_of
from robustclip.synthesis.prompts import Prompt

Part = Literal["ranks", "training", "tune"]
PAGE: Final = 190  # characters a line of the tables in a file
KINDS: Final = ("colours exchanged", "another thing", "a thing missing", "another picture's")
TRAJECTORY: Final = "trajectory"
READER, CLIP = "emoji-blip2", "emoji-vanilla-long"  # which choose, and judge nothing here
TUNED: Final[dict[str, dict[str, Any]]] = {
    # What chooses. All rows are compared with "base", the model as it is.
    "gap": {"by": "gap"},
    "mi": {"by": "mi"},
    "random": {"by": "random"},
    "clip": {"by": CLIP},
    "reader": {"by": READER},
    "judge": {},  # the first of the judges itself: the most that choosing can give
    # Rounds, by the gap; "gap" is the first.
    "round-2": {"by": "gap", "rounds": 2},
    "round-3": {"by": "gap", "rounds": 3},
    # Adapters, pictures kept of those drawn, and the share of real pictures, by the gap.
    "lora": {"by": "gap", "dora": False},
    "text": {"by": "gap", "adapt_text": True},
    "7-of-50": {"by": "gap", "keep": 7, "samples": 50},
    "1-of-30": {"by": "gap", "samples": 30},
    "1-of-50": {"by": "gap", "samples": 50},
    "1-of-100": {"by": "gap", "samples": 100},
    "real-0.25": {"by": "gap", "real_share": 0.25},
    "real-0.5": {"by": "gap", "real_share": 0.5},
    "real-0.9": {"by": "gap", "real_share": 0.9},
}
BASE: Final = "base"
HEADLINE: Final = ["gap", "mi", "random", "clip", "reader", "judge"]
TUNE_JUDGES: Final = 2  # of the judges, the first that are pair readers: those of the table
LEVELS: Final = 32
DRAWS: Final = 8  # of the repeated estimates


@dataclass(frozen=True)
class Setting:
    """What the ranks of one model are measured on."""

    pairs: Sequence[Pair]
    samples: int
    steps: int
    guidance: float
    size: tuple[int, int]
    draws: int
    seed: int


QUICK: Final = {"samples": 3, "scenes": 1, "draws": 1, "batch_size": 4} | dict.fromkeys(
    ("prompts", "sampling_steps", "pictures_steps", "repeated", "trained_on", "tune_steps"), 2
)


def recipe(
    *,
    parts: Annotated[list[Part], "what to measure, see below"] = ["ranks"],  # noqa: B006
    model: Annotated[str, "diffusion model: a name, or a diffusers pipeline folder"] = ("emoji-diffusion"),
    snapshots: Annotated[list[str], "denoiser folders along a training, in order"] = [],  # noqa: B006
    judges: Annotated[list[str], "pair readers and CLIPs to compare with"] = [  # noqa: B006
        *("emoji-blip2-judge", "emoji-blip2-judge-disjoint"),
        *("emoji-judge", "emoji-judge-disjoint"),
    ],
    prompts: Annotated[PositiveInt, "number of the 60 prompts, from the first"] = 60,
    samples: Annotated[PositiveInt, "samples per prompt"] = 12,
    scenes: Annotated[PositiveInt, "real scenes per prompt"] = 2,
    split: Annotated[str, "of the scenes' drawings; no model here saw unseen-styles"] = "unseen-styles",
    guidance: Annotated[list[PositiveFloat], "guidance scales of sampling"] = [5.0],  # noqa: B006
    sampling_steps: PositiveInt = 50,
    draws: Annotated[PositiveInt, "draws per noise level (32 levels)"] = 2,
    repeated: Annotated[int, Field(ge=2), "prompts and samples whose estimates are made twice, for their variance"] = 6,
    size: PositiveInt = 64,
    rows: Annotated[list[str], "of tune, by name, beside the model as it is"] = HEADLINE,
    seeds: Annotated[Seeds, "of tune's pictures of each prompt"] = [0, 1, 2],  # noqa: B006
    trained_on: Annotated[PositiveInt, "prompts, none of the 60"] = 64,
    tune_steps: Annotated[PositiveInt, "of training in each round"] = 100,
    batch_size: Annotated[PositiveInt, "of training"] = 64,
    lr: PositiveFloat = 1e-4,
    pictures_steps: Annotated[PositiveInt, "of DDIM, for tune's pictures"] = 50,
    budget: Annotated[PositiveFloat | None, "minutes: no row of tune is begun that would end later"] = None,
    common: TableFlags = TableFlags(),
) -> dict[str, Any]:
    """Mutual information beside judges: which caption fits a scene, which sample of a prompt is best.

    robustclip reproduce mi-tune

    ranks      on real scenes, how often each score puts the scene's own caption above one with exchanged colours,
               another thing, a thing missing, and another scene's; on the model's own samples, Kendall's tau between
               all scores within each prompt, and how far the best by one lies above the mean by another; and
               the estimates' variance: denoiser evaluations to a standard error of 5% of the spread between pictures,
               and tau between two estimates of the same pictures by draws
    training   the same for each of --snapshots, to see from which quality on mutual information ranks as judges do
    tune       two-object R-Precision of the model, and of what align mi-tune makes of it with --samples of each of
               --trained-on other prompts, row by row: what chooses, rounds, DoRA or LoRA, k of M, real pictures

    What is done is kept, and --resume goes on, with more of anything too. Writes ranks.txt and ranks.json, and of tune
    table.txt, results.json, contact_sheet.png.
    """
    arguments = flat(locals())
    device = pick_device(common.device)
    loaded = partial(load_diffusion, device=device, dtype=common.dtype)
    pairs = compositional_prompts()[:prompts]
    raters = [load_rater(name, device) for name in judges]
    run = Run.start(common.out, common.resume, recipe="mi-tune", arguments=arguments, verb="reproduce")
    named = {model: model} if "ranks" in parts else {}
    named |= {f"{at:02d} {Path(one).name}": one for at, one in enumerate(snapshots if "training" in parts else [])}
    results: dict[str, Any] = {}
    with run:
        shown: list[Group] = []
        for name, given in named.items():
            own = loaded(given)
            folder = run.folder / "ranks" / Path(name).name.replace(" ", "-")
            results[name] = {
                "fingerprint": own.fingerprint,
                "captions": captions(own, raters, pairs, scenes, split, size, folder),
            }
            for strength in guidance:
                setting = Setting(pairs, samples, sampling_steps, strength, (size, size), draws, common.seed)
                at = f"guidance {strength:g}"
                results[name][at] = ranks(own, raters, setting, folder / at.replace(" ", "-"))
            results[name]["variance"] = variance(
                own, folder / f"guidance-{guidance[0]:g}", pairs, repeated, 2 if common.quick else DRAWS
            )
            shown += list(tables(name, results[name]))
            write_json(run.folder / "ranks.json", {"judges": {one.name: one.fingerprint for one in raters}} | results)
            with atomic_write(run.folder / "ranks.txt", "w") as file:
                Console(file=file, width=PAGE).print(*shown)
        terminal.rich(Group(*shown))
        if "tune" not in parts:
            run.finish({})
            return {"out": str(run.folder), "models": len(results)}
        readers = [name for name in judges if is_pair_reader(name)][:TUNE_JUDGES]
        jury = {name: load_pair_reader(name, device) for name in readers}
        items = items_of([Prompt.literal(str(pair)) for pair in pairs], seeds)
        shared = {name: plain(arguments[name]) for name in ("model", "prompts", "seeds", "samples", "trained_on", "lr")}
        shared |= {name: arguments[name] for name in ("tune_steps", "batch_size", "guidance", "pictures_steps")}
        shared["fingerprints"] = {name: pair_fingerprint(one) for name, one in jury.items()}
        compared = [(name, against) for against in (BASE, "random") for name in rows if name != against]
        study = Study(run, Results(chance=CHANCE, compared=compared, shown=list(CHANCE)), shared, budget)
        align = {"model": model, "count": trained_on, "samples": samples, "sampling_steps": sampling_steps}
        align |= {"guidance": guidance[0], "steps": tune_steps, "batch_size": batch_size, "lr": lr, "size": size}
        align |= {"pool": run.folder / "pool", "device": common.device, "dtype": common.dtype, "seed": common.seed}

        def painted(name: str, folder: Path) -> torch.Tensor:
            tuned = loaded(model)
            if name != BASE:
                chooser = {"by": readers[0]} if name == "judge" else {}
                load_adapter(tuned, adapter(run.folder / "tuned" / name, align | TUNED[name] | chooser))

            def draw(some: Sequence[Item]) -> torch.Tensor:
                streams = [item.generator("sample", device=device) for item in some]
                texts = [item.prompt.title for item in some]
                how: dict[str, Any] = {"size": (size, size), "steps": pictures_steps, "guidance": guidance[0]}
                return tuned.sample(texts, generators=streams, **how).cpu()

            return draw_set(folder, items, draw, 60)

        def judged(images: torch.Tensor) -> Columns:
            shown = [pair for pair in pairs for _ in seeds]
            return found_by_judges({name: judge_pairs(one, images, shown) for name, one in jury.items()})

        for name in [BASE, *rows]:
            study.row(name, [item.prompt.title for item in items], partial(painted, name), judged)
        return study.finish(Column("right", EVERY))


def adapter(folder: Path, asked: Mapping[str, Any]) -> Path:
    """The adapter of a run of `align mi-tune` with these arguments, which is begun or gone on with where it is not
    finished."""
    if not (folder / "adapter").is_dir():
        start = {"resume": folder} if is_file(folder / RECORD) else {"out": folder}
        find("mi-tune", "align").function(**asked, **start)
    return folder / "adapter"


def faults(
    parts: list[str], snapshots: list[str], prompts: int, judges: list[str], samples: int, rows: list[str]
) -> Iterator[UsageError]:
    """What is wrong with values that are illegal together."""
    for row in rows:
        if row not in TUNED:
            yield UsageError(
                signatures.unknown(row, TUNED, "row") + f". There are {', '.join(TUNED)}", "unknown_row", given=row
            )
    if "tune" in parts and sum(map(is_pair_reader, judges)) < TUNE_JUDGES:
        yield UsageError(
            "tune is judged by two pair readers: --judges emoji-blip2-judge emoji-blip2-judge-disjoint",
            "too_few_judges",
        )
    if "training" in parts and not snapshots:
        yield UsageError(
            "--parts training measures the denoisers of --snapshots FOLDER FOLDER ...: give them", "no_snapshots"
        )
    if prompts > (most := len(compositional_prompts())):
        yield UsageError(f"there are {most} prompts: --prompts {most}", "too_many", argument="prompts", most=most)
    if not judges or len(set(judges)) < len(judges):
        message = "judges are one or more, each once: --judges emoji-blip2-judge emoji-blip2-judge-disjoint"
        yield UsageError(message, "not_distinct", argument="judges")
    if samples < 2:
        yield UsageError("--samples 1 cannot be ranked: give 2 or more", "too_few", argument="samples")


def remembered(
    path: Path,
    make: Callable[[], dict[str, list[float]]],
    names: Sequence[str],
    count: int,
    setting: dict[str, Any],
) -> dict[str, list[float]]:
    """`count` scores of each name from their file; made, and kept there, where it lacks some or is of another setting.
    Older files say none."""
    found: dict[str, Any] = read_json(path) if is_file(path) else {}
    same = found.pop("setting", setting) == setting
    if not same or any(len(found.get(name, ())) != count for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        write_json(path, found | {"setting": setting})
    return {name: found[name] for name in names}


@torch.no_grad()
def captions(
    model: LatentDiffusion,
    raters: Sequence[Rater],
    pairs: Sequence[Pair],
    scenes: int,
    split: str,
    size: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """How often each score puts a real scene's own caption above the others, by kind of these."""
    names = [*FORMS, *(one.name for one in raters)]
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {kind: [] for kind in KINDS} for name in names}
    every = [(number, at) for number in range(scenes) for at in range(len(pairs))]
    for number, at in watched(every, f"captions of {len(every)} real scenes", "scenes"):
        pair, others = pairs[at], alternatives(pairs[at])
        texts = [str(pair), others.swapped[0], others.first[0], others.missing[0], str(pairs[(at + 1) % len(pairs)])]

        def make(pair: Pair = pair, number: int = number, texts: list[str] = texts) -> dict[str, list[float]]:
            image = resize(compose_pair(pair, split=split, number=number)[None], size)
            latents = model.encode(image.to(model.device)).expand(len(texts), -1, -1, -1)
            forms = pointwise_forms(model, latents, model.embed_prompts(texts), model.embed_prompts([""]), draws=1)
            return {form: one.nats.tolist() for form, one in forms.items()} | {
                one.name: [float(one(image, text)[0]) for text in texts] for one in raters
            }

        path, about = folder / f"scenes-{split}" / f"{number}-{at:03d}.json", {"size": size, "texts": texts}
        for name, (right, *wrong) in remembered(path, make, names, len(texts), about).items():
            for kind, value in zip(KINDS, wrong, strict=True):
                found[name][kind].append((right, value))
    return [
        {"first": name, "second": kind, "what": "own above", **vars(caption_accuracy(*zip(*values, strict=True)))}
        for name, kinds in found.items()
        for kind, values in kinds.items()
    ]


@torch.no_grad()
def ranks(model: LatentDiffusion, raters: Sequence[Rater], setting: Setting, folder: Path) -> list[dict[str, Any]]:
    """Agreement of all scores on the model's own samples, and what choosing by each gains."""
    found: dict[str, list[list[float]]] = {name: [] for name in [*FORMS, TRAJECTORY, *(one.name for one in raters)]}
    title = f"{setting.samples} samples of each of {len(setting.pairs)} prompts at guidance {setting.guidance:g}"
    about = {"steps": setting.steps, "size": list(setting.size), "draws": setting.draws, "seed": setting.seed}
    for number, pair in enumerate(watched(setting.pairs, title, "prompts")):
        make = partial(scored, model, raters, setting, str(pair), number, folder)
        scores = remembered(folder / f"{number:03d}.json", make, list(found), setting.samples, about)
        for name, row in found.items():
            row.append(scores[name])
    arrays = {name: np.array(rows) for name, rows in found.items()}
    return compared(arrays, list(arrays), [one.name for one in raters], setting.seed)


def scored(
    model: LatentDiffusion, raters: Sequence[Rater], setting: Setting, text: str, number: int, folder: Path
) -> dict[str, list[float]]:
    """All scores of a prompt's samples, whose latents are kept beside."""
    drawn = Selection(
        samples=setting.samples,
        keep=setting.samples,
        steps=setting.steps,
        guidance=setting.guidance,
        size=setting.size,
        batch_size=setting.samples,
        seed=setting.seed,
    )
    latents, nats = drawn.drawn(model, text, number)
    images = model.decode(latents).clamp(0, 1)
    empty, every = model.embed_prompts([""]), torch.zeros(len(latents), dtype=torch.long)
    texts = model.embed_prompts([text]).rows(every)
    forms = pointwise_forms(model, latents, texts, empty, draws=setting.draws, seed=setting.seed)
    found = {form: one.nats for form, one in forms.items()} | {TRAJECTORY: nats}
    found |= {one.name: one(images, text) for one in raters}
    with atomic_write(folder / f"{number:03d}.safetensors") as file:
        file.write(save({"latents": latents.float().cpu().contiguous()}, {"prompt": text}))
    return {name: [float(value) for value in values] for name, values in found.items()}


@torch.no_grad()
def variance(
    model: LatentDiffusion, folder: Path, pairs: Sequence[Pair], repeated: int, draws: int
) -> list[dict[str, Any]]:
    """Denoiser evaluations to an error of 5% of the spread between a prompt's samples, by form; and tau between two
    estimates of them by half of the draws each, with common draws and with each sample's own: of the first `repeated`
    samples of as many prompts."""
    rows: list[dict[str, Any]] = []
    for common in (True, False):
        needed: dict[Form, list[float]] = {form: [] for form in FORMS}
        halves: dict[Form, list[Any]] = {form: [] for form in FORMS}
        way = "common draws" if common else "own draws"
        for number, pair in enumerate(watched(pairs[:repeated], f"variance with {way}", "prompts")):
            latents = load_file(folder / f"{number:03d}.safetensors")["latents"][:repeated].to(model.device)
            texts = model.embed_prompts([str(pair)]).rows(torch.zeros(len(latents), dtype=torch.long))
            empty = model.embed_prompts([""])
            for form, one in pointwise_forms(model, latents, texts, empty, draws=draws, common=common).items():
                needed[form].append(evaluations_needed(one))
                halves[form].append(one.terms.view(len(latents), draws, LEVELS).sum(2).cpu().numpy())
        for form in FORMS:
            if not common:
                rows.append(
                    {"first": form, "second": "5% of the spread", "what": "evaluations"} | _median(needed[form])
                )
            for half in (size for size in (1, 2, 4) if 2 * size <= draws):
                parts = [np.stack([each[:, at : at + half].sum(1) for each in halves[form]]) for at in (0, half)]
                row = {"first": f"{form}, {way}", "second": f"{2 * LEVELS * half} evaluations", "what": "tau"}
                rows.append(row | vars(agreement(*parts)))
    return rows


def _median(values: Sequence[float]) -> dict[str, Any]:
    """The median and the quartiles of a cost, over prompts; infinity, where nothing differs, as 1e9."""
    low, middle, high = np.quantile(np.minimum(values, 1e9), (0.25, 0.5, 0.75))
    return {"value": float(middle), "low": float(low), "high": float(high), "n": len(values)}


def tables(name: str, results: Mapping[str, Any]) -> Iterator[Group]:
    """All of one model's, for people."""
    yield table(
        f"{name}: a scene's own caption above another, of real scenes; chance 0.5", results["captions"], "own above"
    )
    for at, rows in results.items():
        if at.startswith("guidance"):
            yield table(f"{name}, {at}: Kendall's tau within prompts", rows, "tau")
            yield table(f"{name}, {at}: the best by a score, in a judge's deviations above the mean", rows, "gain")
    yield table(f"{name}: tau between two estimates of the same samples", results["variance"], "tau")
    yield table(f"{name}: evaluations a picture, median and quartiles over prompts", results["variance"], "evaluations")
