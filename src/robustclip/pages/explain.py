"""`robustclip explain`: heat maps of each referee for each text, clean and attacked, as one HTML report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from pydantic import Field, PositiveInt
from rich.console import Group

from robustclip import __version__, signatures
from robustclip.attacks.spec import AttackSpec
from robustclip.errors import UsageError, faults_of, raise_faults
from robustclip.evaluation import report as tables
from robustclip.evaluation.evaluate import MOST_AT_ONCE, Referees, checked
from robustclip.evaluation.named import load_named
from robustclip.evaluation.report import compare
from robustclip.explanation.looks import Objective
from robustclip.explanation.maps import Method, Target, check_method
from robustclip.pages.inputs import Pair, faults_of_texts, read_pairs
from robustclip.pages.rendering import write_report
from robustclip.pages.report import About, Encoded, Report, View, encode
from robustclip.pages.viewers import (
    MEANING,
    InformationViewer,
    Outcomes,
    Task,
    Viewer,
    by_size,
    case_of,
    headline,
    lines_of,
)
from robustclip.referees.smoothed import fingerprint
from robustclip.runs import terminal
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.files import check_writable, is_file, rescuing, write_json
from robustclip.runs.processes import owning, saying
from robustclip.runs.progress import watched
from robustclip.runs.terminal import counted
from robustclip.signatures import typed
from robustclip.synthesis.prompts import beyond_context

REPORT: Final = "report.html"
NUMBERS: Final = "explanation.json"
NO_ATTACK: Final = "none"


@dataclass(frozen=True)
class Explanation:
    """Result of `explain`: path of the page, the table, and the numbers of each pair."""

    page: Path
    report: tables.Report
    pairs: list[dict[str, Any]]

    def __repr__(self) -> str:
        return f"<Explanation of {len(self.pairs)} pairs of image and text in {str(self.page)!r}>"

    def _repr_html_(self) -> str:  # what a notebook shows
        return terminal.html(self.table())

    def table(self) -> Group:
        """The summary, for a terminal."""
        return self.report.table()

    def to_json(self) -> dict[str, Any]:
        """Setting, notes, rows with intervals, and the numbers of every pair by referee."""
        return self.report.to_json() | {"page": self.page.name, "pairs": self.pairs}


def read_attack(text: str) -> AttackSpec | None:
    """An attack, or None for "none". Raises UsageError for one that can't be read, or is not PGD."""
    if text.strip().lower() == NO_ATTACK:
        return None
    spec = AttackSpec.parse(text)
    spec.check_pgd("an explanation")
    return spec


