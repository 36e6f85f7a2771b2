"""`robustclip evaluate`: compare referees on the same images, clean and under attack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt
from torch import Tensor

from robustclip import __version__
from robustclip.attacks import AttackSpec, attacking
from robustclip.attacks.library import check_installed
from robustclip.attacks.threat import ThreatModel
from robustclip.data.embedded import EMBEDDED_DATA
from robustclip.data.examples import Examples, odd_pictures, read_examples
from robustclip.errors import UsageError, faults_of, raise_faults
from robustclip.evaluation import certification
from robustclip.evaluation import masking as masked
from robustclip.evaluation.ledger import Ledger, taken
from robustclip.evaluation.named import (
    NamedReferee,
    Setting,
    folder_to_sign,
    load_named,
    output_faults,
    prompts_of,
    sign_cards,
)
from robustclip.evaluation.pag import read_spec
from robustclip.evaluation.perceptual import NIGHTS_TABLE, nights_examples
from robustclip.evaluation.report import Findings, Report, compare
from robustclip.evaluation.tasks import TASKS, candidates, missing_for
from robustclip.evaluation.universal import Applied, read_universal
from robustclip.explanation.gradients import gradient_picture
from robustclip.explanation.maps import Method, check_method
from robustclip.referees.base import TwoTower
from robustclip.referees.preprocess import LARGEST
from robustclip.referees.similarity import resolve_templates
from robustclip.referees.smoothed import check_judge, fingerprint
from robustclip.runs import terminal
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.files import is_file, rescuing
from robustclip.runs.processes import owning, saying
from robustclip.runs.rng import generator
from robustclip.runs.terminal import counted
from robustclip.signatures import typed

Referees = Sequence[str | Path | TwoTower]
TaskName = Literal[
    "zero-shot",
    "retrieval",
    "gradients",
    "pag",
    "maps",
    "faithfulness",
    "distance",
    "certification",
    "corruptions",
    "edits",
]
COLUMNS = 8  # of the gradient picture
Labels = Literal["all", "present"] | PositiveInt
Side = Annotated[int, Field(gt=0, le=LARGEST)]
MOST_AT_ONCE = 2**20  # images in a batch
JUDGE = "emoji-judge"  # default for the embedded sets
PULL = "l2:12@20"  # RMS 28/255 at 64x64, where the embedded guides differ most
PGD_ONLY = ("retrieval", "maps", "faithfulness", "distance")  # retrieval also takes stored perturbations
DETERMINING = ("data", "images", "size", "templates", "labels", "batch_size", "dtype", "device", "seed", "versions")
ENOUGH = 200  # images; with fewer, a note warns of wide intervals


def checked(read: Callable[[Any], object]) -> AfterValidator:
    """A validator of a flag: `read` raises UsageError for an invalid value, or for one of a sequence."""

    def check(value: Any) -> Any:
        for one in [value] if isinstance(value, str) else value:
            read(one)
        return value

    return AfterValidator(check)


def listed(values: Any) -> Any:
    """A sequence with its texts split at commas; anything else is left to the next validator."""
    if not isinstance(values, list | tuple):
        return values
    return [part for value in values for part in (value.split(",") if isinstance(value, str) else [value])]


@typed
def evaluate(
    referees: Annotated[Referees, "names, tags or folders"],
    *,
    data: Annotated[str | Path, "emoji/SPLIT, a folder of class folders, a clip_benchmark folder, or wds/NAME"] = (
        "emoji/unseen-styles"
    ),
    tasks: Annotated[Sequence[TaskName], "what to measure", BeforeValidator(listed)] = ("zero-shot",),
    attack: Annotated[
        Sequence[str],
        "e.g. l2:1.5@20 (PGD), l2:1.5@autoattack-light or l2:1.5@universal:FILE",
        BeforeValidator(listed),
        checked(AttackSpec.parse),
    ] = (),
    judge: Annotated[str | None, "judge of the PAG score; default for emoji sets: emoji-judge"] = None,
    pag: Annotated[str, "attack of the PAG score", checked(read_spec)] = PULL,
    method: Annotated[Method, "heat map method of the tasks maps and faithfulness; see explain"] = "gradcam",
    layer: Annotated[str | None, "layer for heat maps; default: by architecture and method"] = None,
    sigma: Annotated[float | None, "noise of certification: standard deviation on [0,1] pixels, e.g. 0.25"] = None,
    samples: Annotated[PositiveInt, "noisy copies per image for certification"] = certification.SAMPLES,
    templates: Annotated[str, "plain, emoji, photo, openai-simple, dataset, or a text file"] = "plain",
    labels: Annotated[
        Labels, "candidate labels: all of the set, those of its images, or a number that includes these"
    ] = "all",
    limit: Annotated[PositiveInt | None, "number of images, sampled by the seed"] = None,
    size: Annotated[Side | None, "resize images of a folder to this height and width"] = None,
    batch_size: Annotated[int, Field(gt=0, le=MOST_AT_ONCE)] = 64,
    baseline: Annotated[str | None, "referee that others are compared with; default: the first"] = None,
    prompts: Annotated[Sequence[str], "texts of the gradient picture; default: labels of sampled images"] = (),
    masking: Annotated[bool, "run gradient-masking sanity checks"] = False,
    masking_source: Annotated[
        str | None, "source referee of the transfer check; default: the others, or emoji-vanilla"
    ] = None,
    sign: Annotated[bool, "sign the results into the referees' cards"] = False,
    out: Annotated[Path | None, "output folder for results, per-sample outcomes and pictures"] = None,
    resume: Annotated[bool, "continue an interrupted evaluation in --out"] = False,
    csv: Annotated[Path | None, "CSV file of the rows"] = None,
    overwrite: bool = False,  # noqa: ARG001  (see `faults`)
    device: Annotated[str, "auto, cpu, cuda, cuda:<index> or mps", checked(pick_device)] = "auto",
    dtype: Annotated[str, "auto, float32, bfloat16 or float16", checked(pick_dtype)] = "float32",
    seed: Annotated[int, "seed of subset, random starts, noise and bootstrap"] = 0,
) -> Report:
    """Evaluate referees on the same images, clean and under attack.

    Attacks act on the images at their given size (64x64 for the emoji set), before a referee resizes them; an L2 eps
    refers to that size. The control of each attack is noise of the same norm. Results have 95% intervals, paired for
    differences of two referees.

    The task pag is the PAG score (`evaluation.pag`): each image is attacked towards another's name and classified by
    `judge`, which must not be one of the referees. The tasks maps and faithfulness evaluate heat maps as in `explain`;
    emoji/scenes has bounding boxes. Their attack is CLIPAG's Eq. 4, away from a text and towards its negation.

    norm:eps@universal:FILE adds one stored perturbation to all images (`robustclip universal`), resized to them and
    projected into the ball, for zero-shot classification and retrieval. Its control has its values at random places.

    Zero-shot classification also takes classifier attacks (`attacks.library`): apgd-ce, apgd-dlr, apgd-t, square,
    autoattack and autoattack-light. With several attacks in one ball, the row "worst l2:1.5" is the worst case over
    them. With `out`, attacked batches are saved as they finish; `resume` continues from them with the results of an
    uninterrupted evaluation. Tasks other than zero-shot start over.

    The task distance is two-alternative forced choice by the referee's distance (`evaluation.perceptual`): of two
    images, which is nearer to a reference? On each image under a corruption at two strengths, or on the votes of
    NIGHTS, if `data` is its folder. Its attack moves the reference.

    The task corruptions applies common corruptions at five strengths (`evaluation.corruptions`). `masking` runs
    gradient-masking sanity checks under the first attack (`evaluation.masking`).

    The task certification gives certified L2 radii (`evaluation.certification`) of the smoothed classifier with noise
    of `sigma`, not of the referee.

    Raises one UsageError with all faults of the call, another for data that a task cannot use.
    """
    attacks = list(dict.fromkeys(AttackSpec.parse(text) for text in attack))
    where = pick_device(device)
    first = [] if baseline is None else [baseline]
    measured = load_named([*first, *(one for one in referees if one not in first)], device=where)
    pag_judge = load_pag_judge(judge, measured, device=where) if "pag" in tasks else None
    if sign:
        for one in measured:
            folder_to_sign(one)
    nights = "distance" in tasks and is_file(Path(data) / NIGHTS_TABLE)
    read = nights_examples if nights else read_examples
    examples = read(data, size=size, limit=limit, seed=seed)
    for line in examples.reported:
        terminal.note(f"data: {line}")
    needed = [*tasks, "masking"] if masking else tasks
    lacking = [(task, fault) for task in needed if (fault := missing_for(task, examples, unattacked=not attacks))]
    raise_faults("evaluate()", [UsageError(fault, "missing_data", task=task) for task, fault in lacking])
    sources = masked.sources_of(measured, masking_source, examples.name, device=where) if masking else []
    pulled = read_spec(pag) if pag_judge is not None else None
    specs = attacks if pulled is None else [*attacks, pulled]
    threats = {str(spec): spec.threat(examples.size) for spec in specs}
    stored = {
        str(spec): Applied.of(spec, examples.images, examples.size, batch_size=batch_size, seed=seed)
        for spec in attacks
        if spec.kind == "universal"
    }
    setting = Setting(
        examples=examples,
        attacks=attacks,
        templates=resolve_templates((examples.templates or "plain") if templates == "dataset" else templates),
        present_only=labels == "present",
        batch_size=batch_size,
        dtype=pick_dtype(dtype, where),
        seed=seed,
        judge=pag_judge,
        pull=pulled,
        method=method,
        layer=layer,
        sigma=sigma,
        samples=samples,
        count=labels if isinstance(labels, int) else None,
        stored={name: delta for one in stored.values() for name, delta in one.deltas.items()},
    )
    if "zero-shot" in tasks:
        candidates(setting)  # raises before hours of another task
    description = describe(setting, tasks=tasks, baseline=measured[0].name, limit=limit, device=where)
    description |= {} if size is None else {"resized_to": size}
    if stored:
        description["universal"] = {name: one.record for name, one in stored.items()}
    report = Report(
        setting=description,
        threats={
            name: f"{threat}; {stored[name]}" if name in stored else str(threat) for name, threat in threats.items()
        },
        rows=[],
        notes=[*examples.reported, *notes(measured, examples, threats)],
    )
    kept = out is not None and bool(attacks) and "zero-shot" in tasks
    stopped = f"attacked batches are saved in {out}: the same call with --resume continues"
    with owning(out), saying(f"stopped: {stopped if kept else 'nothing is saved, and the same call starts over'}"):
        raise_faults("evaluate()", list(taken(out, resume=resume)))  # again, now that the folder is locked
        if out is not None and kept:
            setting = replace(setting, ledger=Ledger(out, determining(description, examples)))
        measure_all(report, measured, setting, tasks)
        if masking:
            report.checks = masked.checks_of_all(measured, sources, setting, candidates(setting))
        if "gradients" in tasks:
            report.picture = picture(measured, setting, prompts)
        report.notes += odd_pictures(examples)
        with rescuing(report.to_json):
            if out is not None:
                report.save(out)
            if csv is not None:
                report.write_csv(csv)
            if sign:
                sign_cards(measured, report)
    return report


def measure_all(report: Report, measured: Sequence[NamedReferee], setting: Setting, wanted: Sequence[str]) -> None:
    """Add the rows and predictions of all tasks to the report, each once."""
    for task in dict.fromkeys(wanted):
        by_referee = {one.name: measure(task, one, setting) for one in measured}
        measurements = {name: findings.measurements for name, findings in by_referee.items()}
        report.rows += compare(task, measurements, baseline=measured[0].name, seed=setting.seed)
        for name, findings in by_referee.items():
            report.predictions += [{"referee": name, "task": task} | entry for entry in findings.predictions]


def load_pag_judge(name: str | None, guides: Sequence[NamedReferee], *, device: torch.device) -> NamedReferee:
    """The PAG score's judge. Raises UsageError if it has the image tower of one of the guides."""
    [judge] = load_named([JUDGE if name is None else name], device=device)
    for guide in guides:
        check_judge(guide.referee, judge.referee)
    return judge


