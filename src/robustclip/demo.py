"""`robustclip demo`: robustify a small CLIP, export it, evaluate it against its start, and explain both."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import PositiveFloat, PositiveInt

from robustclip.attacks.spec import AttackSpec
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError, faults_of
from robustclip.evaluation.evaluate import evaluate
from robustclip.evaluation.report import CLEAN, LOW_FREQUENCY, Report
from robustclip.explanation.maps import check_method
from robustclip.pages.explain import explain, read_attack
from robustclip.recipes import run
from robustclip.referees.registry import load_referee
from robustclip.robustification.export import export
from robustclip.runs.folder import RunFolder
from robustclip.signatures import typed

START = "emoji-vanilla"
NAME = "demo-robust"
TOP = "top-5"
EXPLAINED = 6  # drawings, and as many scenes


@typed
def run_demo(
    *,
    out: Annotated[RunFolder, "output folder, which must not exist"] = Path("runs/demo"),
    steps: Annotated[PositiveInt, "updates of the image tower"] = 450,
    eps: Annotated[PositiveFloat, "L2 radius of the training attack, at 64x64"] = 1.5,
    attack: Annotated[str, "attack of the evaluation, norm:eps@steps"] = "l2:1.5@20",
    limit: Annotated[PositiveInt, "number of evaluation images of unseen styles"] = 256,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Robustify, export, evaluate and explain a small CLIP.

        robustclip demo

    Fine-tunes emoji-vanilla on adversarial emoji, exports it, and evaluates both on drawings of unseen styles, clean
    and under attack. Writes into `out`: gradients.png, table.txt and the numbers behind it, explanation/report.html
    (heat maps of both), referee/ (for load_referee and open_clip), and train/ (the run). Five to ten minutes on two
    CPU cores.
    """
    attack = str(AttackSpec.parse(attack))  # as the report names it
    print(
        f"1/4  Robustifying {START} for {steps} steps, against L2 attacks of eps {eps:g} on 64x64 pixels.", flush=True
    )
    recipe = {"start": START, "name": NAME, "eps": eps, "steps": steps, "evaluate_every": 0, "warmup": steps // 10}
    run("emoji", "robustify", {**recipe, "device": device, "dtype": dtype, "seed": seed, "out": out / "train"})
    print(f"2/4  Exporting it to {out / 'referee'}.", flush=True)
    folder = export(out / "train", name=NAME, to=out / "referee", register=False)  # a second demo may take the name
    print(f"3/4  Measuring both on {limit} drawings of unseen styles, clean and under {attack}.", flush=True)
    referees = [load_referee(START), load_referee(str(folder))]
    report = evaluate(
        referees,
        data="emoji/unseen-styles",
        tasks=["zero-shot", "gradients"],
        attack=[attack],
        limit=limit,
        out=out,
        device=device,
        seed=seed,
    )
    print(f"4/4  Explaining both, clean and under {attack}.", flush=True)
    explain(
        referees=referees,
        images=["emoji/unseen-styles", "emoji/scenes"],
        attack=attack,
        limit=EXPLAINED,
        out=out / "explanation",
        device=device,
        seed=seed,
    )
    return {"report": report.to_json(), "summary": summarise(report, attack, out), "table": report.table()}


def faults(eps: float, attack: str) -> Iterator[str | UsageError]:
    """Faults of the arguments, found before the demo starts."""
    yield from faults_of(
        (
            partial(ThreatModel, "l2", eps, 64),
            lambda: AttackSpec.parse(attack).threat(64),
            partial(read_attack, attack),
            partial(check_method, "gradcam"),
        )
    )


def summarise(report: Report, attack: str, out: Path) -> str:
    """Summarise the results in three sentences, with the next command."""

    def percent(name: str, where: str) -> str:
        return f"{report.row(name, TOP, where).value:.0%}"

    shares = [report.row(name, LOW_FREQUENCY).value for name in (START, NAME)]
    clean, attacked = ([percent(name, where) for name in (START, NAME)] for where in (CLEAN, attack))
    return (
        f"On clean drawings {START} has the right name among its first five for {clean[0]}, {NAME} for {clean[1]}. "
        f"Under {attack} the first is left with {attacked[0]}, the second with {attacked[1]}. "
        f"Of the energy of their input gradients, {shares[0]:.0%} and {shares[1]:.0%} lie in structures larger than 8 "
        f"pixels: open {out / 'gradients.png'} and see noise turn into outlines. Heat maps, clean and "
        f"under attack: open {out / 'explanation' / 'report.html'}.\n"
        f"Next: robustclip evaluate emoji-vanilla-long emoji-robust {out / 'referee'} --attack {attack} --limit 256"
    )
