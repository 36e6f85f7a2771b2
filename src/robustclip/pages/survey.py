"""Survey: participants choose, blind, which of two pictures fits its prompt better; and its evaluation."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
from pydantic import PositiveInt

from robustclip import __version__
from robustclip.data.images import to_pil
from robustclip.data.tables import table_rows
from robustclip.errors import UsageError, faults_of
from robustclip.evaluation.generation.measure import shared
from robustclip.evaluation.generation.pictures import Pictures, read_pictures
from robustclip.evaluation.intervals import CONFIDENCE, RESAMPLES, Interval, preference
from robustclip.pages.rendering import environment
from robustclip.runs.files import (
    atomic_write,
    check_new_file,
    is_file,
    is_folder,
    read_json,
    read_text,
    write_json,
)
from robustclip.runs.rng import generator
from robustclip.signatures import typed

QUESTION: Final = "Which picture shows this better?"
ANSWERS: Final = {"left": 1.0, "neither": 0.5, "right": 0.0}
HEADER: Final = ["trial", "answer", "seconds"]
SHOWN: Final = 320  # pixels of a picture's side on the page
LONGEST: Final = 2**24  # maximal bytes of a file of answers


@typed
def make(
    pictures: Annotated[Sequence[Path], "two or more folders of `synthesize`, or of images, of the same prompts"],
    *,
    out: Annotated[Path, "output page; its key (the set of each picture) is written beside it"],
    question: Annotated[str, "question on each two pictures"] = QUESTION,
    trials: Annotated[PositiveInt | None, "number of trials, drawn by the seed; default: all"] = None,
    size: Annotated[PositiveInt | None, "resize pictures to this height and width"] = None,
    overwrite: bool = False,  # noqa: ARG001  (see `faults`)
    seed: Annotated[int, "seed of the subset, order and sides of trials"] = 0,
) -> dict[str, Any]:
    """Make a page that asks which of two pictures fits their prompt better.

    The page is one file that sends nothing: participants open it, answer with the arrow keys, and save their answers as
    CSV. Sets are compared in pairs on their common prompts and seeds, in random order and on random sides. Only the key
    PAGE.key.json, for `robustclip survey read`, has the set of each picture.

    Raises UsageError for fewer than two sets, and sets that share no prompt.
    """
    key = _key_of(out)
    sets = [read_pictures(folder, size=size) for folder in pictures]
    if len({one.name for one in sets}) < len(sets):
        raise UsageError("a set is given twice: give different ones", "set_twice")
    pairs = [
        (first, mine, second, theirs)
        for first, second in combinations(range(len(sets)), 2)
        for mine, theirs in zip(*shared(sets[first], sets[second]), strict=True)
    ]
    if not pairs:
        raise UsageError("the sets share no prompt (and seed): give sets of the same prompts", "nothing_shared")
    stream = generator(seed, "survey")
    order = torch.randperm(len(pairs), generator=stream).tolist()[:trials]
    turned = (torch.rand(len(pairs), generator=stream) < 0.5).tolist()
    shown, kept = [], []
    for number in order:
        first, mine, second, theirs = pairs[number]
        sides = [(sets[first], mine), (sets[second], theirs)]
        left, right = reversed(sides) if turned[number] else sides
        name = hashlib.sha256(f"{seed} {number} {question}".encode()).hexdigest()[:12]
        prompt = sets[first].prompts[mine]
        shown.append({"trial": name, "prompt": prompt, "left": _encoded(*left), "right": _encoded(*right)})
        kept.append({"trial": name, "prompt": prompt, "left": left[0].name, "right": right[0].name})
    code = environment().get_template("survey.js").render()
    script = f"const TRIALS = {_in_script(shown)};\n{code}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment().get_template("survey.html.j2")
    with atomic_write(out, "w") as file:
        file.write(
            page.render(
                question=question, script=script, script_hash=f"sha256-{digest}", size=SHOWN, version=__version__
            )
        )
    write_json(key, {"question": question, "seed": seed, "sets": [one.name for one in sets], "trials": kept})
    return {"page": str(out), "key": str(key), "trials": len(shown), "sets": len(sets)}


@typed
def read(
    key: Annotated[Path, "the page's PAGE.key.json"],
    answers: Annotated[Sequence[Path], "participants' answers, one file each"],
    *,
    seed: Annotated[int, "seed of the bootstrap"] = 0,
) -> dict[str, Any]:
    """Evaluate a survey: the share of trials on which each set was preferred to each other, with 95% intervals.

    "neither" counts half. With one answer per trial the interval is Wilson's; with several, trials are resampled with
    all their answers (bootstrap), as answers to one trial are correlated.

    Raises UsageError for files that are not of this survey, and for two answers to one trial in a file.
    """
    trials, sets = _key(key)
    by_trial: dict[str, list[float]] = {}
    left = {"left": 0, "answers": 0, "neither": 0}
    for file in dict.fromkeys(one.resolve() for one in answers):
        for trial, answer in _answers(file, trials):
            by_trial.setdefault(trial, []).append(ANSWERS[answer])
            left["answers"] += 1
            left["left"] += answer == "left"
            left["neither"] += answer == "neither"
    if not by_trial:
        raise UsageError(f"nobody answered any of the {len(trials)} trials of {key}", "no_answers")
    preferences = []
    for first, second in combinations(sets, 2):
        shares = []
        for trial, values in by_trial.items():
            sides = trials[trial]
            if {sides["left"], sides["right"]} == {first, second}:
                shares.append([value if sides["left"] == first else 1 - value for value in values])
        if shares:
            preferences.append({"set": first, "against": second, **vars(_interval(shares, seed))})
    return {"trials": len(trials), "answered": len(by_trial), **left, "preferences": preferences}


def _interval(shares: Sequence[Sequence[float]], seed: int) -> Interval:
    """Interval of the mean over trials, each with one or several answers."""
    if all(len(values) == 1 for values in shares):
        flat = np.array([values[0] for values in shares])
        return preference(flat, np.full_like(flat, 0.5))
    totals, counts = np.array([sum(values) for values in shares]), np.array([len(values) for values in shares])
    rows = np.random.default_rng(seed).integers(len(shares), size=(RESAMPLES, len(shares)))
    drawn = totals[rows].sum(1) / counts[rows].sum(1)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(totals.sum() / counts.sum()), float(low), float(high), int(counts.sum()))


def faults(pictures: Sequence[Path], out: Path, overwrite: bool) -> Iterator[str | UsageError]:
    """Faults of a call of `make` that can be found before reading pictures."""
    if len(pictures) < 2:
        yield "a survey compares two sets of pictures or more: survey make RUN_A RUN_B --out survey.html"
    for folder in pictures:
        if not is_folder(folder):
            yield f"no folder of pictures at {str(folder)[:200]!r}"
    yield from faults_of(partial(check_new_file, file, overwrite=overwrite) for file in (out, _key_of(out)))


def _key_of(page: Path) -> Path:
    return page.with_name(f"{page.stem}.key.json")


def _encoded(pictures: Pictures, place: int) -> str:
    """A picture without its file's metadata, as a data URL."""
    file = io.BytesIO()
    to_pil(pictures.images[torch.tensor([place])][0]).save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _in_script(values: object) -> str:
    """JSON escaped for use in a script element."""
    return json.dumps(values).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _key(file: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """({trial: its sides}, names of the sets) of a key."""
    values = read_json(file)
    trials = values.get("trials") if isinstance(values, dict) else None
    fields = ("trial", "left", "right")
    if (
        not isinstance(trials, list)
        or not isinstance(values.get("sets"), list)
        or not all(isinstance(one, dict) and all(isinstance(one.get(field), str) for field in fields) for one in trials)
    ):
        raise UsageError(f"{file} is not a key of a survey: give the PAGE.key.json of survey make", "no_key")
    return {one["trial"]: one for one in trials}, [str(name) for name in values["sets"]]


def _answers(file: Path, trials: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    if not is_file(file):
        raise UsageError(f"there is no file of answers at {str(file)[:200]!r}", "no_answers")
    rows = table_rows(io.StringIO(read_text(file, LONGEST), newline=""), file)
    header = next(rows, (1, []))[1]
    if header != HEADER:
        raise UsageError(
            f"{file} contains no answers of a survey: its columns are not {', '.join(HEADER)}", "no_answers"
        )
    answered: dict[str, str] = {}
    for number, (trial, answer, _) in rows:
        if trial not in trials or answer not in ANSWERS:
            raise UsageError(
                f"{file}, line {number}, answers no trial of this survey: {trial[:40]},{answer[:40]}", "foreign"
            )
        if trial in answered:
            raise UsageError(f"{file} answers trial {trial} twice", "answered_twice")
        answered[trial] = answer
    return list(answered.items())
