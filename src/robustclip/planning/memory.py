"""Memory of a training step, counted on the towers with saved-tensor hooks, and the largest batch that fits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from robustclip.attacks.gradient import attacking
from robustclip.planning.settings import Settings
from robustclip.planning.towers import Blueprint, Imagined
from robustclip.robustification.losses import clip, text_bank
from robustclip.robustification.state import trained_parameters
from robustclip.runs import distributed
from robustclip.runs.devices import DTYPES, autocast, saved_bytes

SINGLE = 4  # bytes of a float32, the dtype of weights, gradients and moments
LOSS_ON = 64  # images to measure a loss on
DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd saves per image until its backward pass; `once`: for any number of images (weights in
    bfloat16); `working`: per image during a layer's backward pass, half of what a block saves (ours; within a tenth of
    measured steps)."""

    attack: int
    update: int
    once: int
    working: int


@dataclass(frozen=True)
class Memory:
    """Bytes by content: permanent, and added in each phase of a step."""

    held: dict[str, float]
    moments: dict[str, dict[str, float]]

    @property
    def fullest(self) -> str:
        """The phase of most memory."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def peak(self) -> float:
        return sum(self.held.values()) + sum(self.moments[self.fullest].values())


def activations(towers: Imagined, size: tuple[int, int], dtype: str, *, grad_checkpointing: bool) -> Activations:
    """Count what the image tower's graph saves in its present mode; with checkpointing, the inputs of its blocks and
    all of one block, which is recomputed."""
    tower = towers.image_tower
    kept = _kept(towers, size, dtype)
    blocks = max(1, len(list(distributed.blocks(tower))))
    if not grad_checkpointing:
        return replace(kept, working=kept.update // blocks // 2)
    tower.set_grad_checkpointing(False)  # type: ignore[operator]
    everything = _kept(towers, size, dtype)
    tower.set_grad_checkpointing(True)  # type: ignore[operator]
    return Activations(
        attack=kept.attack + everything.attack // blocks,
        update=kept.update + everything.update // blocks,
        once=everything.once,
        working=everything.update // blocks // 2,
    )


def _kept(towers: Imagined, size: tuple[int, int], dtype: str) -> Activations:
    tower = towers.image_tower

    def kept(images: int, *, pixels: bool) -> int:
        batch = torch.rand(images, 3, *size, requires_grad=pixels)
        with autocast(DEVICE, DTYPES[dtype]):
            return saved_bytes(lambda: tower(batch), tower.parameters())

    with towers.mode:
        update = kept(2, pixels=False), kept(4, pixels=False)  # one alone has no batch statistics
        with attacking(tower):
            attack = kept(2, pixels=True), kept(4, pixels=True)
    each_update, each_attack = ((four - two) // 2 for two, four in (update, attack))
    return Activations(each_attack, each_update, once=max(0, update[0] - 2 * each_update), working=0)


def memory_of_step(
    settings: Settings, towers: Imagined, design: Blueprint, kept: Activations, count: int, *, fsdp: bool, bank: int = 0
) -> Memory:
    """Memory of one of `count` GPUs. FSDP shards weights, gradients, moments and average."""
    weights = SINGLE * sum(weight.numel() for weight in towers.image_tower.parameters())
    trained = SINGLE * trained_parameters(towers.image_tower)
    split, moving = (size / count if fsdp else size for size in (weights, trained))
    held = {"weights": split, "moments of AdamW": 2 * moving, "average of the weights": split}
    if fsdp:
        held["weights, whole, for the end"] = weights
        held["a block, gathered"] = 2 * SINGLE * max(map(_size, distributed.blocks(towers.image_tower)), default=0)
    if settings.reads_original:
        held["the tower before training"] = weights
    if towers.text_tower is not None:
        held["text tower"] = SINGLE * _size(towers.text_tower)
    share, part = settings.share(count), settings.part(count)
    pixels = SINGLE * 3 * design.size[0] * design.size[1] * share
    if settings.evaluate_every:
        held["the probe's images"] = pixels  # as many as a batch has
    of_clean = settings.clean_weight > 0 or settings.reads_clean
    graphs = 1 + (of_clean + (settings.energy > 0) if settings.accumulate == 1 else 0)
    each = bytes_per_logit(settings.coupled)
    loss = each * settings.batch_size**2 if settings.coupled else each * part * bank
    alone = each * part**2 if settings.coupled and settings.attack_negatives == "local" else loss
    moments = {
        "attack": {
            "activations": (kept.attack + kept.working) * part + kept.once,
            "images": 5 * pixels,  # clean, attacked, and three temporaries of an attack step
            "logits": alone,
        },
        "update": {
            "activations": (graphs * kept.update + kept.working) * part + kept.once,
            "images": 2 * pixels,
            "logits": graphs * loss,
            "gradients": moving,
        },
    }
    if settings.evaluate_every and settings.attack_steps:
        moments["probe"] = {
            "activations": (kept.attack + kept.working) * part + kept.once,
            "images": 5 * pixels,
            "logits": bytes_per_logit(True) * settings.batch_size**2,
        }
    if count > 1 and not fsdp:
        moments["averaging over GPUs"] = {"gradients": moving, "the message": 2 * moving, "images": 2 * pixels}
    moments["optimiser"] = {"gradients": moving, "its temporaries": moving, "images": 2 * pixels}
    return Memory(held, moments)


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, if all below it do; 0 if 1 does not."""
    beyond = 1
    while fits(beyond):
        beyond *= 2
    return bisect_left(range(1, beyond), True, key=lambda number: not fits(number))


@cache
def bytes_per_logit(coupled: bool) -> float:
    """Bytes that a loss saves per image-text pair until its backward pass, and of their gradients."""
    features = torch.rand(LOSS_ON, 1, requires_grad=True)
    ids = torch.arange(LOSS_ON)
    loss = clip(1.0) if coupled else text_bank(1.0, features.detach(), ids)
    directions = 2 if coupled else 1
    return saved_bytes(lambda: loss(features, features.detach(), ids)) / LOSS_ON**2 + SINGLE * directions


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
