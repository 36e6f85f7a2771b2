"""`robustclip judge --benchmark compbench`: score pictures of the benchmark's prompts, with intervals over prompts."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import torch

from robustclip.errors import UsageError
from robustclip.evaluation import intervals
from robustclip.evaluation.generation.compbench.prompts import Category, normal, read_prompts
from robustclip.evaluation.generation.compbench.roles import Parts, Roles, Scored, Scorer
from robustclip.evaluation.generation.judgement import Figure, JudgeReport
from robustclip.evaluation.generation.pictures import Pictures
from robustclip.referees.similarity import batches
from robustclip.referees.smoothed import fingerprint
from robustclip.runs.files import is_file, plain, read_json, write_json

ANSWERS: Final = "answers"
"""The folder with one JSON file per picture, from which an interrupted judgement resumes."""
VERSION: Final = 1  # of the scores; files of another version are not reused
ROLES: Final = {
    "vqa-product": ("questions",),
    "soft-tifa": ("questions",),
    "detected-places": ("detector",),
    "detected-numbers": ("detector",),
    "cosine": ("clip",),
    "3-in-1": ("questions", "detector", "clip"),
}


def judge_benchmark(
    sets: Sequence[Pictures],
    roles: Roles,
    category: Category,
    *,
    parts: dict[str, Parts] | None = None,
    out: Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> JudgeReport:
    """Score sets of pictures, matched to the same prompts (`prompts.match`), in one category.

    With `out`, each picture's answers and scores are saved there at once, and stored ones of the same picture, prompt
    and judges are reused. Intervals are bootstrapped over prompts, whose pictures are averaged first; two sets are
    compared prompt by prompt.

    Raises UsageError for a missing judge, and for prompts that are not of the category.
    """
    scorer = Scorer(roles, category, parts)
    for prompt in dict.fromkeys(prompt for pictures in sets for prompt in pictures.prompts):
        scorer.check(prompt)
    judges = _judges(roles)
    report = JudgeReport(_setting(sets, roles, category, seed), [], [note for one in sets for note in one.notes])
    means: dict[str, dict[str, dict[str, float]]] = {}
    for pictures in sets:
        scored = _scored(scorer, pictures, judges, out, batch_size)
        report.pictures[pictures.name] = _of_pictures(pictures, scored, roles)
        means[pictures.name] = _by_prompt(pictures, scored)
        for metric, values in means[pictures.name].items():
            interval = intervals.mean(list(values.values()), seed=seed)
            report.figures.append(_figure(pictures.name, metric, interval, roles, category, seed))
    for others, pictures in combinations(sets, 2):
        for metric, values in means[pictures.name].items():
            other = means[others.name][metric]
            both = [values[prompt] - other[prompt] for prompt in values if prompt in other]
            interval = intervals.mean(both, seed=seed)
            report.figures.append(_figure(pictures.name, metric, interval, roles, category, seed, others.name))
    counts = sorted({len(one) // max(len(set(one.prompts)), 1) for one in sets})
    report.notes.append(
        f"n counts prompts, of {' or '.join(map(str, counts))} pictures each; noun phrases by {roles.chunker.name}"
        if not roles.grammar
        else f"n counts prompts, of {' or '.join(map(str, counts))} pictures each; questions are the captions' atoms"
    )
    return report


def complex_parts(file: Path, prompts: Sequence[str]) -> dict[str, Parts]:
    """The parts of each complex prompt's score, by the lists complex_val_spatial.txt and complex_val_action.txt beside
    complex_val.txt (3_in_1.py); all three for prompts in neither list.

    Raises UsageError if one of the lists is missing.
    """
    lists = [file.with_name(f"{file.stem}_{kind}{file.suffix}") for kind in ("spatial", "action")]
    if lacking := [one.name for one in lists if not is_file(one)]:
        raise UsageError(
            f"complex prompts need the benchmark's lists of spatial and action prompts beside {file}: add "
            f"{' and '.join(lacking)}",
            "list_missing",
            files=lacking,
        )
    places, actions = ({normal(prompt) for prompt in read_prompts(one)} for one in lists)
    return {
        key: Parts(key in places or key not in actions, key not in places)
        for key in (normal(prompt) for prompt in prompts)
    }


def _scored(
    scorer: Scorer, pictures: Pictures, judges: dict[str, str], out: Path | None, batch_size: int
) -> list[Scored]:
    results: list[Scored] = []
    for rows in batches(torch.arange(len(pictures)), batch_size, f"{scorer.category}: {pictures.name}"):
        images, places = pictures.images[rows], rows.tolist()
        files = [
            _file(out, scorer, image, pictures.prompts[place], judges)
            for image, place in zip(images, places, strict=True)
        ]
        kept = [_kept(file) for file in files]
        left = [row for row, one in enumerate(kept) if one is None]
        made = scorer.score(images[left], [pictures.prompts[places[row]] for row in left]) if left else []
        for row, scored in zip(left, made, strict=True):
            kept[row] = scored
            if (file := files[row]) is not None:
                facts = {"picture": pictures.ids[places[row]], "prompt": pictures.prompts[places[row]]}
                settings = {"category": scorer.category, "judges": judges, "version": VERSION}
                write_json(file, plain({**facts, **settings, "scores": scored.scores, **scored.details}))
        results += [one for one in kept if one is not None]
    return results


def _file(out: Path | None, scorer: Scorer, image: torch.Tensor, prompt: str, judges: dict[str, str]) -> Path | None:
    """The file of a picture's scores, named by a hash of everything they depend on."""
    if out is None:
        return None
    parts = None if scorer.parts is None else vars(scorer.parts[normal(prompt)])
    how = [VERSION, scorer.category, prompt, judges, scorer.roles.chunker.name, parts]
    key = hashlib.sha256(json.dumps(how).encode() + image.contiguous().numpy().tobytes()).hexdigest()
    return out / ANSWERS / f"{key[:32]}.json"


