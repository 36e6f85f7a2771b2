"""FLOPs and memory of a training step, counted on the towers with torch's FlopCounterMode and saved-tensor hooks.

A multiply-add is two FLOPs; only matrix products and convolutions count, as in the counter and in data sheets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from robustclip.attacks.gradient import attacking
from robustclip.planning.settings import LOG_EVERY, Settings
from robustclip.planning.towers import Blueprint, Imagined
from robustclip.referees.sentence import SentenceEncoder
from robustclip.robustification.losses import clip, text_bank
from robustclip.robustification.monitor import SHOWN, STRONG_STEPS
from robustclip.robustification.state import trained_parameters
from robustclip.runs import distributed
from robustclip.runs.devices import DTYPES, autocast, saved_bytes

COUNTED_ON = 2  # images to count on
SHORT = 24  # tokens of a caption for text towers whose cost depends on the length (ours)


class FlopCounter(FlopCounterMode):
    """torch's counter with two changes.

    It does not count per module, whose hooks refuse a gradient to a module's own input, which attacks need. And the
    weight gradient of a grouped convolution counts as its forward pass; torch's formula ignores the groups (a depthwise
    convolution of 512 channels would count 512 times).
    """

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})
        self.mod_tracker: Any = _NoModules()

    def __enter__(self) -> Self:
        # The counter does not see inside the fused attention layer of inference.
        self.fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.backends.mha.set_fastpath_enabled(self.fused)


class _NoModules:
    parents = ("Global",)

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def _convolution_backward(gradient: Any, images: Any, kernel: Any, *rest: Any, **_: Any) -> int:
    """Each of the gradients to the images and to the kernel costs as much as the forward pass. The arguments are those
    of aten's convolution_backward; `transposed` is the 8th and `output_mask` the 11th."""
    transposed, wanted = rest[4], rest[7]
    forward = conv_flop_count(list(images), list(kernel), list(gradient), transposed=transposed)
    return forward * (int(wanted[0]) + int(wanted[1]))


@dataclass(frozen=True)
class TowerFlops:
    """FLOPs per image and per caption.

    `attack`: a forward pass and the gradient to the pixels, with frozen weights; `update`: a forward pass and the
    gradient to the weights; both include the recomputation of gradient checkpointing.
    """

    forward: int
    attack: int
    update: int
    caption: int | None


