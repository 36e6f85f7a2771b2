"""Adversarial fine-tuning of a text tower on edited texts (LEAF, Abad Rocamora et al. 2025), the image tower frozen.

    min over theta of the mean over texts S of   max over S'   ||f_theta(S') - f(S)||^2

f is the tower before training, f_theta the one in training, embeddings are not normalised, and S' is at most k edits of
a character away from S: FARE's loss, of texts. Values and details are those of LIONS-EPFL/LEAF 1dc5157, utils_AT.py
(train_one_epoch_text_only).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.func import functional_call

from robustclip.attacks.text import Allowed, leaf, random_edits
from robustclip.data.captions import CaptionBatches
from robustclip.errors import UsageError
from robustclip.referees.base import TextTower, TwoTower
from robustclip.referees.smoothed import refuse_wrapped
from robustclip.robustification.state import TrainingState, adamw, warmup_cosine
from robustclip.runs import distributed
from robustclip.runs.devices import autocast
from robustclip.runs.folder import Run
from robustclip.runs.processes import catching_signals
from robustclip.runs.progress import TrainingProgress
from robustclip.runs.rng import each

TextAttack = Literal["leaf", "random"]
"""How training edits texts: by LEAF's search, or at random, which is its control."""
Embed = Callable[[list[str]], Float[Tensor, "t d"]]


def leaf_loss(
    embed: Embed,
    original: Float[Tensor, "b d"],
    texts: Sequence[str],
    generators: Sequence[Generator],
    *,
    edits: int = 1,
    samples: int = 50,
    allowed: Allowed | None = None,
    attack: TextAttack = "leaf",
) -> Float[Tensor, ""]:
    """LEAF's loss of a batch: the mean squared distance (summed over dimensions) between the embeddings of the edited
    texts and `original`, those of the texts by the tower before training. Both unnormalised.

    The attack raises the same distance; `samples` is its rho, `edits` its k.
    """

    def distances(shown: Sequence[str], owners: Sequence[int]) -> Float[Tensor, " n"]:
        return (embed(list(shown)).float() - original[list(owners)].float()).square().sum(1)

    edited = list(texts)
    if attack == "leaf":
        edited = leaf(edited, distances, generators, edits=edits, samples=samples, allowed=allowed)
    else:
        for _ in range(edits):
            edited = random_edits(edited, generators)
    return distances(edited, range(len(edited))).mean()


def check_trainable(referee: TwoTower) -> TextTower:
    """The referee's text tower. Raises UsageError if it has no weights, as a toy's, and for a smoothed or defended
    referee."""
    refuse_wrapped(referee.image_tower, "has no weights of its own to save", "train its base")
    if not any(True for _ in referee.text_tower.parameters()):
        raise UsageError(
            f"the text tower of {referee.card.name}, a {type(referee.text_tower).__name__}, has no weights to train: "
            "start from a CLIP of open_clip or transformers, or one with a sentence encoder, e.g. emoji-robust",
            "no_text_weights",
        )
    return referee.text_tower


def train_texts(
    referee: TwoTower,
    data: CaptionBatches,
    *,
    run: Run,
    steps: int,
    lr: float,
    weight_decay: float,
    warmup: int,
    edits: int = 1,
    samples: int = 50,
    allowed: Allowed | None = None,
    attack: TextAttack = "leaf",
    grad_clip: float = math.inf,
    dtype: torch.dtype = torch.float32,
    checkpoint_every: int = 500,
    keep: int = 2,
    log_every: int = 10,
    resume: bool = False,
    seed: int = 0,
) -> TwoTower:
    """Fine-tune `referee.text_tower` by LEAF. Returns `referee`, frozen and in eval mode, whose card names the edits
    that it was trained against; the image tower is not touched.

    AdamW, linear warm-up and cosine decay, no average of the weights, as released. Ours: the tower is in eval mode, so
    that a BERT has no dropout (a CLIP has none). Checkpoints, metrics and bit-equal resumption are those of `train`;
    every process takes its share of a batch.

    Raises UsageError for a text tower without weights and for weights sharded over processes; RunError for a loss or
    gradient that is not finite; Interrupted, after a checkpoint, on SIGINT or SIGTERM.
    """
    tower, device = check_trainable(referee), referee.device
    if distributed.is_sharded():
        raise UsageError("a text tower is trained with whole weights: launch without --use_fsdp")
    run.note(steps=steps, dtype=str(dtype).removeprefix("torch."))
    before = {name: value.detach().clone() for name, value in tower.state_dict(keep_vars=True).items()}
    tower.eval().requires_grad_(True)
    tower.is_packaged = False

    def embed(texts: list[str]) -> Tensor:
        with autocast(device, dtype):
            embeddings: Tensor = tower(texts)
            return embeddings

    @torch.no_grad()
    def original(texts: list[str]) -> Tensor:
        with autocast(device, dtype):
            embeddings: Tensor = functional_call(tower, before, (texts,))
            return embeddings

    optimizer = adamw(tower, lr, weight_decay, eps=1e-6)
    schedule = warmup_cosine(optimizer, warmup, steps)
    state = TrainingState(tower, None, optimizer, {"schedule": schedule})
    if resume:
        state.restore(run, device, steps)
    silent = not distributed.is_main()
    with (
        TrainingProgress(total=steps, start=state.step, unit="texts", silent=silent) as progress,
        catching_signals() as caught,
    ):
        batches = progress.fed(data.batches(state.position))
        for step, batch in zip(range(state.step, steps), batches, strict=False):
            done = step + 1
            logs = done % log_every == 0 or done == steps
            anchors = original(batch.texts)
            streams = each(seed, "edits", step, ids=batch.ids)
            loss = leaf_loss(
                embed, anchors, batch.texts, streams, edits=edits, samples=samples, allowed=allowed, attack=attack
            )
            rate = float(schedule.get_last_lr()[0])
            numbers = state.update(loss, grad_clip=grad_clip)
            schedule.step()
            state.position = batch.position

            progress.advance(images=len(batch.texts) * distributed.count(), loss=numbers["loss"])
            if logs:
                with torch.no_grad():
                    moved = (embed(batch.texts).float() - anchors.float()).square().sum(1).mean()
                numbers |= {"clean_loss": float(distributed.mean(moved)), "lr": rate}
                progress.show(clean_loss=numbers["clean_loss"])
                run.log(done, **numbers, texts_per_second=progress.images_per_second)
            state.end_of_step(run, caught, steps=steps, every=checkpoint_every, keep=keep)

    tower.requires_grad_(False)
    if attack == "leaf":
        words = "" if allowed is None else ", fewer words"
        referee.card = replace(referee.card, text_threat=f"edits:{edits}{words}")
    if skipped := distributed.summed(data.faults):
        run.warn("skipped samples: " + ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common()))
    run.note(seconds=state.seconds, data=data.describe(), skipped_samples=dict(skipped))
    return referee
