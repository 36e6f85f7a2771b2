"""Print results as terminal tables."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from robustclip.errors import RunError, UsageError
from robustclip.runs.terminal import counted, echo, rich, table
from robustclip.signatures import written

if TYPE_CHECKING:  # printing must not cost an import of torch
    from robustclip.evaluation.claims import Verification
    from robustclip.evaluation.report import Report
    from robustclip.pages.explain import Explanation
    from robustclip.referees.card import Card
    from robustclip.referees.registry import Entry
    from robustclip.runs.archive import Freed, Summary
    from robustclip.runs.folder import Run
    from robustclip.selftest.selftest import Selftest
    from robustclip.synthesis.painted import Result

FEW = 12  # pictures that are named one by one
BARS = "▁▂▃▄▅▆▇█"
WIDTH_OF_A_CURVE = 40  # characters


def numbers(values: Mapping[str, object]) -> None:
    """One value a line, numbers to four digits."""
    for name, value in values.items():
        echo(f"{name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}")


def tabled(result: Any) -> None:
    """The table of a result."""
    rich(result.table())


def planned(estimate: Any) -> None:
    """The table of a plan, or the script that launches the run, which may be piped into a file."""
    if estimate.terms.launch is None:
        tabled(estimate)
    else:
        for line in estimate.command.splitlines():
            echo(line)


def forgotten(folder: Path) -> None:
    """The folder of an unregistered referee."""
    echo(f"forgot {folder}")


def next_call(*words: object) -> None:
    """The command that usually comes next."""
    echo(f"next: robustclip {shlex.join(map(str, words))}")


def trained(values: Mapping[str, object]) -> None:
    """The numbers of a training run, what the accuracies mean, and the export command."""
    numbers(values)
    if "strong_accuracy" in values:
        echo(
            "accuracies are top-1 on the probe, a fixed batch of training data: weak under PGD with the steps of the "
            "training attack, strong under PGD-20, clean without an attack. Weak far above strong means that training "
            "overfits to its own attack."
        )
    folder = values.get("run")
    if isinstance(folder, str) and (Path(folder) / "referee").is_dir():
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(folder).resolve().name).strip("._-")[:100]
        next_call("export", folder, "--name", name or "mine")


def exported(folder: Path) -> None:
    """The exported folder and the command that evaluates it."""
    echo(f"exported to {folder}")
    next_call("evaluate", "emoji-vanilla", folder, "--attack", "l2:1.5@20", "--limit", 256)


def evaluated(report: Report) -> None:
    """Print the table of an evaluation and the next command."""
    rich(report.table())
    names = list(dict.fromkeys(row.referee for row in report.rows))
    next_call("explain", "--referees", *names, "--images", "emoji/scenes", "--limit", 12)


def perturbed(values: Mapping[str, object]) -> None:
    """The numbers of a universal perturbation, and the command that applies it."""
    numbers({name: value for name, value in values.items() if name != "attack"})
    if "attack" in values:
        next_call("evaluate", "emoji-judge", "--attack", values["attack"])


def weighed(values: Mapping[str, Any]) -> None:
    """Top-1 of each referee alone, of equal and of learned weights, and the flags of the learned ones."""
    from robustclip.evaluation.intervals import percent

    kinds = list(next(iter(values["rows"].values())))
    weights = {name: f"{weight:g}" for name, weight in values["weights"].items()}
    rows = [
        (name, weights.get(name, ""), *(percent(row[kind]) for kind in kinds)) for name, row in values["rows"].items()
    ]
    rich(table(("top-1 in %", "weight", *kinds), rows, boxed=False))
    next_call("synthesize", "clipag", "a cat", *shlex.split(values["flags"]))


def benchmarked(board: Any) -> None:
    """The table of a leaderboard and the path of its page."""
    rich(board.table())
    echo(f"open {board.folder / 'leaderboard.html'}")


def fitted(values: Mapping[str, object]) -> None:
    """The numbers of a fit, and the command that starts from it."""
    numbers(values)
    if "out" in values:
        next_call("synthesize", "clipag", "a cat", "--init", values["out"])


def converted(*words: Any) -> None:
    """The conversion (the last argument, with its `folder`), and the command `words` that loads it."""
    *call, made = words
    echo(str(made))
    next_call(*call, made.folder)


def aligned(values: Mapping[str, object]) -> None:
    """The numbers of an alignment, and where its pictures are."""
    numbers(values)
    echo(f"before and after, of the same noise: {Path(str(values['out'])) / 'pictures.png'}")


def preferences(values: Mapping[str, Any]) -> None:
    """The result of `survey read`."""
    echo(f"{values['answers']} answers to {values['answered']} of {values['trials']} trials")
    echo(f"left: {values['left']}, neither: {values['neither']}")
    for one in values["preferences"]:
        share, low, high = (f"{100 * one[name]:.1f}" for name in ("value", "low", "high"))
        echo(f"{one['set']} above {one['against']}: {share}% ({low} to {high}, n = {one['n']})")


def painted(result: Result) -> None:
    """The pictures' files with their similarities to their prompts."""
    for item, file, similarity in list(zip(result.items, result.files, result.similarity.tolist(), strict=True))[:FEW]:
        echo(f"{similarity:.3f}  {file}  {item.prompt.title}")
    if len(result) > FEW:
        echo(f"... and {len(result) - FEW} more in {result.folder / 'images'}")
    echo(f"{counted(len(result), 'picture')}, mean similarity {result.similarity.mean():.3f}")
    echo(f"all of them at once: {result.folder / 'contact_sheet.png'}")
    next_call("judge", result.folder)