@typed
def explain(
    *,
    referees: Annotated[Referees, "names, tags or folders, shown side by side"],
    images: Annotated[Sequence[str], "files, folders, emoji/SPLIT or emoji/scenes"],
    texts: Annotated[Sequence[str], "texts, paired with every image; default: each image's label or caption"] = (),
    method: Annotated[Method, "heat map method"] = "gradcam",
    layer: Annotated[str | None, "layer of the image tower; default: by architecture and method"] = None,
    target: Annotated[
        Target | None, "differentiated scalar: the text's logit (default), its cosine, or a softmax over texts"
    ] = None,
    attack: Annotated[str, "norm:eps@steps, e.g. l2:1.5@20, or none", checked(read_attack)] = "l2:1.5@20",
    objective: Annotated[Objective, "objective of the attack"] = "negation",
    negations: Annotated[Sequence[str], "negation of each text, in order; default: 'not' before it"] = (),
    targets: Annotated[Sequence[str], "target text of a targeted attack, for each text or for all"] = (),
    gradients: Annotated[bool, "also show input gradients"] = True,
    mi: Annotated[str | None, "diffusion model for maps of mutual information"] = None,
    limit: Annotated[PositiveInt | None, "number of images per folder or set, sampled by the seed"] = None,
    batch_size: Annotated[int, Field(gt=0, le=MOST_AT_ONCE)] = 16,
    out: Annotated[Path, "output folder for the report and its numbers"] = Path("runs/explanation"),
    device: Annotated[str, "auto, cpu, cuda, cuda:<index> or mps", checked(pick_device)] = "auto",
    dtype: Annotated[str, "auto, float32, bfloat16 or float16", checked(pick_dtype)] = "float32",
    seed: Annotated[int, "seed of subset, random starts and noise"] = 0,
) -> Explanation:
    """Heat maps and input gradients of referees for image-text pairs, clean and under attack, as one HTML report.

        robustclip explain --referees emoji-vanilla-long emoji-robust --images emoji/scenes --limit 12

    Writes report.html, a self-contained file, and explanation.json, its numbers.

    gradcam        class activation maps; also gradcam++, layercam, eigencam, scorecam
    gradcam-cls    as in gScoreCAM for ViTs, used by CLIPAG: weighted by the class token's gradient
    gradient       magnitude of the input gradient; smoothgrad, its mean over noisy copies

    Layer maps differentiate the text's logit (logit scale times cosine); --target cosine omits the scale, which changes
    gradcam++ and scorecam only; softmax is over all texts of the call.

    The attack is PGD on each referee separately, in a ball at each image's own size: "negation" moves an image away
    from its text and towards the negated one (CLIPAG App. B, Eq. 4), "untargeted" only away, "targeted" towards
    another text. The control is noise of the same norm. Unreadable images and referees without such maps are listed
    in the report.

    Raises one UsageError with all faults of the call.
    """
    arguments = dict(locals())
    spec, where = read_attack(attack), pick_device(device)
    loaded = load_named(referees, device=where)
    pairs, left_out = read_pairs(
        images, texts, negations=negations, targets=targets, objective=objective, limit=limit, seed=seed
    )
    if target == "softmax" and len({pair.text for pair in pairs}) < 2:
        raise UsageError("a softmax over one text is always 1: give two texts or more, or --target logit", "one_text")
    viewers = [Viewer(one, method, layer, target, dtype=pick_dtype(dtype, where), seed=seed) for one in loaded]
    if all(viewer.mapper is None for viewer in viewers):
        raise UsageError(f"none of the referees can be mapped: {viewers[0].why}", "not_mappable")
    task, balls = Task(spec, objective, gradients, seed), threats(pairs, spec)
    mi_viewer = None if mi is None else InformationViewer(mi, where, dtype=pick_dtype(dtype, where), seed=seed)
    with (
        owning(out),
        saying("stopped: an explanation is written at its end only; the same call starts over"),
    ):
        raise_faults("explain()", list(taken(out)))  # again, now that the folder is locked
        cases, outcomes = look_at(pairs, viewers, task, batch_size=batch_size, mi_viewer=mi_viewer)
        mapped = [viewer for viewer in viewers if viewer.mapper is not None]
        how: dict[str, Any] = {"method": method, "attack": attack, "limit": limit, "device": str(where)}
        target_texts = {viewer.name: viewer.mapper.target_in_words for viewer in mapped if viewer.mapper is not None}
        how["target"] = target_texts if any(target_texts.values()) else None
        how["dtype"] = str(pick_dtype(dtype, where)).removeprefix("torch.")
        setting = describe(mapped, pairs, task) | how
        measured = outcomes.measurements(spec)
        models = [] if mi_viewer is None else [mi_viewer.name]
        own = [compare("maps", {name: measured.pop(name)}, baseline=name, seed=seed) for name in models]
        notes = [f"{viewer.name} has no maps: {viewer.why}" for viewer in viewers if viewer.mapper is None]
        notes += [
            f"{one.name} truncates texts at {one.referee.text_tower.context} tokens: {len(cut)} of these, e.g. "
            f"{next(iter(cut))[:60]!r}"
            for one in loaded
            if (cut := beyond_context(one.referee, [pair.text for pair in pairs]))
        ]
        report = tables.Report(
            setting=setting,
            threats=balls,
            rows=sum(own, compare("maps", measured, baseline=mapped[0].name, seed=seed)),
            notes=[*notes, *left_out],
        )
        numbers = [
            {"id": pair.id, "text": pair.text, "other": pair.other, "box": pair.box}
            | {"referees": {name: outcomes.of(name, place) for name in [*(one.name for one in mapped), *models]}}
            for place, pair in enumerate(pairs)
        ]
        page = Report(
            title="Where referees look",
            referees=[*(about(one, method) for one in viewers), *([] if mi_viewer is None else [mi_viewer.about()])],
            summary=(lines := lines_of(report.rows)),
            headline=headline(lines),
            command=command_of(arguments),
            setting={name: in_words(value) for name, value in setting.items() if value is not None} | report.threats,
            notes=notes,
            left_out=left_out,
            explanations=MEANING,
        )
        explanation = Explanation(out / REPORT, report, numbers)
        with rescuing(explanation.to_json):
            write_report(out / REPORT, page, cases)
            write_json(out / NUMBERS, explanation.to_json())
        return explanation