def determining(description: Mapping[str, Any], examples: Examples) -> dict[str, Any]:
    """The settings and samples that determine outcomes, apart from referee and attack."""
    return {name: description[name] for name in DETERMINING} | {"samples": digest_of(examples)}


def digest_of(examples: Examples) -> str:
    """SHA-256 of the images' ids and labels."""
    samples = json.dumps([examples.ids, examples.labels.tolist(), examples.label_names])
    return hashlib.sha256(samples.encode()).hexdigest()


def faults(
    tasks: Sequence[str],
    data: str | Path,
    attack: Sequence[str],
    judge: str | None,
    method: str,
    layer: str | None,
    templates: str,
    masking: bool,
    masking_source: str | None,
    sigma: float | None,
    samples: int,
    sign: bool,
    out: Path | None,
    resume: bool,
    csv: Path | None,
    overwrite: bool,
) -> Iterator[str | UsageError]:
    """Faults of an `evaluate` call that can be found before loading anything."""
    maps = bool({"maps", "faithfulness"} & set(tasks))
    if layer is not None and not maps:
        message = f"the layer {layer!r} has no effect without heat maps: add the task maps, or leave it out"
        yield UsageError(message, "no_effect", argument="layer")
    if judge is not None and "pag" not in tasks:
        message = f"the judge {judge!r} has no effect without the task pag: add that, or leave the judge out"
        yield UsageError(message, "no_effect", argument="judge")
    if judge is None and "pag" in tasks and not str(data).startswith(EMBEDDED_DATA):
        message = f"the task pag on {str(data)[:200]!r} needs a judge, a referee unrelated to those measured"
        yield UsageError(message, "no_judge")
    checks: list[Callable[[], object]] = [partial(check_attack, text, tasks) for text in attack]
    checks += [partial(check_method, method)] if maps else []
    checks += [partial(resolve_templates, templates)] if templates != "dataset" else []
    yield from faults_of(checks)
    yield from output_faults(out, csv, overwrite=overwrite)
    if sign and templates != "plain":
        message = f"a signed claim is measured with the templates plain, not {templates}: leave out one of the two"
        yield UsageError(message, "not_signable", templates=templates)
    if sign and any("@universal:" in text for text in attack):
        message = "a signed claim is measured again anywhere, and stored perturbations are files of here: leave one out"
        yield UsageError(message, "not_signable")
    if out is None and resume:
        yield UsageError("resume needs the folder of the interrupted evaluation: give it as out", "no_folder")
    yield from taken(out, resume=resume)
    yield from masked.faults(attack, data, masking_source, masking=masking)
    yield from certification.faults(tasks, sigma, samples, sign=sign)


