"""Score the embedded generators in T2I-CompBench's categories, and write a table.

    OMP_NUM_THREADS=1 python tools/measure_compbench.py --prompts 12 --out runs/compbench

Prompts are captions of compositions. "scenes" are the compositions themselves, in unseen styles: what a perfect
generator would score. Pictures and answers that are there are not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustclip.data.compositions import compose
from robustclip.evaluation.generation.compbench.judging import judge_benchmark
from robustclip.evaluation.generation.compbench.prompts import CATEGORIES, match
from robustclip.evaluation.generation.compbench.roles import load_roles
from robustclip.evaluation.generation.pictures import read_pictures
from robustclip.evaluation.intervals import mean
from robustclip.recipes import find
from robustclip.runs.files import write_json, write_text
from robustclip.runs.folder import RECORD
from robustclip.signatures import typed
from robustclip.synthesis.pictures import write_picture

SEED = 11
STEPS = 25  # of DDIM
MOST = 8  # samples to choose from
JUDGES = ("emoji-scenes", "emoji-judge")
BEST = 2.0  # guidance of the rows that choose among samples
SAMPLER = f"diffusion, guidance {BEST:g}"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    f"best of {MOST} by MI": ("diffusion", {"guidance": BEST, "steps": STEPS, "best_of": MOST, "by": "mi"}),
    "DOODL": ("doodl", {"steps": 10, "chain_steps": 10, "crops": 8}),
    "Referee-Can-Play": ("referee_can_play", {"copies": 8}),
}
METRICS = ("soft-tifa", "vqa-product", "detected-places", "detected-numbers", "cosine")


def scenes(prompts: list[str], numbers: list[int], category: str, folder: Path) -> None:
    """The compositions of these captions, drawn in unseen styles."""
    for prompt, number in zip(prompts, numbers, strict=True):
        made = compose(number, "unseen-styles", seed=SEED, size=64, categories=(category,))
        facts = {"id": str(number), "prompt": prompt, "seed": 0, "referees": []}
        write_picture(folder / "images" / f"{number}.png", made.image, facts)
    write_json(folder / RECORD, {"notes": {}})


def recipe(name: str, prompts: list[str], folder: Path, **settings: Any) -> None:
    """Run a recipe of `synthesize`, or resume it."""
    place = {"resume": folder} if (folder / RECORD).is_file() else {"out": folder}
    typed(find(name, "synthesize").function)(prompt=prompts, **settings, **place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=12, help="of each category")
    parser.add_argument("--out", type=Path, default=Path("runs/compbench"))
    parser.add_argument("--adapter", type=Path, help="of a run of robustclip align mi-tune: adds its row")
    parser.add_argument("--only", nargs="*", help="these generators alone")
    given = parser.parse_args()
    roles = load_roles(JUDGES, torch.device("cpu"))
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    pooled: dict[str, list[float]] = {}
    for category in CATEGORIES:
        own = "colour" if category == "color" else category
        # Captions are of unseen styles' compositions, so that the scenes show them.
        numbers = list(range(given.prompts))
        prompts = [compose(n, "unseen-styles", seed=SEED, size=64, categories=(own,)).caption for n in numbers]
        kept = dict(zip(prompts, numbers, strict=True))
        prompts, numbers = list(kept), list(kept.values())
        generators: dict[str, Callable[[Path], None]] = {
            "scenes": lambda folder, p=prompts, n=numbers, c=own: scenes(p, n, c, folder),  # type: ignore[misc]
            **{
                f"diffusion, guidance {guidance:g}": partial(
                    recipe, "diffusion", prompts, guidance=guidance, steps=STEPS
                )
                for guidance in (2.0, 5.0)
            },
            "clipag, no generator": partial(recipe, "clipag", prompts),
            **{name: partial(recipe, method, prompts, **how) for name, (method, how) in METHODS.items()},
        }
        if given.adapter:
            how = {"adapter": given.adapter, "guidance": BEST, "steps": STEPS}
            generators["MI-TUNE"] = partial(recipe, "diffusion", prompts, **how)
        for name, make in generators.items():
            if given.only and name not in given.only:
                continue
            folder = given.out / category / name.replace(", ", "-").replace(" ", "-")
            if not (folder / RECORD).is_file() or len(list((folder / "images").glob("*.png"))) < len(prompts):
                make(folder)
            shown = match(read_pictures(folder), prompts, per_prompt=1)
            report = judge_benchmark([shown], roles, category, out=given.out / "judged")
            rows[category, name] = {one.metric: vars(one) for one in report.figures}
            found = report.pictures[shown.name]
            pooled.setdefault(name, []).extend(soft_tifa(found[prompt]) for prompt in prompts)
        write_json(given.out / "figures.json", {f"{c}/{g}": row for (c, g), row in rows.items()})
        write_text(given.out / "table.md", "\n".join([*table(rows), "", *overall(pooled)]) + "\n")


def soft_tifa(pictures: dict[str, Any]) -> float:
    """Mean Soft-TIFA of a prompt's pictures."""
    each = [one["judges"][JUDGES[0]]["soft-tifa"] for one in pictures.values()]
    return float(np.mean(each))


def overall(pooled: dict[str, list[float]]) -> list[str]:
    """Soft-TIFA over all prompts of all categories, and paired with the first sampler."""
    lines = ["| | n | soft-tifa | minus " + SAMPLER + " |", "|---|---|---|---|"]
    for name, values in pooled.items():
        cells = [
            f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})" for one in (mean(values, seed=SEED),)
        ]
        if name != SAMPLER and len(pooled.get(SAMPLER, [])) == len(values):
            found = mean([value - base for value, base in zip(values, pooled[SAMPLER], strict=True)], seed=SEED)
            cells.append(f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})")
        lines.append(f"| {name} | {len(values)} | " + " | ".join(cells) + " |")
    return lines


def table(rows: dict[tuple[str, str], dict[str, dict[str, Any]]]) -> list[str]:
    """Soft-TIFA's geometric mean by category, and below it the benchmark's own scores where there are any."""
    generators = list(dict.fromkeys(name for _, name in rows))
    lines = ["| category | score | n | " + " | ".join(generators) + " |", "|---" * (3 + len(generators)) + "|"]
    for category in CATEGORIES:
        for metric in METRICS:
            found = [rows.get((category, name), {}).get(metric) for name in generators]
            if not any(found):
                continue
            cells = [
                "" if one is None else f"{100 * one['value']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
                for one in found
            ]
            count = next(one["n"] for one in found if one is not None)
            lines.append(f"| {category} | {metric} | {count} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
