"""Estimate peak GPU memory of a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustclip.attacks.gradient import attacking
from robustclip.planning.imagined import Blueprint, Imagined
from robustclip.planning.settings import Settings
from robustclip.robustification.losses import clip, text_bank
from robustclip.runs import distributed
from robustclip.runs.devices import DTYPES, autocast

SINGLE = 4  # bytes of a float32: weights, gradients and moments are never narrower
RESERVED = 0.1
"""Of a GPU's memory: the CUDA context, the allocator's gaps, and what a layer needs while it is computed (ours)."""
GIB = 2**30
LOSS_ON = 64  # images whose loss is looked at
DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps for an image until its backward pass, `once` for any number of them (weights in
    bfloat16), and `working` for an image while a layer is computed backward: half of what a block keeps (ours; it
    brings the plan within a tenth of what is alive in real steps)."""

    attack: int
    update: int
    once: int
    working: int


@dataclass(frozen=True)
class Memory:
    """Bytes by what they hold: what is always there, and what each moment adds."""

    held: dict[str, float]
    moments: dict[str, dict[str, float]]

    @property
    def fullest(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def peak(self) -> float:
        return sum(self.held.values()) + sum(self.moments[self.fullest].values())


def activations(towers: Imagined, size: tuple[int, int], dtype: str, *, grad_checkpointing: bool) -> Activations:
    """Count what the image tower's graph keeps, in the mode it has now. With checkpointing that is the inputs of its
    blocks, and all of one block at a time, which is computed again."""
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
            return saved_bytes(lambda: tower(batch), tower)

    with towers.mode:
        update = kept(2, pixels=False), kept(4, pixels=False)  # one alone has no batch statistics
        with attacking(tower):
            attack = kept(2, pixels=True), kept(4, pixels=True)
    each_update, each_attack = ((four - two) // 2 for two, four in (update, attack))
    return Activations(each_attack, each_update, once=max(0, update[0] - 2 * each_update), working=0)


def saved_bytes(forward: Callable[[], Tensor], module: nn.Module | None = None) -> int:
    """Bytes that the graph of `forward()` keeps, each storage once, the module's own weights apart."""
    own = {} if module is None else {weight.untyped_storage()._cdata for weight in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = forward()
    total = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    del graph
    return total


def of_step(
    settings: Settings, towers: Imagined, design: Blueprint, kept: Activations, count: int, *, fsdp: bool, bank: int = 0
) -> Memory:
    """Memory of one of `count` GPUs. With FSDP weights, gradients, moments and average are split over them."""
    weights = SINGLE * sum(weight.numel() for weight in towers.image_tower.parameters())
    split = weights / count if fsdp else weights
    held = {"weights": split, "moments of AdamW": 2 * split, "average of the weights": split}
    if fsdp:
        held["weights, whole, for the end"] = weights
        held["a block, gathered"] = 2 * SINGLE * max(map(_size, distributed.blocks(towers.image_tower)), default=0)
    if settings.reads_original:
        held["the tower before training"] = weights
    if towers.text_tower is not None:
        held["text tower"] = SINGLE * _size(towers.text_tower)
    share, part = settings.share(count), settings.part(count)
    pixels = SINGLE * 3 * design.size[0] * design.size[1] * share
    of_clean = settings.clean_weight > 0 or settings.reads_clean
    graphs = 2 if of_clean and settings.accumulate == 1 else 1
    each = bytes_per_logit(settings.coupled)
    loss = each * settings.batch_size**2 if settings.coupled else each * part * bank
    alone = each * part**2 if settings.coupled and settings.attack_negatives == "local" else loss
    moments = {
        "attack": {
            "activations": (kept.attack + kept.working) * part + kept.once,
            "images": 5 * pixels,  # clean, attacked, and three that a step computes with
            "logits": alone,
        },
        "update": {
            "activations": (graphs * kept.update + kept.working) * part + kept.once,
            "images": 2 * pixels,
            "logits": graphs * loss,
            "gradients": split,
        },
    }
    if settings.evaluate_every and settings.attack_steps:  # a whole batch, in each process
        moments["probe"] = {
            "activations": (kept.attack + kept.working) * settings.batch_size + kept.once,
            "images": 5 * pixels * count,
            "logits": bytes_per_logit(True) * settings.batch_size**2,
        }
    if count > 1 and not fsdp:
        moments["averaging over GPUs"] = {"gradients": split, "the message": 2 * split, "images": 2 * pixels}
    moments["optimiser"] = {"gradients": split, "its temporaries": split, "images": 2 * pixels}
    return Memory(held, moments)


def bytes_per_logit(coupled: bool) -> float:
    """What a loss keeps for each pair of an image and a text until its backward pass, and their gradients there."""
    features = torch.rand(LOSS_ON, 1, requires_grad=True)
    ids = torch.arange(LOSS_ON)
    loss = clip(1.0) if coupled else text_bank(1.0, features.detach(), ids)
    directions = 2 if coupled else 1
    return saved_bytes(lambda: loss(features, features.detach(), ids)) / LOSS_ON**2 + SINGLE * directions


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
