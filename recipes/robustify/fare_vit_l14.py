"""FARE on OpenAI's ViT-L/14 (unsupervised: keep embeddings under attack), with RobustVLM's released settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import load_referee
from robustclip.attacks.threat import Norm, ThreatModel
from robustclip.data.sources import EMBEDDED, Share, open_data, training_classes
from robustclip.flags import CommonFlags, LoopFlags, flat
from robustclip.recipes import with_flags
from robustclip.referees.registry import RefereeName
from robustclip.robustification.losses import agft, embed_captions, fare, tecoa
from robustclip.robustification.monitor import save_trained
from robustclip.robustification.trainer import train
from robustclip.runs import distributed
from robustclip.runs.devices import pick_device
from robustclip.runs.folder import Run

DOWNLOADED: Final = "ViT-L-14:openai"
"""Where this recipe and its ablation start, which --quick does without."""

QUICK: Final = {
    "start": lambda call: "emoji-vanilla" if call["start"] == DOWNLOADED else call["start"],
    "steps": 20,
    "batch_size": 16,
    "warmup": 5,
    "evaluate_every": 20,
    "workers": 0,
    "lr": 1e-3,
    "step_size": None,
    "eps": 8 / 255,
    "attack_steps": 2,
    "grad_clip": 1.0,
    "frozen_statistics": True,  # a ViT has none: with those of a batch, embeddings move whatever is learned
}
"""The same run on the embedded set; from a small referee, unless another is asked for."""


def recipe(
    *,
    data: Annotated[str | None, "ImageNet training images, one sub-folder per class; for fare any pictures"] = None,
    objective: Annotated[
        Literal["fare", "tecoa", "agft"],
        "fare: embeddings of the original; tecoa: class texts; agft: the original's answers among them",
    ] = "fare",
    temperature: Annotated[PositiveFloat, "softness of the targets of AGFT"] = 2.5,
    template: Annotated[str, "class text template of TeCoA and AGFT"] = "This is a photo of a {}",
    start: Annotated[str, "the CLIP to fine-tune"] = DOWNLOADED,
    name: RefereeName = "fare-vit-l14",
    norm: Norm = "linf",
    eps: PositiveFloat = 2 / 255,
    attack_steps: PositiveInt = 10,
    step_size: Annotated[PositiveFloat | None, "step size of the attack in [0,1] pixels; default: 2.5 eps / steps"] = 1
    / 255,
    attack_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
    clean_weight: NonNegativeFloat = 0.0,
    steps: PositiveInt = 20_000,
    batch_size: PositiveInt = 128,
    lr: PositiveFloat = 1e-5,
    weight_decay: NonNegativeFloat = 1e-4,
    warmup: NonNegativeInt = 1400,
    ema: Annotated[float, Field(ge=0, lt=1, description="0 keeps the last weights, as released")] = 0.0,
    grad_clip: Annotated[NonNegativeFloat, "gradient norm clipping; 0 disables it, as released"] = 0.0,
    accumulate: Annotated[PositiveInt, "number of parts that a process's batch is split into"] = 1,
    grad_checkpointing: bool = False,
    frozen_statistics: bool = False,
    locked_groups: Annotated[NonNegativeInt, "last layer groups of the image tower that stay frozen"] = 0,
    max_skipped: Annotated[Share | None, "stop if more than this share of the samples is unusable"] = None,
    workers: NonNegativeInt = 4,
    loop: LoopFlags = LoopFlags(),
    common: CommonFlags = CommonFlags(dtype="float32"),
) -> dict[str, Any]:
    """FARE on ViT-L/14 with the released settings: preserve the original embeddings under attack.

      robustclip robustify fare-vit-l14 --data imagenet/train

    This is FARE-2 (eps 2/255); `--eps 0.015686` is FARE-4. From RobustVLM's code and README: loss, attack (PGD-10, step
    1/255, momentum 0.9, uniform start), two epochs of ImageNet in batches of 128, AdamW, cosine, float32, no clipping,
    the last weights. Its README's warm-up is 1,400 steps, its script's default 14,000. Differences: no weight
    decay of gains and biases; momentum on normalised gradients, of which the sign is taken.
    """
    arguments = flat(locals())
    data = data or EMBEDDED
    device = pick_device(common.device)
    referee = load_referee(start, device=str(device))
    started_from = referee.card
    settings: dict[str, Any] = {
        "size": referee.image_size,
        "crop": "center",
        "scale": (1.0, 1.0),
        "batch_size": batch_size,
        "shuffle_buffer": 500 if common.quick else 10_000,  # undecoded samples, read before the first is given
    }
    batches = open_data(
        data, seed=common.seed, workers=workers, place=distributed.place(), max_skipped=max_skipped, **settings
    )
    probe = next(open_data(data, seed=common.seed + 1, **settings).batches())
    loss = fare()
    if objective != "fare":
        names, ids = training_classes(data)
        classes = embed_captions(referee, [template.format(one) for one in names])
        if objective == "tecoa":
            loss = tecoa(referee.logit_scale, classes, torch.tensor(ids, device=classes.device))
        else:
            loss = agft(referee.logit_scale, classes, temperature)
    threat = ThreatModel(norm, eps, referee.image_size)
    run = Run.start(common.out, common.resume, recipe="fare-vit-l14", arguments=arguments)
    with run:
        with_flags(train, arguments)(
            referee, batches, run=run, objective=loss, threat=threat, grad_clip=grad_clip or math.inf, probe=probe
        )
        samples = steps * batch_size
        return save_trained(referee, run, name=name, threat=threat, started_from=started_from, samples=samples)


def faults(data: str | None, template: str, quick: bool) -> Iterator[str]:
    if data is None and not quick:
        yield "--data is missing: a folder with one sub-folder of images a class, as --data imagenet/train (or --quick)"
    if template.count("{}") != 1:
        yield f"--template {template!r} needs one {{}} where a class's name goes, e.g. 'This is a photo of a {{}}'"
