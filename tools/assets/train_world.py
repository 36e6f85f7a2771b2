"""Train the referees of the 96-pixel world, stage by stage, resumable.

    OMP_NUM_THREADS=1 nice -n 19 python tools/assets/train_world.py

A stage is a recipe with its arguments, in a folder of its own below runs/world; a finished one is skipped. Stages are
bit-exact when resumed on the same machine. Weights are not committed before they have been measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SIZES = (64, 80, 96, 128)
DATA = ["--dataset", "icons", *(word for size in SIZES for word in ("--sizes", str(size)))]
KEPT = ["--checkpoint-every", "50", "--evaluate-every", "250"]


class Stage(NamedTuple):
    """A run's folder, its recipe, and the recipe's arguments; "{out}" stands for the folder of all runs."""

    folder: str
    recipe: str
    arguments: list[str]


STAGES = (
    Stage(
        "icons-vanilla", "pretrain/emoji-vanilla", ["--name", "icons-vanilla", "--image-size", "96", "--steps", "3000"]
    ),
    # L2 1.5 at 64x64, at which referees are measured, is 2.25 at 96x96: the same RMS change of a pixel, 0.0135.
    Stage(
        "icons-robust",
        "emoji",
        ["--name", "icons-robust", "--start", "{out}/icons-vanilla/referee", "--eps", "2.25", "--steps", "3000"],
    ),
    # The control of icons-robust: about its time, on clean images.
    Stage(
        "icons-vanilla-long",
        "pretrain/emoji-vanilla",
        ["--name", "icons-vanilla-long", "--start", "{out}/icons-vanilla/referee", "--lr", "1e-3", "--steps", "7000"],
    ),
)


def command(stage: Stage, out: Path) -> list[str]:
    """The call that begins a stage, or goes on with it."""
    given = [argument.format(out=out) for argument in stage.arguments]
    folder = str(out / stage.folder)
    program = [sys.executable, "-m", "robustclip", "robustify", stage.recipe]
    return [*program, *given, *DATA, *KEPT, "--resume", "latest", "--out", folder]


def finished(stage: Stage, out: Path) -> bool:
    record = out / stage.folder / "run.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("status") == "finished"


def main(out: Path) -> None:
    for stage in STAGES:
        if finished(stage, out):
            print(f"{stage.folder} is finished", flush=True)
        else:
            subprocess.run(command(stage, out), check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/world"), help="folder of all runs (default: %(default)s)"
    )
    main(parser.parse_args().out)
