"""`robustclip judge`: score generated pictures by referees that did not guide them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field, PositiveInt
from torch import Tensor

from robustclip import __version__
from robustclip.diffusion.mutual_information import METRIC, OWN
from robustclip.errors import UsageError, faults_of, raise_faults
from robustclip.evaluation.evaluate import MOST_AT_ONCE, Referees, Side, checked, listed
from robustclip.evaluation.generation import measure
from robustclip.evaluation.generation.compbench.judging import complex_parts, judge_benchmark
from robustclip.evaluation.generation.compbench.prompts import (
    CATEGORIES,
    PER_PROMPT,
    Category,
    read_benchmark,
    read_prompts,
)
from robustclip.evaluation.generation.compbench.roles import load_roles
from robustclip.evaluation.generation.embeddings import count_candidates
from robustclip.evaluation.generation.judgement import REPORT_FILE, TITLES, JudgeReport
from robustclip.evaluation.generation.measure import (
    HOW,
    OF_INCEPTION,
    TO_REFERENCE,
    JudgeOptions,
    JudgeScores,
    Metric,
    RefereeScorer,
    check_installed,
    load_inception,
)
from robustclip.evaluation.generation.pictures import (
    Pictures,
    chosen,
    from_tensor,
    places_of,
    read_pictures,
    read_reference,
    says_prompts,
)
from robustclip.evaluation.generation.scorers import (
    LOADERS,
    is_diffusion_judge,
    is_scorer,
    load_scorers,
)
from robustclip.evaluation.named import NamedReferee, load_named, output_faults
from robustclip.referees.image_judges import load_aesthetics
from robustclip.referees.smoothed import fingerprint
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.files import is_file, is_folder, rescuing
from robustclip.runs.processes import owning
from robustclip.runs.terminal import counted
from robustclip.signatures import typed, unknown

JUDGES: Final = ("emoji-judge", "emoji-judge-disjoint")
EMBEDDED: Final = ("emoji-scenes", "emoji-judge")
"""Default judges of a benchmark."""
METRICS: Final[tuple[Metric, ...]] = ("r-precision", "cosine", "clipscore")


@typed
def judge(
    pictures: Annotated[Sequence[Path], "folders of `synthesize`, or of images; several are compared"],
    *,
    judge: Annotated[
        Sequence[str | Path | Any], "judges (names or folders) that did not guide; mi:MODEL for a diffusion model"
    ] = JUDGES,
    metrics: Annotated[Sequence[Metric], "what to measure", BeforeValidator(listed)] = METRICS,
    candidates: Annotated[PositiveInt | None, "candidates in R-Precision; default: all distinct prompts"] = None,
    prompts: Annotated[
        Path | None, "prompts of images without provenance, jsonl or csv with file and prompt; of a benchmark, txt"
    ] = None,
    benchmark: Annotated[Literal["compbench"] | None, "judge by T2I-CompBench's rules, in one category"] = None,
    category: Annotated[Category | None, "category of the benchmark's prompts"] = None,
    per_prompt: Annotated[PositiveInt, "number of pictures per prompt of the benchmark"] = PER_PROMPT,
    reference: Annotated[str | Path | None, "real images: emoji/SPLIT or a folder of class folders or images"] = None,
    aesthetics: Annotated[Path | None, "weights of an aesthetic predictor, .pth or .safetensors"] = None,
    inception_weights: Annotated[Path | None, "torch-fidelity's Inception weights, for fid and inception-score"] = None,
    allow_self: Annotated[bool, "allow a referee to judge pictures that it guided"] = False,
    size: Annotated[Side | None, "resize pictures to this height and width"] = None,
    batch_size: Annotated[int, Field(gt=0, le=MOST_AT_ONCE)] = 64,
    out: Annotated[Path | None, "output folder for metrics, table and per-picture scores"] = None,
    csv: Annotated[Path | None, "CSV file of the metrics"] = None,
    overwrite: bool = False,  # noqa: ARG001  (see `faults`)
    device: Annotated[str, "auto, cpu, cuda, cuda:<index> or mps", checked(pick_device)] = "auto",
    dtype: Annotated[str, "auto, float32, bfloat16 or float16", checked(pick_dtype)] = "float32",
    seed: Annotated[int, "seed of candidates and bootstrap"] = 0,
) -> JudgeReport:
    """Score generated pictures against their prompts, by referees that did not guide them.

    r-precision      rank of the own prompt among candidates; reported with their number and chance
    cosine           of picture and prompt; clipscore, as defined by Hessel et al.
    aesthetics       score of the given predictor
    frechet, cmmd    distances of the judge's embeddings to those of real images; fid, the same with Inception
    mutual-information   of picture and prompt in nats, by judges mi:MODEL, always included
    label-score      Inception Score on the judge's zero-shot predictions; inception-score, the same with Inception

    Several folders are compared on their common prompts and seeds. If the reference has captions or labels, its own
    pictures of these prompts are scored too. A referee may not judge pictures that it guided.

    With --benchmark compbench the judges are those of --category: a VQA model, a detector or a CLIP, each a folder of
    transformers; emoji-scenes is the first two. The same call with the same --out resumes.

    Raises one UsageError with all faults of the call, another for pictures that cannot be scored this way.
    """
    where = pick_device(device)
    mute = [folder for folder in pictures if not says_prompts(folder)] or pictures
    with owning(out):
        raise_faults("judge()", list(_taken(out)))  # again, now that the folder is locked
        if benchmark and category and prompts is not None:
            texts, roles = read_prompts(prompts), load_roles(EMBEDDED if judge == JUDGES else judge, where)
            sets = _short_names([read_benchmark(one, texts, per_prompt=per_prompt, size=size) for one in pictures])
            clips = [(roles.clip.name, fingerprint(roles.clip.referee))] if roles.clip else []
            notes = check_guides(sets, clips, allow_self=allow_self)
            parts = complex_parts(prompts, texts) if category == "complex" and roles.complete else None
            report = judge_benchmark(sets, roles, category, parts=parts, out=out, batch_size=batch_size, seed=seed)
            report.notes += notes
        else:
            report = judge_pictures(
                _short_names(
                    [read_pictures(one, prompts=prompts if one in mute else None, size=size) for one in pictures]
                ),
                judge,
                options=JudgeOptions(
                    metrics,
                    candidates,
                    None if aesthetics is None else load_aesthetics(aesthetics),
                    load_inception(inception_weights, where) if set(metrics) & set(OF_INCEPTION) else None,
                    seed,
                    batch_size,
                    pick_dtype(dtype, where),
                ),
                reference=None if reference is None else read_reference(reference, size=size),
                allow_self=allow_self,
                device=where,
            )
        with rescuing(report.to_json):
            if out is not None:
                report.save(out)
            if csv is not None:
                report.write_csv(csv)
    return report


def faults(
    pictures: Sequence[Path],
    metrics: Sequence[Metric],
    candidates: int | None,
    prompts: Path | None,
    reference: str | Path | None,
    aesthetics: Path | None,
    inception_weights: Path | None,
    out: Path | None,
    csv: Path | None,
    overwrite: bool,
    benchmark: str | None,
    category: str | None,
) -> Iterator[str | UsageError]:
    """Faults of a `judge` call that can be found before loading anything."""
    if (benchmark is None) != (category is None):
        yield f"a benchmark and its category go together: --benchmark compbench --category {CATEGORIES[0]}"
    if benchmark is not None and prompts is None:
        yield "a benchmark's pictures are matched to its prompts: give them, e.g. --prompts color_val.txt"
    yield from _unanswerable(metrics, reference, aesthetics, inception_weights)
    if "aesthetics" not in metrics and aesthetics is not None:
        yield "an aesthetics predictor has no effect without its metric: add aesthetics to the metrics"
    if candidates is not None and candidates < 2:
        yield f"candidates {candidates}: R-Precision is among a picture's own prompt and at least one other"
    for folder in pictures:
        if not is_folder(folder):
            yield f"no folder of pictures at {str(folder)[:200]!r}: give the folder of a synthesis, or of images"
    for name, file in (("prompts", prompts), ("aesthetics", aesthetics), ("inception weights", inception_weights)):
        if file is not None and not is_file(file):
            yield f"there is no file of {name} at {str(file)[:200]!r}"
    yield from faults_of([check_installed] if set(metrics) & set(OF_INCEPTION) else [])
    yield from output_faults(out, csv, overwrite=overwrite)
    yield from _taken(out)


def _taken(out: Path | None) -> Iterator[str]:
    if out is not None and is_file(Path(out) / REPORT_FILE):
        yield f"{out} already holds a judgement: give another folder"


def _unanswerable(
    metrics: Sequence[str], reference: object, aesthetics: object, inception: object
) -> Iterator[str | UsageError]:
    """Faults of unknown metrics, and of metrics whose inputs are missing (None)."""
    for metric in metrics:
        if metric not in TITLES:  # of a call of `judge_pictures`
            yield UsageError(
                unknown(metric, TITLES, "metric") + f". There are {', '.join(TITLES)}", "unknown_metric", given=metric
            )
        if metric in TO_REFERENCE and reference is None:
            message = f"{metric} is a distance to real images: give them, e.g. --reference emoji/judge-heldback"
            yield UsageError(message, "no_reference", metric=metric)
    if "aesthetics" in metrics and aesthetics is None:
        yield UsageError("aesthetics needs a predictor: give its weights, --aesthetics FILE", "no_predictor")
    if set(metrics) & set(OF_INCEPTION) and inception is None:
        message = f"fid and inception-score need Inception's weights, which do not come with robustclip: {HOW}"
        yield UsageError(message, "no_inception")


def judge_images(
    images: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    judges: Referees = JUDGES,
    *,
    guides: Referees = (),
    options: JudgeOptions | None = None,
    reference: Pictures | None = None,
    allow_self: bool = False,
    device: str | torch.device = "auto",
) -> JudgeReport:
    """`judge` for images in memory, in [0,1], with their prompts; `guides` are the referees that guided them."""
    where = pick_device(device)
    loaded = load_named(guides, device=where) if len(guides) else []
    named = [{"name": guide.name, "fingerprint": fingerprint(guide.referee)} for guide in loaded]
    pictures = replace(from_tensor(images, prompts), guides=named)
    return judge_pictures([pictures], judges, options=options, reference=reference, allow_self=allow_self, device=where)


def judge_pictures(
    sets: Sequence[Pictures],
    judges: Referees = JUDGES,
    *,
    options: JudgeOptions | None = None,
    reference: Pictures | None = None,
    allow_self: bool = False,
    device: str | torch.device = "auto",
) -> JudgeReport:
    """`judge` for sets of pictures in memory, with distinct names.

    Candidates of R-Precision are drawn from the prompts of all sets. Raises UsageError for two sets of one name, for a
    judge that guided one of them, and for metrics whose inputs are missing.
    """
    options = JudgeOptions(METRICS) if options is None else options
    if not sets:
        raise UsageError("there are no pictures to judge: give at least one folder", "no_pictures")
    names = [pictures.name for pictures in sets]
    if twice := [name for name in names if names.count(name) > 1]:
        message = f"two sets of pictures are called {twice[0]!r}: give each once, under a name of its own"
        raise UsageError(message, "name_twice", name=twice[0])
    lacking = _unanswerable(options.metrics, reference, options.aesthetics, options.inception)
    raise_faults("judge_pictures()", list(lacking))
    texts = list(dict.fromkeys(prompt for pictures in sets for prompt in pictures.prompts))
    if "r-precision" in options.metrics:
        count_candidates(options.candidates, len(texts))
    where = pick_device(device)
    listed_judges = [judges] if isinstance(judges, str | Path) else list(judges)
    referees = [one for one in listed_judges if not (is_diffusion_judge(one) or is_scorer(one))]
    clips = load_named(referees, device=where) if referees or not listed_judges else []
    models = load_scorers([str(one) for one in listed_judges if one not in referees], options, where)
    notes = [note for pictures in sets for note in pictures.notes]
    fingerprints = [(one.name, fingerprint(one.referee)) for one in clips]
    fingerprints += [(one.name, one.fingerprint) for one in models]
    notes += check_guides(sets, fingerprints, allow_self=allow_self)
    notes += [
        f"{pictures.name} holds {counted(len(pictures), 'picture')} of {counted(different, 'prompt')}: intervals "
        "assume that they are independent"
        for pictures in sets
        if (different := len(set(pictures.prompts))) < len(pictures)
    ]

    beside = [] if reference is None else places_of(reference, texts)
    if reference is not None:
        notes.append(
            f"{reference.name} shows {len({reference.prompts[at] for at in beside})} of the {len(texts)} prompts"
        )
    report = JudgeReport(describe(sets, texts, clips, options, reference, where), [], notes)
    for one in clips:
        scorer = RefereeScorer(one.name, one.referee, texts, options)
        real = None if reference is None else scorer.features(reference)
        _add_figures(report, [scorer.score(pictures) for pictures in sets], real, options)
        if real is not None and real.features is not None and beside:
            same = scorer.score(chosen(real.pictures, beside), real.features[beside])
            report.figures += measure.values(same, options)
    of_models = replace(options, metrics=[METRIC, *LOADERS])
    for model in models:
        report.setting["judges"][model.name] = model.fingerprint
        mine = [pictures.name for pictures in sets if model.fingerprint in pictures.generators]
        report.notes += [f"{model.name} made the pictures of {name}: it {OWN}" for name in mine]
        _add_figures(report, [model.score(pictures) for pictures in sets], None, of_models)
    if options.inception is not None:
        features = partial(measure.inception_features, inception=options.inception, options=options)
        real = None if reference is None else features(reference)
        _add_figures(report, [features(pictures) for pictures in sets], real, options)
    report.notes = list(dict.fromkeys(report.notes))
    return report


def check_guides(sets: Sequence[Pictures], judges: Sequence[tuple[str, str]], *, allow_self: bool) -> list[str]:
    """Raise UsageError if a judge (name, fingerprint) guided or selected the pictures; if allowed, notes say so."""
    notes = []
    for name, own in judges:
        for pictures in sets:
            if not any(guide["fingerprint"] == own for guide in pictures.guides):
                continue
            if not allow_self:
                raise UsageError(
                    f"{name} guided the pictures of {pictures.name}, so its scores would be biased: judge with another "
                    "one, e.g. emoji-judge, or give --allow-self",
                    "judge_guides",
                    judge=name,
                    pictures=pictures.name,
                )
            notes.append(f"{name} judges pictures that it guided ({pictures.name}): its figures are biased")
    return notes


def describe(
    sets: Sequence[Pictures],
    texts: Sequence[str],
    clips: Sequence[NamedReferee],
    options: JudgeOptions,
    reference: Pictures | None,
    device: torch.device,
) -> dict[str, Any]:
    """The report's setting."""
    return {
        "pictures": {pictures.name: len(pictures) for pictures in sets},
        "guides": {pictures.name: pictures.guides for pictures in sets},
        "prompts": len(texts),
        "judges": {one.name: fingerprint(one.referee) for one in clips},
        "metrics": list(options.metrics),
        "candidates": options.candidates,
        "reference": None if reference is None else {"name": reference.name, "images": len(reference)},
        "aesthetics": options.aesthetics and options.aesthetics.describe(),
        "inception": options.inception and {"file": options.inception.name, "sha256": options.inception.sha256},
        "batch_size": options.batch_size,
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": str(device),
        "seed": options.seed,
        "versions": {"robustclip": __version__, "torch": torch.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _add_figures(
    report: JudgeReport, sets: Sequence[JudgeScores], real: JudgeScores | None, options: JudgeOptions
) -> None:
    """Add one judge's figures and per-picture scores to the report."""
    for scored in sets:
        report.figures += [*measure.values(scored, options), *measure.of_sets(scored, real, options)]
        report.notes += _too_few(scored, real, options)
        by_prompt = report.pictures.setdefault(scored.pictures.name, {})
        seeds = scored.pictures.seeds or [None] * len(scored.pictures)
        for place, (prompt, name) in enumerate(zip(scored.pictures.prompts, scored.pictures.ids, strict=True)):
            entry = by_prompt.setdefault(prompt, {}).setdefault(name, {"seed": seeds[place], "judges": {}})
            if of_picture := scored.of_picture(place):
                entry["judges"][scored.judge] = of_picture
    for others, scored in combinations(sets, 2):
        report.figures += measure.comparisons(scored, others, options)
        report.figures += measure.set_comparisons(scored, others, real, options)
        pairs = len(measure.shared(scored.pictures, others.pictures)[0])
        if pairs < max(len(scored.pictures), len(others.pictures)):
            report.notes.append(
                f"{scored.pictures.name} ({len(scored.pictures)}) and {others.pictures.name} "
                f"({len(others.pictures)}) share {pairs} prompts and seeds, and are compared on these"
            )


def _too_few(scored: JudgeScores, real: JudgeScores | None, options: JudgeOptions) -> Iterator[str]:
    """Notes on covariances with more dimensions than samples."""
    metric = "fid" if scored.judge == measure.INCEPTION else "frechet"
    for one in (scored, real):
        if metric not in options.metrics or one is None or one.features is None:
            continue
        count, width = one.features.shape
        if count <= width:
            yield (
                f"{scored.judge} has {width} dimensions, and {one.pictures.name} only {count} pictures: the Fréchet "
                f"distance needs more than {width}, and is too large here; compare it among sets of this size alone"
            )


def _short_names(sets: Sequence[Pictures]) -> list[Pictures]:
    """The sets named by their folders' names if these differ, else by their paths."""
    short = [Path(pictures.name).name for pictures in sets]
    if len(set(short)) < len(short):
        return list(sets)
    return [replace(pictures, name=name or pictures.name) for pictures, name in zip(sets, short, strict=True)]