def explained(explanation: Explanation) -> None:
    """The summary and the report's path."""
    rich(explanation.table())
    echo(f"open {explanation.page}")
    names = dict.fromkeys(row.referee for row in explanation.report.rows if row.metric == "cosine")
    next_call("evaluate", *names, "--attack", "l2:1.5@20", "--limit", 256)


def found_here(facts: dict[str, Any]) -> None:
    """The result of `doctor`, and a command to try."""
    from robustclip.doctor import report

    rich(report(facts))
    next_call("demo")


def selftested(found: Selftest) -> None:
    """The tables of a selftest. Raises RunError where a check is not within its bound, after all was said."""
    rich(found.table())
    if found.faults:
        raise RunError(
            f"{counted(len(found.faults), 'check')} of {len(found.rows)} failed on this machine: --json FILE writes "
            "what a bug report needs",
            "selftest_failed",
            failed=len(found.faults),
        )


def added(entry: Entry) -> None:
    """The name of a registered referee, and the command that checks it."""
    echo(f"added {entry.name}")
    next_call("referees", "verify", entry.name)


def demo(result: Mapping[str, Any]) -> None:
    """The demo's table and summary."""
    rich(result["table"])
    echo(result["summary"])


def entries(referees: Iterable[Entry | Any]) -> None:
    """Print one line per referee; broken ones are marked."""
    from robustclip.referees.released import Released

    rows = []
    for entry in referees:
        if isinstance(entry, Released):
            source = entry.source or "no weights found"
            rows.append((entry.name, "referee", entry.threat, "released", source))
            continue
        try:
            robust_to = "nothing" if entry.kind == "generator" else entry.card.robust_to
        except (RunError, UsageError) as error:
            robust_to = f"(broken: {error})"
        rows.append((entry.name, entry.kind, robust_to, entry.origin, str(entry.folder)))
    rich(table(("referee", "kind", "robust to", "from", "folder"), rows, boxed=False))


def card(card: Card | dict[str, Any]) -> None:
    """A card as Markdown; a generator's facts as JSON."""
    echo(json.dumps(card, indent=2, ensure_ascii=False) if isinstance(card, dict) else card.markdown())


