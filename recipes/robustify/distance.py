"""A referee tuned as a perceptual distance: DreamSim's LoRA on 2AFC triplets, with attacked references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import load_referee
from robustclip.attacks.spec import size_of
from robustclip.attacks.threat import Norm, ThreatModel
from robustclip.data.embedded import EMBEDDED_DATA
from robustclip.evaluation.corruptions import CORRUPTIONS
from robustclip.evaluation.perceptual import NIGHTS_TABLE, corruption_triplets, read_nights
from robustclip.flags import ComputeFlags, flat
from robustclip.recipes import with_flags
from robustclip.referees.registry import RefereeName
from robustclip.robustification.distance import Votes, tune_distance
from robustclip.robustification.monitor import save_trained
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.files import is_file, is_folder
from robustclip.runs.folder import Run

QUICK: Final = {"steps": 20, "batch_size": 16, "warmup": 5, "triplets": 64, "attack_steps": 2}


def recipe(
    *,
    data: Annotated[
        str, "emoji/SPLIT or a folder of pictures, to be corrupted; or NIGHTS' folder (its train split)"
    ] = EMBEDDED_DATA + "guide-styles",
    triplets: Annotated[PositiveInt, "number of triplets, drawn by the seed"] = 1500,
    kinds: Annotated[list[str], "corruptions of the triplets; NIGHTS has people's votes instead"] = list(CORRUPTIONS),  # noqa: B006
    start: Annotated[str, "the referee whose image tower to tune"] = "emoji-robust",
    name: RefereeName = "distance",
    norm: Norm = "l2",
    eps: Annotated[NonNegativeFloat, "attack on the reference; 0: DreamSim's clean tuning"] = 1.5,
    attack_steps: PositiveInt = 3,
    margin: PositiveFloat = 0.05,
    rank: Annotated[PositiveInt, "rank of LoRA"] = 16,
    alpha: Annotated[PositiveFloat, "LoRA's product is multiplied by alpha / rank"] = 0.5,
    votes: Annotated[Votes, "shuffled: the nearer image is drawn at random, as a control"] = "given",
    steps: PositiveInt = 150,
    batch_size: PositiveInt = 32,
    lr: PositiveFloat = 3e-3,
    warmup: NonNegativeInt = 15,
    checkpoint_every: PositiveInt = 100,
    keep: PositiveInt = 2,
    common: ComputeFlags = ComputeFlags(),
) -> dict[str, Any]:
    """Tune a referee's image distance on 2AFC triplets by LoRA with DreamSim's hinge loss, references attacked by PGD.

      robustclip robustify distance
      robustclip robustify distance --start emoji-vanilla-long --eps 0
      robustclip robustify distance --start robust-clip:fare4-vit-l-14 --data nights --triplets 20000 --norm linf \
--eps 4/255 --lr 3e-4 --steps 3500

    The result is a referee: `robustclip distance A B --referee RUN/referee`, `evaluate`, synthesis. The loss reads no
    text, and zero-shot accuracy falls: emoji-robust's top-1 from 40.0% to 10.5% (docs/robustness.md). Margin, rank,
    alpha, Adam's moments and batch are DreamSim's (its rate is 3e-4, in eight epochs); the rest is ours.
    """
    arguments = flat(locals())
    device = pick_device(common.device)
    referee = load_referee(start, device=str(device))
    side = referee.image_size[0]
    if is_file(Path(data) / NIGHTS_TABLE):
        chosen = read_nights(Path(data), "train", size=side, limit=triplets, seed=common.seed)
    else:
        size = side if is_folder(Path(data)) else None
        chosen = corruption_triplets(data, kinds=kinds, size=size, limit=triplets, seed=common.seed)
    threat = ThreatModel(norm, eps, size_of(chosen.reference[torch.tensor([0])])) if eps else None
    started_from = referee.card
    run = Run.start(common.out, common.resume, recipe="distance", arguments=arguments)
    with run:
        with_flags(tune_distance, arguments)(
            referee, chosen, run=run, threat=threat, dtype=pick_dtype(common.dtype, device)
        )
        return save_trained(
            referee, run, name=name, threat=threat, started_from=started_from, samples=steps * batch_size
        )