def of_towers(towers: Imagined, size: tuple[int, int]) -> TowerFlops:
    """Count the towers of a blueprint, with the image tower in its present mode (see `ready_to_train`)."""
    tower = towers.image_tower
    with towers.mode:
        images = torch.rand(COUNTED_ON, 3, *size)
        with attacking(tower):
            forward = counted(lambda: torch.no_grad()(tower)(images))
            attack = counted(lambda: gradient_to_pixels(tower, images))
        update = counted(lambda: tower(images).float().sum().backward())
        tower.zero_grad()
    return TowerFlops(forward // COUNTED_ON, attack // COUNTED_ON, update // COUNTED_ON, _caption(towers))


def counted(step: Callable[[], object]) -> int:
    """FLOPs of `step()`."""
    with FlopCounter() as counter:
        step()
    return int(counter.get_total_flops())


def gradient_to_pixels(tower: nn.Module, images: Tensor) -> Tensor:
    """The tower's forward pass and the gradient of its output's sum to the images."""
    leaf = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(tower(leaf).float().sum(), leaf)
    return gradient


@torch.no_grad()
def _caption(towers: Imagined) -> int | None:
    """FLOPs of a caption of the full context (CLIP pads to it), or of SHORT tokens."""
    text_tower = towers.text_tower
    if text_tower is None:
        return None
    if isinstance(text_tower, SentenceEncoder):
        return counted(lambda: text_tower(["a " * (SHORT - 2)]))
    with towers.mode:
        tokens = torch.zeros(COUNTED_ON, towers.context_length, dtype=torch.long)
        return counted(lambda: text_tower.eval()(tokens)) // COUNTED_ON


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one training step, over all processes.

    `samples`: steps of CLIP-JEM's negative samples; `recomputed`: second forward passes of a batch in parts; `beside`:
    embeddings of clean images, of samples and of the tower before training, for the objective; `watching`: logs and
    probes, per step on average.
    """

    attack: float
    samples: float
    update: float
    recomputed: float
    beside: float
    logits: float
    captions: float
    watching: float

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))


def of_step(settings: Settings, tower: TowerFlops, design: Blueprint, count: int, bank: int = 0) -> StepFlops:
    """FLOPs of a step of the trainer on average; `bank` is the number of texts of a text bank."""
    batch, attacks = settings.batch_size, settings.attack_steps
    in_parts = settings.accumulate > 1
    updates = 1 + (settings.clean_weight > 0)
    energetic, sampling = settings.energy > 0, settings.sampling_steps
    embedded = updates + settings.reads_clean + energetic
    gathered = settings.coupled and settings.attack_negatives == "gathered"
    forwards_again = in_parts * (embedded + attacks * gathered + sampling)
    update_logits = logits(settings, design.width, count, bank)
    attack_logits = update_logits if gathered else logits(settings, design.width, count, bank, local=True)
    if settings.objective == "trades":  # also predicts on the clean images, in the attack without gradients
        update_logits, attack_logits = 3 * update_logits, 1.5 * attack_logits
    if settings.objective == "agft":  # also the original's on the clean images, without gradients
        update_logits, attack_logits = 1.5 * update_logits, 1.5 * attack_logits
    captions = batch * (tower.caption or 0)
    reads_texts = settings.coupled or energetic
    products = 4.0 * batch**2 * design.width * count  # of images and texts of the whole batch
    probes = settings.batch_size * (3 if attacks else 1) * tower.forward + min(SHOWN, batch) * tower.attack
    if attacks:
        probes += (attacks + STRONG_STEPS) * (batch * tower.attack + 4 * batch**2 * design.width)
    watched = (2 * batch * tower.forward + (0 if reads_texts else captions)) / LOG_EVERY
    return StepFlops(
        attack=batch * attacks * tower.attack,
        samples=batch * sampling * tower.attack,
        update=batch * updates * tower.update,
        recomputed=batch * forwards_again * tower.forward,
        beside=_beside(settings, tower),
        logits=attacks * attack_logits + updates * (update_logits + 2 * energetic * products) + sampling * products,
        captions=captions if reads_texts else 0,
        watching=watched + (count * probes / settings.evaluate_every if settings.evaluate_every else 0),
    )


def _beside(settings: Settings, tower: TowerFlops) -> float:
    """Passes on further images: FARE's and AGFT's original tower once per step; TRADES' tower in training, once for the
    attack and once with gradients; AdvFLYP's regularisers both, the original on the attacked images; CLIP-JEM embeds
    its samples."""
    of_clean = settings.batch_size * tower.update * (settings.reads_clean + (settings.energy > 0))
    for_attack = settings.objective == "trades" and settings.attack_steps > 0
    return of_clean + settings.batch_size * tower.forward * (settings.reads_original + for_attack)


def logits(settings: Settings, width: int, count: int, bank: int, *, local: bool = False) -> float:
    """FLOPs of the products of image and text embeddings and of their gradient to the images.

    A coupled loss computes N x N of them in every process, on the whole batch; `local` ones on a part.
    """
    if settings.objective == "fare":  # reads no text
        return 0.0
    if not settings.coupled:
        return 4.0 * settings.batch_size * bank * width
    if local:
        return 4.0 * settings.batch_size * settings.part(count) * width
    return 4.0 * settings.batch_size**2 * width * count


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
    if settings.evaluate_every and settings.attack_steps:  # a whole batch, in each process
        moments["probe"] = {
            "activations": (kept.attack + kept.working) * settings.batch_size + kept.once,
            "images": 5 * pixels * count,
            "logits": bytes_per_logit(True) * settings.batch_size**2,
        }
    if count > 1 and not fsdp:
        moments["averaging over GPUs"] = {"gradients": moving, "the message": 2 * moving, "images": 2 * pixels}
    moments["optimiser"] = {"gradients": moving, "its temporaries": moving, "images": 2 * pixels}
    return Memory(held, moments)


def bytes_per_logit(coupled: bool) -> float:
    """Bytes that a loss saves per image-text pair until its backward pass, and of their gradients."""
    features = torch.rand(LOSS_ON, 1, requires_grad=True)
    ids = torch.arange(LOSS_ON)
    loss = clip(1.0) if coupled else text_bank(1.0, features.detach(), ids)
    directions = 2 if coupled else 1
    return saved_bytes(lambda: loss(features, features.detach(), ids)) / LOSS_ON**2 + SINGLE * directions


def texts_of_bank(settings: Settings) -> int:
    """Number of concepts of the recipe's split, whose names are the bank."""
    from robustclip.data.emoji import load_labels

    return len(load_labels(settings.split or "guide-styles").labels.unique())


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