def verification(result: Verification) -> None:
    """The checks of a referee against its card. Raises RunError at the end if one fails."""
    text_tower = {} if result.text_tower is None else {"text tower": result.text_tower}
    for file, agrees in (result.files | text_tower).items():
        echo(f"{file}: {'as on the card' if agrees else 'its hash is NOT the one on the card'}")
    if result.claim is not None and result.measured is not None:
        claim = result.claim
        echo(
            f"{claim.name} on {claim.data}, {claim.attack or 'clean'}: claimed {claim.value:.4g} "
            f"({claim.low:.4g} to {claim.high:.4g}, n = {claim.n}), measured {result.measured:.4g}"
        )
    if (sanity := result.sanity) is not None:
        from robustclip.evaluation.intervals import percent

        accuracies = {"as loaded": sanity.accuracy, **sanity.settings}
        rows = [(name, percent(accuracy)) for name, accuracy in accuracies.items()]
        rich(table(("sanity check", "top-1 in %"), rows, boxed=False))
        labels = f"{sanity.labels} labels of {sanity.data}, chance {100 * sanity.chance:.1f}%"
        echo(f"{sanity.accuracy.n} images among {labels}, 95% intervals")
        if sanity.cause is not None:
            raise RunError(
                f"{result.name} was loaded wrong, likely the {sanity.cause}: {sanity.advice}", "loaded_wrong"
            )
        echo("no fault found")
        if not result.files:
            return
    if not result.holds:
        raise RunError(f"{result.name} is not what its card says", "other_than_card", name=result.name)
    echo(f"{result.name} is what its card says")


def runs(summaries: Iterable[Summary]) -> None:
    """A line for each run, the last one started at the end."""
    rows = []
    for run in summaries:
        step = str(run.step) if run.steps is None else f"{run.step}/{run.steps}"
        loss = "" if run.loss is None else f"{run.loss:.4g}"
        recipe = Path(run.recipe).name if run.recipe.endswith(".py") else run.recipe
        rows.append((run.name, recipe, run.status, step, loss, f"{age(run.age)} ago", decimal(run.size)))
    rich(table(("run", "recipe", "status", "step", "loss", "started", "size"), rows, boxed=False))


def run(run: Run) -> None:
    """A run's status, arguments, metrics and warnings."""
    record = run.record
    echo(f"{run.folder}: {run.called}, {run.status}" + (f" ({record['reason']})" if "reason" in record else ""))
    times = [record["started"], *(again["started"] for again in record.get("resumed", []))]
    echo(f"started {', resumed '.join(times)}" + (f", ended {record['ended']}" if "ended" in record else ""))
    if run.status in ("killed", "interrupted", "failed"):
        echo(f"to resume: {run.resumption}")
    echo("\narguments")
    for name, value in run.arguments.items():
        echo(f"  {name.replace('_', ' ')}: {written(value)}")
    curves: dict[str, list[float]] = {}
    for line in run.metrics():
        for name, value in line.items():
            if name not in ("step", "seconds") and value is not None:
                curves.setdefault(name, []).append(value)
    if curves:
        echo(f"\nnumbers, to step {run.metrics()[-1]['step']}")
        width = max(map(len, curves))
        for name, values in curves.items():
            ends = f"{values[0]:.4g} to {values[-1]:.4g}"
            echo(f"  {name.replace('_', ' '):{width}}  {curve(values):{WIDTH_OF_A_CURVE}}  {ends}")
    for warning in record.get("warnings", []):
        echo(f"\nwarning: {warning}")


def freed(result: Freed) -> None:
    """The removed files per run."""
    done, would = ("would remove", "would free") if result.dry_run else ("removed", "freed")
    for name, paths in result.files.items():
        what = "all of it" if paths[0].name == name else f"{len(paths)} checkpoint{'s' * (len(paths) > 1)}"
        echo(f"{name}: {done} {what}")
    echo(f"{would} {decimal(result.size)}")


def curve(values: list[float]) -> str:
    """Sparkline of numbers; long ones are averaged to `WIDTH_OF_A_CURVE` bars."""
    count = min(len(values), WIDTH_OF_A_CURVE)
    cuts = [len(values) * index // count for index in range(count + 1)]
    means = [fmean(values[first:last]) for first, last in pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def age(seconds: float) -> str:
    """A time in its largest unit: 40 s, 5 min, 3 h, 12 days."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