def _kept(file: Path | None) -> Scored | None:
    if file is None or not is_file(file):
        return None
    values = read_json(file)
    scores = values.get("scores") if isinstance(values, dict) else None
    if not (isinstance(scores, dict) and all(isinstance(one, int | float) for one in scores.values())):
        raise UsageError(
            f"{file} contains no scores of a picture: remove it to judge its picture again", "answers_damaged"
        )
    return Scored(scores, {name: values[name] for name in ("answers", "found") if name in values})


def _judges(roles: Roles) -> dict[str, str]:
    """{name: fingerprint} of all judges."""
    judges = {one.name: one.fingerprint for one in (roles.questions, roles.detector) if one is not None}
    return judges | ({} if roles.clip is None else {roles.clip.name: fingerprint(roles.clip.referee)})


def _named(roles: Roles, metric: str) -> tuple[str, str]:
    """Names and hashes of the judges of a metric, joined."""
    judges: dict[str, str] = {}
    for role in ROLES[metric]:
        one = getattr(roles, role)
        judges[one.name] = fingerprint(one.referee) if role == "clip" else one.fingerprint
    return " + ".join(judges), " + ".join(judges.values())


def _setting(sets: Sequence[Pictures], roles: Roles, category: Category, seed: int) -> dict[str, Any]:
    return {
        "benchmark": "compbench",
        "category": category,
        "pictures": {pictures.name: len(pictures) for pictures in sets},
        "guides": {pictures.name: pictures.guides for pictures in sets},
        "prompts": len({prompt for pictures in sets for prompt in pictures.prompts}),
        "judges": _judges(roles),
        "questions": "atoms" if roles.grammar else f"noun phrases by {roles.chunker.name}",
        "calibration": roles.calibration,
        "seed": seed,
    }


def _of_pictures(pictures: Pictures, scored: Sequence[Scored], roles: Roles) -> dict[str, dict[str, Any]]:
    by_prompt: dict[str, dict[str, Any]] = {}
    seeds = pictures.seeds or [None] * len(pictures)
    for name, prompt, seed, one in zip(pictures.ids, pictures.prompts, seeds, scored, strict=True):
        judges: dict[str, dict[str, Any]] = defaultdict(dict)
        for metric, value in one.scores.items():
            judges[_named(roles, metric)[0]][metric] = value
        by_prompt.setdefault(prompt, {})[name] = {"seed": seed, "judges": dict(judges), **plain(one.details)}
    return by_prompt


def _by_prompt(pictures: Pictures, scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """{metric: {prompt: mean of its pictures}}."""
    by_metric: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for prompt, one in zip(pictures.prompts, scored, strict=True):
        for metric, value in one.scores.items():
            by_metric[metric][prompt].append(value)
    return {
        metric: {prompt: sum(each) / len(each) for prompt, each in values.items()}
        for metric, values in by_metric.items()
    }


def _figure(
    name: str,
    metric: str,
    interval: intervals.Interval,
    roles: Roles,
    category: Category,
    seed: int,
    against: str = "",
) -> Figure:
    judge, digest = _named(roles, metric)
    right = roles.calibration.get("categories", {}).get("colour" if category == "color" else category)
    calibration = None
    if right and metric in ("vqa-product", "soft-tifa"):
        share, low, high = (f"{100 * right[key]:.1f}" for key in ("value", "low", "high"))
        calibration = f"accuracy on such questions {share}% ({low} to {high}, n = {right['n']}, chance 50)"
    return Figure(
        pictures=name,
        judge=judge,
        fingerprint=digest,
        metric=metric,
        kind="difference" if against else "value",
        against=against,
        **vars(interval),
        seed=seed,
        calibration=calibration,
    )