def check_attack(text: str, tasks: Sequence[str]) -> None:
    """Raise UsageError for an invalid attack, or one that a task cannot run."""
    spec = AttackSpec.parse(text)
    for task in tasks:
        if task in PGD_ONLY and (task, spec.kind) != ("retrieval", "universal"):
            spec.check_pgd(f"the task {task}")
    if spec.kind == "universal":
        read_universal(spec.file)
    elif spec.kind != "pgd":
        check_installed()


def measure(task: str, one: NamedReferee, setting: Setting) -> Findings:
    """Run one task on one referee, in eval mode with frozen weights (both restored)."""
    with attacking(one.referee):
        return TASKS[task](one.referee, setting, f"{one.name}, {task}")


def picture(measured: Sequence[NamedReferee], setting: Setting, prompts: Sequence[str] = ()) -> Float[Tensor, "3 h w"]:
    """Input gradients of all referees towards each prompt, on an image with that label or caption if there is one.

    Other prompts get random images; without prompts, labels or captions of random images are used.
    """
    examples, truths = setting.examples, prompts_of(setting.examples)
    drawn = torch.randperm(len(examples), generator=generator(setting.seed, "gradient picture")).tolist()
    prompts = prompts or [truths[index] for index in drawn[:COLUMNS]]
    places = [truths.index(prompt) if prompt in truths else drawn[i % len(drawn)] for i, prompt in enumerate(prompts)]
    return gradient_picture(
        [(one.name, one.referee) for one in measured], examples.images[torch.tensor(places)], prompts, setting.dtype
    )


