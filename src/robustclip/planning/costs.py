"""FLOPs of a training step, counted on the towers with torch's FlopCounterMode.

A multiply-add is two FLOPs; only matrix products and convolutions count, as in the counter and in data sheets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from robustclip.attacks.gradient import attacking
from robustclip.planning.settings import LOG_EVERY, Settings
from robustclip.planning.towers import Blueprint, Imagined
from robustclip.referees.sentence import SentenceEncoder
from robustclip.robustification.monitor import SHOWN, STRONG_STEPS

COUNTED_ON = 2  # images to count on
SINGLE, IDS = 4, 8  # bytes of a float32 and of an int64
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
    probes = batch * (3 if attacks else 1) * tower.forward + count * min(SHOWN, settings.share(count)) * tower.attack
    if attacks:
        passes = tower.attack + in_parts * tower.forward
        probes += (attacks + STRONG_STEPS) * (batch * passes + count * 4 * batch**2 * design.width)
    watched = (2 * batch * tower.forward + (0 if reads_texts else captions)) / LOG_EVERY
    return StepFlops(
        attack=batch * attacks * tower.attack,
        samples=batch * sampling * tower.attack,
        update=batch * updates * tower.update,
        recomputed=batch * forwards_again * tower.forward,
        beside=_beside(settings, tower),
        logits=attacks * attack_logits + updates * (update_logits + 2 * energetic * products) + sampling * products,
        captions=captions if reads_texts else 0,
        watching=watched + (probes / settings.evaluate_every if settings.evaluate_every else 0),
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


@dataclass(frozen=True)
class Sent:
    """Bytes that each of `count` processes sends in a step, by content; nothing is sent by a single one.

    Rings are assumed, as in NCCL: each of n processes sends n - 1 times its own rows in an all-gather, and
    2 (n - 1) / n of an all-reduced message. A gather's backward pass sends nothing, for every process computes the
    whole loss.
    """

    embeddings: float
    gradients: float
    weights: float

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))

    def seconds(self, bandwidth: float | None) -> float:
        """Seconds at so many bytes per second; 0 if that is unknown."""
        return 0.0 if bandwidth is None else self.total / bandwidth


def sent(
    settings: Settings, width: int, count: int, weights: int, trained: int, dtype: str, *, fsdp: bool = False
) -> Sent:
    """Bytes sent per step by a tower of so many `weights`, without those of single numbers, checkpoints and probes.

    FSDP gathers the weights in each pass of each part, and averages gradients by a reduce-scatter, half an all-reduce.
    """
    others, attacks = count - 1, settings.attack_steps
    energetic, embedded = settings.energy > 0, 1 + (settings.clean_weight > 0)
    of_embeddings = settings.share(count) * width * (SINGLE if dtype == "float32" else SINGLE // 2)
    of_texts = settings.share(count) * (SINGLE * width + IDS)
    in_attack = settings.coupled and attacks > 0 and settings.attack_negatives == "gathered"
    rows = in_attack * (of_texts + attacks * of_embeddings)
    rows += energetic * (of_texts + settings.sampling_steps * of_embeddings)
    if settings.coupled or energetic:
        beside = settings.reads_clean + energetic + embedded * (settings.anchor > 0)  # clean, samples, the original's
        rows += of_texts + (embedded + beside) * of_embeddings
    gradients = 2 * others / count * SINGLE * trained
    if not fsdp:
        return Sent(others * rows, gradients, 0.0)
    embedded += settings.reads_clean + energetic
    passes = 2 * (attacks + settings.sampling_steps + embedded)
    if settings.accumulate > 1:  # each part's activations are computed again
        passes += embedded + attacks * in_attack + settings.sampling_steps
    return Sent(others * rows, gradients / 2, others / count * SINGLE * weights * passes * settings.accumulate)


def texts_of_bank(settings: Settings) -> int:
    """Number of concepts of the recipe's split, whose names are the bank."""
    from robustclip.data.emoji import load_labels

    return len(load_labels(settings.split or "guide-styles").labels.unique())
