"""LEAF: a text tower robust to character edits, beside a frozen image tower."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import load_referee
from robustclip.attacks.text import fewer_words
from robustclip.data.captions import open_captions
from robustclip.data.sources import EMBEDDED
from robustclip.flags import ComputeFlags, flat
from robustclip.recipes import with_flags
from robustclip.referees.registry import RefereeName
from robustclip.robustification.monitor import save_trained
from robustclip.robustification.texts import TextAttack, check_trainable, train_texts
from robustclip.runs import distributed
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.files import is_file, read_lines
from robustclip.runs.folder import Run

QUICK: Final = {"steps": 20, "batch_size": 16, "warmup": 5, "samples": 2}


def recipe(
    *,
    data: Annotated[
        list[str], "captions: a .txt with one a line, shards, a table or a folder; several as SOURCE=WEIGHT"
    ] = [EMBEDDED],  # noqa: B006
    start: Annotated[str, "the CLIP whose text tower to train"] = "emoji-robust",
    name: RefereeName = "leaf",
    edits: Annotated[PositiveInt, "edits of a character (k)"] = 1,
    samples: Annotated[PositiveInt, "places, and then characters, that the attack tries (rho)"] = 5,
    words: Annotated[Path | None, "words, one a line: an edit must leave fewer of them, as released"] = None,
    attack: Annotated[TextAttack, "random: edits at random instead, a control"] = "leaf",
    steps: PositiveInt = 400,
    batch_size: PositiveInt = 16,
    lr: PositiveFloat = 1e-4,
    weight_decay: NonNegativeFloat = 1e-4,
    warmup: NonNegativeInt = 40,
    grad_clip: Annotated[NonNegativeFloat, "gradient norm clipping; 0 disables it, as released"] = 0.0,
    allow_commands: Annotated[bool, "allow shards of the form pipe:COMMAND, which execute commands"] = False,
    cache: Annotated[Path | None, "folder that keeps shards fetched from URLs; default: fetched in each epoch"] = None,
    checkpoint_every: PositiveInt = 500,
    keep: PositiveInt = 2,
    common: ComputeFlags = ComputeFlags(),
) -> dict[str, Any]:
    """Train a text tower against edits of characters by LEAF: edited texts keep the original's embeddings.

      robustclip robustify leaf
      robustclip robustify leaf --attack random --steps 760 --warmup 76    # a control of equal time
      robustclip robustify leaf --start robust-clip:fare2-vit-l-14 --data 'datacomp/{00000000..00001287}.tar' \
--samples 50 --batch-size 128 --lr 1e-5 --warmup 1400 --steps 18750 --words words.txt

    The image tower stays as it is: a start with a robust one gives a referee with two robust towers. From the paper and
    its code: loss, attack, AdamW (0.9, 0.98, 1e-6), cosine, no clipping, the last weights; the last call above has the
    released values of ViT-L (30 epochs of 80,000 captions of DataComp-small, words of nltk). The defaults are for the
    embedded world and one CPU core, and ours; the captions are those of the guide styles, without the held-out
    concepts.
    """
    arguments = flat(locals())
    device = pick_device(common.device)
    computed = pick_dtype(common.dtype, device)
    allowed = None if words is None else fewer_words([word.lower() for word in read_lines(words) if word])
    captions = open_captions(
        data,
        batch_size=batch_size,
        seed=common.seed,
        place=distributed.place(),
        shuffle_buffer=500 if common.quick else 10_000,
        allow_commands=allow_commands,
        cache=cache,
    )
    referee = load_referee(start, device=str(device))
    check_trainable(referee)
    started_from = referee.card
    run = Run.start(common.out, common.resume, recipe="leaf", arguments=arguments)
    with run:
        with_flags(train_texts, arguments)(
            referee, captions, run=run, allowed=allowed, grad_clip=grad_clip or math.inf, dtype=computed
        )
        threat, seen = referee.card.threat, steps * batch_size
        return save_trained(referee, run, name=name, threat=threat, started_from=started_from, samples=seen)


def faults(words: Path | None, attack: TextAttack) -> Iterator[str]:
    if words is not None and attack == "random":
        yield "--words constrains the attack, and --attack random has none: leave one out"
    if words is not None and not is_file(words):
        yield f"--words {words}: there is no such file; give a list of words, one a line"
