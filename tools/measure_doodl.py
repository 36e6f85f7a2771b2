"""Measure DOODL and its baselines on the embedded diffusion model. Writes docs/doodl.webp.

    python tools/measure_doodl.py --prompts 24 > table.md       # resumable: runs/doodl/ keeps what is painted

Compositional prompts, one seed. The guide is emoji-robust; CLIP judges and judges of pairs take no part. Best-of has as
many evaluations of the denoiser as DOODL: a step samples, and evaluates as often on the way back.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from robustclip.data.images import save_image, titled_grid
from robustclip.data.pairs import Pair, compositional_prompts
from robustclip.evaluation import intervals
from robustclip.evaluation.generation.compositional import judge_pairs
from robustclip.evaluation.intervals import Interval
from robustclip.recipes import run
from robustclip.referees.pair_readers import load_pair_reader
from robustclip.referees.registry import load_referee

SHEET: Final = Path(__file__).parents[1] / "docs" / "doodl.webp"
GUIDE: Final = "emoji-robust"
CLIPS: Final = ("emoji-judge", "emoji-judge-disjoint")
READERS: Final = ("emoji-blip2-judge", "emoji-blip2-judge-disjoint")
METHODS: Final[dict[str, dict[str, Any]]] = {
    "plain sampling": {"method": "plain"},
    "DOODL": {},
    "best of N": {"method": "best-of"},
    "one-step guidance": {"method": "one-step", "one_step_scale": 300.0},
}
COLUMNS: Final = 8  # of the sheet


def painted(name: str, pairs: list[Pair], setting: dict[str, Any], folder: Path) -> tuple[Tensor, float]:
    """Its pictures, and the seconds it took (0 of what was there)."""
    out = folder / name.replace(" ", "-").replace(",", "")
    begun = time.perf_counter()
    arguments: dict[str, Any] = {
        "prompt": [str(pair) for pair in pairs],
        "referee": [GUIDE],
        "save_frames": False,
        "batch_size": 24,
    }
    given = {**arguments, **setting, **METHODS[name], "out": out, "device": "cpu", "dtype": "float32"}
    made = run("doodl", "synthesize", {"resume": out, "device": "cpu"} if out.exists() else given)
    return torch.stack([made.image(index) for index in range(len(made))]), time.perf_counter() - begun


@torch.no_grad()
def judged(images: Tensor, pairs: list[Pair]) -> dict[str, list[float]]:
    texts, found = [str(pair) for pair in pairs], {}
    for name in (GUIDE, *CLIPS):
        referee = load_referee(name).eval()
        found[name] = (referee.embed_images(images) * referee.embed_texts(texts)).sum(1).tolist()
    for name in READERS:
        reader = load_pair_reader(name)
        found[name] = judge_pairs(reader, images, pairs, score="sum").right.tolist()
    return found


def shown(one: Interval) -> str:
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def main(count: int, setting: dict[str, Any], folder: Path) -> None:
    pairs = compositional_prompts()[:count]
    numbers, strips, seconds = {}, [], {}
    for name in METHODS:
        images, seconds[name] = painted(name, pairs, setting, folder)
        numbers[name] = judged(images, pairs)
        strips.append(images[:COLUMNS])
    print(f"n = {count} prompts, one seed; {', '.join(f'{key} {value}' for key, value in setting.items())}\n")
    print(f"| | {GUIDE}, the guide | {' | '.join(CLIPS)} | right, {' | right, '.join(READERS)} | seconds a picture |")
    print("|---|" + "---|" * (len(CLIPS) + len(READERS) + 2))
    for name, found in numbers.items():
        cells = [shown(intervals.mean(found[judge], seed=0)) for judge in (GUIDE, *CLIPS)]
        cells += [shown(intervals.rate(found[judge])) for judge in READERS]
        print(f"| {name} | {' | '.join(cells)} | {seconds[name] / count:.1f} |")
    print("\nDOODL minus the other, paired:\n")
    print(f"| | {' | '.join((GUIDE, *CLIPS))} |\n|---|---|---|---|")
    for name, found in numbers.items():
        if name != "DOODL":
            apart = [
                [ours - theirs for ours, theirs in zip(numbers["DOODL"][judge], found[judge], strict=True)]
                for judge in (GUIDE, *CLIPS)
            ]
            print(f"| {name} | {' | '.join(shown(intervals.mean(one, seed=0)) for one in apart)} |")
    columns = [str(pair) for pair in pairs[:COLUMNS]]
    save_image(titled_grid(list(METHODS), columns, torch.cat(strips)), SHEET)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--chain-steps", type=int, default=10)
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("runs/doodl"))
    asked = parser.parse_args()
    main(asked.prompts, {"steps": asked.steps, "chain_steps": asked.chain_steps, "crops": asked.crops}, asked.folder)
