"""Train the embedded CLIP on clean emoji: a small image tower matched to a frozen sentence encoder."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import load_referee
from robustclip.data.emoji_batches import EmojiBatches
from robustclip.flags import CommonFlags, LoopFlags, flat
from robustclip.recipes import with_flags
from robustclip.referees.registry import RefereeName
from robustclip.robustification.embedded import (
    ObjectiveName,
    emoji_objective,
    emoji_probe,
    fresh_referee,
    refuse_sizes,
)
from robustclip.robustification.monitor import save_trained
from robustclip.robustification.trainer import train
from robustclip.runs import distributed
from robustclip.runs.devices import pick_device
from robustclip.runs.folder import Run

QUICK: Final = {"split": "judge-heldback", "steps": 20, "batch_size": 32, "warmup": 5, "evaluate_every": 20}


def recipe(
    *,
    name: RefereeName = "emoji-vanilla",
    tower: str = "resnet10t",
    image_size: PositiveInt = 64,
    start: str | None = None,
    split: str = "guide-styles",
    dataset: Literal["emoji", "icons"] = "emoji",
    sizes: Annotated[list[PositiveInt] | None, "image sizes, one drawn per batch; default: the data set's"] = None,
    objective: ObjectiveName = "text-bank",
    steps: PositiveInt = 2000,
    batch_size: PositiveInt = 128,
    lr: PositiveFloat = 2e-3,
    weight_decay: NonNegativeFloat = 0.05,
    warmup: NonNegativeInt = 100,
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.998,
    loop: LoopFlags = LoopFlags(channels_last=True, checkpoint_every=250),
    common: CommonFlags = CommonFlags(),
) -> dict[str, Any]:
    """Train an embedded referee on clean emoji, from random weights or from another referee.

    robustclip robustify pretrain/emoji-vanilla

    About 15 minutes on two CPU cores. The image tower (any timm tower; its classifier is the 384-d embedding) learns
    to name each drawing among all concepts of the split in the space of the frozen sentence encoder. The other
    embedded referees are this recipe with other arguments:

      emoji-vanilla-long    --name emoji-vanilla-long --start emoji-vanilla --steps 3400 --lr 1e-3: the control of
                            emoji-robust, given emoji-robust's training time and more on clean images
      emoji-judge           pretrain/emoji-judge
      emoji-judge-disjoint  pretrain/emoji-judge-disjoint

    All values are ours.
    """
    arguments = flat(locals())
    device = pick_device(common.device)
    referee = load_referee(start) if start else fresh_referee(name, tower, image_size=image_size, seed=common.seed)
    started_from = referee.card if start else None
    referee.to(device)
    refuse_sizes(referee, sizes or (), dataset)
    place = distributed.place()
    data = EmojiBatches(split, batch_size=batch_size, seed=common.seed, place=place, dataset=dataset, sizes=sizes or ())
    probe = emoji_probe(data)
    run = Run.start(common.out, common.resume, recipe="pretrain/emoji-vanilla", arguments=arguments)
    with run:
        with_flags(train, arguments)(
            referee,
            data,
            run=run,
            objective=emoji_objective(objective, referee, data),
            threat=None,
            any_size=sizes is not None,
            probe=probe,
        )
        return save_trained(referee, run, name=name, threat=None, started_from=started_from, samples=steps * batch_size)