def look_at(
    pairs: Sequence[Pair],
    viewers: Sequence[Viewer],
    task: Task,
    *,
    batch_size: int,
    mi_viewer: InformationViewer | None = None,
) -> tuple[list[Encoded], Outcomes]:
    """Compute all heat maps: (encoded case of each pair, in order; all numbers)."""
    cases: dict[int, Encoded] = {}
    outcomes = Outcomes()
    for viewer in viewers:
        both = [text for pair in pairs for text in (pair.text, pair.other) if text]
        viewer.read(both, [pair.text for pair in pairs])
    for places in watched(by_size(pairs, batch_size), f"explaining {counted(len(pairs), 'pair')} of image and text"):
        some = [pairs[place] for place in places]
        images = torch.stack([pair.image for pair in some])
        seen = {viewer.name: viewer.see(some, images, task) for viewer in viewers}
        views: list[View] = []
        if mi_viewer is not None:
            of_model, views = mi_viewer.see(some, images)
            outcomes.add(mi_viewer.name, places, of_model, len(pairs))
        for row, place in enumerate(places):
            case = case_of(pairs[place], images[row], row, viewers, seen)
            cases[place] = encode(replace(case, views=[*case.views, *views[row : row + 1]]))
        for name, found in seen.items():
            if found is not None:
                outcomes.add(name, places, found, len(pairs))
    return [cases[place] for place in range(len(pairs))], outcomes


def faults(
    images: Sequence[str],
    texts: Sequence[str],
    method: Method,
    objective: Objective,
    negations: Sequence[str],
    targets: Sequence[str],
    out: Path,
) -> Iterator[str | UsageError]:
    """Faults of an `explain` call that can be found before loading anything."""
    yield from faults_of_texts(images, texts, negations, targets, objective=objective)
    yield from faults_of([partial(check_method, method), partial(check_writable, out, folder=True)])
    yield from taken(out)


def taken(out: Path) -> Iterator[str | UsageError]:
    """Faults of an output folder that already holds an explanation."""
    if is_file(Path(out) / NUMBERS) or is_file(Path(out) / REPORT):
        yield UsageError(f"{out} already holds an explanation: give another folder", "already_done", out=out)


def command_of(arguments: Mapping[str, Any]) -> str:
    """The command line of an `explain` call; "" where a referee is an object, which has no name to load it by."""
    if any(not isinstance(one, str | Path) for one in arguments["referees"]):
        return ""
    return shlex.join(["robustclip", "explain", *signatures.flags(signature(explain).parameters, arguments)])


def about(viewer: Viewer, method: Method) -> About:
    """A referee's entry in the report's footer."""
    mapper, card = viewer.mapper, viewer.named.referee.card
    layer = "" if mapper is None else mapper.layer_name
    if mapper is not None and mapper.grid is not None:
        layer += f" ({mapper.grid[0]}x{mapper.grid[1]} cells)"
    return About(viewer.name, method, layer, fingerprint(viewer.named.referee), card.to_json(), viewer.why)


def threats(pairs: Sequence[Pair], spec: AttackSpec | None) -> dict[str, str]:
    """The threat model as text, at the images' size if they share one. Raises UsageError where an eps is too large for
    one of the sizes."""
    sizes = {pair.size for pair in pairs}
    if spec is None:
        return {}
    if len(sizes) == 1:
        return {str(spec): str(spec.threat(sizes.pop()))}
    each = [str(spec.threat(size)) for size in sorted(sizes)]
    few = f"{'; '.join(each[:3])}{'; ...' if len(sizes) > 3 else ''}"
    return {str(spec): f"at each image's own size, {len(sizes)} sizes: {few}"}


def describe(viewers: Sequence[Viewer], pairs: Sequence[Pair], task: Task) -> dict[str, Any]:
    """Settings of the explanation: data, layers, seed, versions."""
    images = len({pair.id for pair in pairs})
    return {
        "data": f"{counted(images, 'image')}, {counted(len(pairs), 'pair')} of image and text",
        "images": images,
        "pairs": len(pairs),
        "layers": {viewer.name: viewer.mapper.layer_name for viewer in viewers if viewer.mapper is not None},
        "objective": task.objective if task.spec is not None else None,
        "baseline": viewers[0].name,
        "seed": task.seed,
        "versions": {"robustclip": __version__, "torch": torch.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def in_words(value: Any) -> str:
    """A setting's value as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {inner}" for name, inner in value.items())
    return str(value)