def notes(measured: Sequence[NamedReferee], examples: Examples, threats: Mapping[str, ThreatModel]) -> Iterator[str]:
    """Caveats of the results."""
    if len(examples) < ENOUGH:
        yield f"only {counted(len(examples), 'image')}: intervals are wide"
    for one in measured:
        trained = one.referee.card.threat
        for attack, threat in threats.items():
            if trained is None or trained.norm != threat.norm or threat.norm != "l2" or trained.size == threat.size:
                continue
            same = trained.resized(threat.size)
            yield (
                f"{one.name} was trained for {trained}; on these images that change is l2 eps {same.eps:.3g}, "
                f"and {attack} is {threat.eps / same.eps:.3g} times it"
            )


def describe(
    setting: Setting, *, tasks: Sequence[str], baseline: str, limit: int | None, device: torch.device
) -> dict[str, Any]:
    """The report's setting."""
    judged: dict[str, Any] = {}
    if setting.judge is not None:
        judged = {"judge": {"name": setting.judge.name, "fingerprint": fingerprint(setting.judge.referee)}}
        judged["pag"] = str(setting.pull)
    return {
        "data": setting.examples.name,
        "images": len(setting.examples),
        "limit": limit,
        "size": list(setting.examples.size),
        "tasks": list(tasks),
        "attacks": [str(spec) for spec in setting.attacks],
        **judged,
        **({"method": setting.method, "layer": setting.layer} if {"maps", "faithfulness"} & set(tasks) else {}),
        **({"sigma": setting.sigma, "samples": setting.samples} if "certification" in tasks else {}),
        "templates": list(setting.templates),
        "labels": setting.count or ("present" if setting.present_only else "all"),
        "baseline": baseline,
        "batch_size": setting.batch_size,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "device": str(device),
        "seed": setting.seed,
        "versions": {"robustclip": __version__, "torch": torch.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
