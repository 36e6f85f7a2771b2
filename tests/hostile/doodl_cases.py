"""What was tried on `synthesize doodl`: as in `cases`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from robustclip.data import embedded

from .things import made

QUICK = ["synthesize", "doodl", "a cat", "--quick"]


def flow(folder: Path) -> Path:
    """The embedded model under the scheduler of another kind of model."""
    place = folder / "flow"
    (place / "scheduler").mkdir(parents=True)
    source = embedded.folders("generators", "model_index.json")["emoji-diffusion"]
    for part in ("model_index.json", "card.json", "vae", "unet"):
        (place / part).symlink_to(source / part)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return place


made("sd_flow", flow)


def flags() -> Iterator[tuple[str, str | list[str], int, str]]:
    for given, words in (
        ("--chain-steps 0", "greater than 0"),
        ("--p 0.5", "greater than 0.5"),
        ("--p 1.2", "less than or equal to 1"),
        ("--gamma 0", "greater than 0"),
        ("--guidance -1", "would lead away from the text"),
        ("--guidance nan", "finite number"),
        ("--sampler euler", "'edict', 'bdia', 'o-belm' or 'ddim'"),
        ("--method magic", "'one-step-noise'"),
        ("--crops -1", "greater than or equal to 0"),
        ("--clip 0", "greater than 0"),
        ("--momentum 1", "less than 1"),
        ("--size 4", "is not a size of a picture"),
        ("--model {sd_flow}", "FlowMatchEulerDiscreteScheduler"),
        ("--init nowhere.png", "there is no file 'nowhere.png' to start from"),
        ("--classifier resnet18", "give both"),
        ("--class-name cat", "give both"),
        ("--classes {file}", "needs a --classifier"),
        ("--classifier resnet188 --class-name cat", "there is no classifier 'resnet188'"),
        ("--classifier {folder} --class-name cat", "has no config.json"),
        ("--classifier {pipe} --class-name cat", "there is no classifier"),
        ("--exemplar nowhere.png", "none of the 1 exemplars can be read"),
        ("--exemplar a.png --classifier resnet18 --class-name 1", "are different objectives"),
        ("--aesthetics nowhere.pth", "there is no checkpoint nowhere.pth"),
        ("--aim sideways", "is not an aim of a score"),
        ("--loss f", "a loss is a Python function"),
        ("--stop-by emoji-robust", "also guides"),
        ("--stop-by nobody", "nobody"),
        ("--stop-by emoji-judge --method best-of", "has none"),
        ("--patience 0", "greater than 0"),
    ):
        yield "a flag of doodl", [*QUICK, *given.split()], 2, words
    steps = ["synthesize", "doodl", "a cat", "--chain-steps", "30"]
    yield "a flag of doodl", steps, 2, "does not divide the schedule of 1000: give 25 or 20"


DOODL = [*flags()]
