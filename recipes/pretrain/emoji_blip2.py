"""Train the embedded BLIP-2: a small Q-Former on a frozen embedded tower, for `synthesize referee-can-play`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from robustclip.attacks.threat import ThreatModel
from robustclip.data.emoji import load_labels
from robustclip.data.emoji_batches import DrawingsAndPairs
from robustclip.data.pairs import COLOURS, OBJECTS, PairBatches
from robustclip.diffusion.fitting import free
from robustclip.errors import UsageError
from robustclip.evaluation.pair_readers import measure_pair_reader
from robustclip.flags import CommonFlags, flat
from robustclip.referees.card import Card
from robustclip.referees.pair_readers import FAMILY, load_pair_reader, move_to_tower, new_mini, save_mini
from robustclip.referees.registry import RefereeName, load_referee
from robustclip.robustification.pairing import PairTrainer
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator
from robustclip.views.policies import inverted
from robustclip.views.views import Draws

SIZES: Final = {"hidden": 128, "layers": 4, "heads": 4, "queries": 16, "shared": 64}
ATTACK_STEPS: Final = 2

SMALL: Final = {"hidden": 32, "layers": 2, "heads": 2, "queries": 4}
QUICK: Final = {"steps": 4, "batch_size": 8, "save_every": 2} | {
    name: lambda call, name=name, size=size: call[name] if call["start"] else size for name, size in SMALL.items()
}


def recipe(
    *,
    name: RefereeName = "emoji-blip2",
    tower: Annotated[str, "CLIP whose frozen image tower is used"] = "emoji-vanilla",
    split: Annotated[str, "training split"] = "guide-styles",
    unseen: Annotated[str, "evaluation split"] = "unseen-styles",
    steps: PositiveInt = 2000,
    batch_size: Annotated[int, Field(ge=2)] = 64,
    lr: PositiveFloat = 1e-3,
    start: Annotated[str | None, "pair reader whose Q-Former is tuned on, on --tower; its sizes are kept"] = None,
    eps: Annotated[PositiveFloat | None, "L2 eps of PGD on its losses; default: no attack"] = None,
    attack_steps: PositiveInt = ATTACK_STEPS,
    hidden: PositiveInt = SIZES["hidden"],
    layers: PositiveInt = SIZES["layers"],
    heads: PositiveInt = SIZES["heads"],
    queries: PositiveInt = SIZES["queries"],
    shared: PositiveInt = SIZES["shared"],
    augmented: Annotated[
        float, Field(ge=0, le=1), "share of each batch with affine, colour and erasing augmentation"
    ] = 0.5,
    save_every: PositiveInt = 100,
    common: CommonFlags = CommonFlags(),
) -> dict[str, Any]:
    """Train emoji-blip2: 16 queries that read pictures of 64x64 pixels, and texts of 32 word pieces.

    robustclip robustify pretrain/emoji-blip2

    About half an hour on a CPU core. Losses are the three of Li et al. 2023, §3.1; sizes and rates are ours. It sees
    pairs of coloured things and single drawings, never the compositional prompts; a share of them through the
    augmentations of synthesize referee-can-play, or it could not read the copies there. Judges are trained alike, on
    other towers and drawings: --name emoji-blip2-judge --tower emoji-judge --split judge-train, and
    --name emoji-blip2-judge-disjoint --tower emoji-judge-disjoint --split unseen-train.

    A robust pair reader is tuned on a robust tower under attack: --start emoji-blip2 --tower emoji-robust --eps 1.5.
    With --eps it is measured under attack too, by PGD-20.
    """
    arguments = flat(locals())
    measured, pgd_steps = (40, 2) if common.quick else (400, 20)
    device = pick_device(common.device)
    clip = load_referee(tower, device=str(device)).eval().requires_grad_(False)
    sizes = {"hidden": hidden, "layers": layers, "heads": heads, "queries": queries, "shared": shared}
    threat = ThreatModel("l2", eps, clip.image_size) if eps else None
    card = Card(name, FAMILY, {}, clip.preprocess.config(), 1.0)
    PairBatches(unseen, 1)  # a split that is not there raises now, not after the training
    if start is None:
        reader = new_mini(clip, _wordings(split), **sizes, card=card, seed=common.seed)
    else:
        reader, sizes = move_to_tower(start, clip, card)
    computed = pick_dtype(common.dtype, device)
    trainer = PairTrainer(reader, steps=steps, lr=lr, dtype=computed, threat=threat, attack_steps=attack_steps)
    data = DrawingsAndPairs(split, batch_size, common.seed, single=0.0 if common.quick else 0.25)
    run = Run.start(common.out, common.resume, recipe="emoji-blip2", arguments=arguments, verb="robustify")

    def step(k: int) -> dict[str, float]:
        batch = data.labelled(k)
        images = partly_augmented(batch.images, augmented, generator(common.seed, "augmented", k))
        return trainer.step(images.to(device), batch.captions, batch.swapped, generator(common.seed, "negatives", k))

    with run:
        trainer.resume(run, device)
        run.note(data=data.describe())
        numbers = trainer.fit(step, run, images=batch_size, save_every=save_every)
        folder = free(run.folder / name)
        kept = {key: value for key, value in arguments.items() if key not in ("out", "resume", "device")}
        provenance = {"recipe": "pretrain/emoji-blip2", "arguments": kept, "steps": steps}
        save_mini(reader, folder, tower, sizes, provenance=provenance)
        trained = load_pair_reader(folder, device)
        found = measure_pair_reader(trained, unseen, n=measured, threat=threat, attack_steps=pgd_steps)
        save_mini(reader, folder, tower, sizes, provenance=provenance | {"measured": {"split": unseen, **found}})
        run.finish(numbers)
    return {"out": str(run.folder), "reader": str(folder), **numbers, "measured": found}


def faults(
    start: str | None,
    eps: float | None,
    attack_steps: int,
    hidden: int,
    layers: int,
    heads: int,
    queries: int,
    shared: int,
) -> Iterator[UsageError]:
    if eps is None and attack_steps != ATTACK_STEPS:
        message = f"--attack-steps {attack_steps} are those of an attack, and there is none: give --eps too, e.g. 1.5"
        yield UsageError(message, "no_attack", attack_steps=attack_steps)
    sizes = {"hidden": hidden, "layers": layers, "heads": heads, "queries": queries, "shared": shared}
    changed = [f"--{name} {size}" for name, size in sizes.items() if size != SIZES[name]]
    if start is not None and changed:
        message = f"--start {start} keeps the sizes of that reader: leave out {', '.join(changed)}"
        yield UsageError(message, "sizes_of_start", changed=changed)


def partly_augmented(images: Tensor, share: float, stream: Generator) -> Tensor:
    """A share of the pictures, drawn anew each time, through the augmentations of Referee-Can-Play."""
    rows = torch.randperm(len(images), generator=stream)[: round(share * len(images))]
    views = images[rows]
    for view in inverted() if len(rows) else ():
        views = view(views, Draws([stream], len(rows)))
    return images.index_copy(0, rows, views.clamp(0, 1))


def _wordings(split: str) -> list[str]:
    """All captions of the drawings, and the words of pairs as often as a vocabulary asks for."""
    texts = [caption for captions in load_labels(split).captions for caption in captions]
    return [*texts, *(3 * [f"a an and next to {' '.join(COLOURS)} {' '.join(OBJECTS)}"])]
