"""Fine-tuning of a referee's perceptual distance on 2AFC triplets by LoRA (DreamSim), also adversarially.

    min over LoRA's factors of the mean over triplets of   max(0, margin - (d(x', farther) - d(x', nearer)))

d is 1 - cosine of the image embeddings; x' is the reference, or with a threat model what PGD makes of it (`mislead`).
Margin, rank, alpha and optimiser are those of Fu et al. 2023, ssundaram21/dreamsim training/train.py and
configs/train_single_model_lora.yaml. Ours: the adversarial loss, steps, warm-up and cosine, and no dropout on LoRA's
inputs (theirs: 0.3).
"""

from __future__ import annotations

import math
from typing import Final, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError
from robustclip.losses.perceptual import PerceptualDistance, Triplets, hinge, mislead
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.smoothed import refuse_wrapped
from robustclip.robustification.state import TrainingState, adamw, trained_parameters, warmup_cosine
from robustclip.runs import distributed
from robustclip.runs.devices import autocast
from robustclip.runs.folder import Run
from robustclip.runs.processes import catching_signals
from robustclip.runs.progress import TrainingProgress
from robustclip.runs.rng import batch_rows, each, generator

ATTENTION: Final = ("in_proj_weight", "qkv.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")
MLP: Final = ("fc1.weight", "fc2.weight")
Votes = Literal["given", "shuffled"]
"""Which image counts as the nearer one: the triplets' or, as a control, one drawn at random."""


@final
class LowRank(nn.Module):
    """LoRA as a parametrisation of a weight: W + alpha/rank B A, with W seen as (out, rest) (Hu et al. 2021).

    A is drawn as by peft, B is zero, so that training starts at W. Unlike peft's wrapped layers, a parametrisation fits
    any weight, such as the `in_proj_weight` of open_clip's attention, and needs no extra.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, stream: torch.Generator) -> None:
        super().__init__()
        self.scale = alpha / rank
        down = torch.empty(rank, weight[0].numel())
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=stream)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))

    def forward(self, weight: Float[Tensor, "out ..."]) -> Float[Tensor, "out ..."]:
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def lora_layers(tower: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Weights that LoRA adapts, {name: (layer, attribute)}: queries, keys and values of attention (DreamSim), else the
    linear layers fc1 and fc2 of a ConvNeXt's MLPs (R-CLIP, fra31/perceptual-metrics utils_lora.py), else every linear
    layer and ungrouped convolution (ours).

    Raises UsageError for a tower that has none.
    """
    found = {
        f"{path}.{name}".lstrip("."): (layer, name)
        for path, layer in tower.named_modules()
        for name, value in layer.named_parameters(recurse=False)
        if value.ndim > 1 and getattr(layer, "groups", 1) == 1
    }
    for ends in (ATTENTION, MLP):
        if chosen := {name: place for name, place in found.items() if name.endswith(ends)}:
            return chosen
    dense = {name: place for name, place in found.items() if isinstance(place[0], nn.Linear | nn.Conv2d)}
    if not dense:
        raise UsageError(
            f"a {type(tower).__name__} has no layer for LoRA (attention, linear or convolution): start from a referee "
            "with a ViT, a ResNet or a ConvNeXt, e.g. emoji-robust",
            "no_lora_layers",
        )
    return dense


def add_lora(tower: nn.Module, rank: int, alpha: float, seed: int) -> list[str]:
    """Freeze a tower and add trainable LoRA factors to its `lora_layers`, whose names are returned."""
    layers = lora_layers(tower)
    tower.requires_grad_(False)
    for name, (layer, attribute) in layers.items():
        added = LowRank(getattr(layer, attribute), rank, alpha, generator(seed, f"LoRA of {name}"))
        parametrize.register_parametrization(layer, attribute, added)
    return list(layers)


def merge_lora(tower: nn.Module) -> None:
    """Replace each adapted weight by its value, so that the tower is an ordinary one again, frozen."""
    for layer in list(tower.modules()):
        if parametrize.is_parametrized(layer):
            assert isinstance(layer.parametrizations, nn.ModuleDict)
            for attribute in list(layer.parametrizations):
                parametrize.remove_parametrizations(layer, attribute, leave_parametrized=True)
    tower.requires_grad_(False)


def tune_distance(
    referee: TwoTower,
    triplets: Triplets,
    *,
    run: Run,
    steps: int,
    batch_size: int,
    lr: float,
    warmup: int,
    margin: float = 0.05,
    rank: int = 16,
    alpha: float = 0.5,
    threat: ThreatModel | None = None,
    attack_steps: int = 3,
    votes: Votes = "given",
    dtype: torch.dtype = torch.float32,
    checkpoint_every: int = 500,
    keep: int = 2,
    log_every: int = 10,
    resume: bool = False,
    seed: int = 0,
) -> TwoTower:
    """Fine-tune the image tower by LoRA so that the nearer image of each triplet is nearer by `margin`. Returns
    `referee` with the merged weights, frozen and in eval mode; the text tower is not touched.

    Adam (0.5, 0.999) without weight decay. The tower stays in eval mode, so BatchNorm keeps its statistics. With a
    `threat`, each reference is attacked by PGD before the update. Checkpoints, metrics and bit-equal resumption are
    those of `train`; `right` is the share of the batch whose nearer image was nearer, under the attack if there is one.

    Raises UsageError without triplets, for a tower without LoRA's layers and for several processes; RunError for a loss
    or gradient that is not finite; Interrupted, after a checkpoint, on SIGINT or SIGTERM.
    """
    tower, device, apart = referee.image_tower, referee.device, PerceptualDistance.between
    refuse_wrapped(tower, "has no weights of its own to save", "tune its base")
    if len(triplets) == 0:
        raise UsageError(f"{triplets.name}: there is no triplet to train on", "no_triplets")
    if distributed.count() > 1:
        raise UsageError("a distance is tuned in one process: call it without accelerate launch", "one_process")
    tower.eval()
    layers = add_lora(tower, rank, alpha, seed)
    run.note(steps=steps, dtype=str(dtype).removeprefix("torch."), trained_parameters=trained_parameters(tower))
    run.note(tuned_for=f"2AFC: the order of cosine distances on {triplets.name}, by LoRA", layers=layers)

    def embed(images: Tensor) -> Tensor:
        with autocast(device, dtype):
            return unit(referee.embed_images(images, normalize=False).float())

    optimizer = adamw(tower, lr, 0.0, betas=(0.5, 0.999))
    schedule = warmup_cosine(optimizer, warmup, steps)
    state = TrainingState(tower, None, optimizer, {"schedule": schedule})
    if resume:
        state.restore(run, device, steps)
    turned = torch.zeros(len(triplets), dtype=torch.bool)
    if votes == "shuffled":
        turned = torch.rand(len(triplets), generator=generator(seed, "votes")) < 0.5

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        rows = batch_rows(len(triplets), batch_size, step, seed, "triplets")
        reference, one, other = (part[rows] for part in (triplets.reference, triplets.nearer, triplets.farther))
        swap = turned[rows].view(-1, 1, 1, 1)
        nearer, farther = torch.where(swap, other, one), torch.where(swap, one, other)
        return reference.to(device), nearer.to(device), farther.to(device), [triplets.ids[row] for row in rows.tolist()]

    with (
        TrainingProgress(total=steps, start=state.step, unit="triplets") as progress,
        catching_signals() as caught,
    ):
        for step, (shown, near, far, ids) in enumerate(
            progress.fed(batch(k) for k in range(state.step, steps)), state.step
        ):
            done = step + 1
            nearer, farther = embed(torch.cat([near, far])).chunk(2)
            if threat is not None:
                shown = mislead(
                    embed,
                    shown,
                    nearer.detach(),
                    farther.detach(),
                    threat,
                    steps=attack_steps,
                    keep="last",
                    module=tower,
                    generator=each(seed, "2afc tuning", step, ids=ids, device=device),
                )
            found = embed(shown)
            distances = apart(found, nearer), apart(found, farther)
            rate = float(schedule.get_last_lr()[0])
            numbers = state.update(hinge(*distances, margin).mean())
            schedule.step()

            progress.advance(images=len(ids), loss=numbers["loss"])
            if done % log_every == 0 or done == steps:
                numbers |= {"right": float((distances[0] < distances[1]).float().mean()), "lr": rate}
                progress.show(right=numbers["right"])
                run.log(done, **numbers, triplets_per_second=progress.images_per_second)
            state.end_of_step(run, caught, steps=steps, every=checkpoint_every, keep=keep)

    merge_lora(tower)
    run.note(seconds=state.seconds, data={"triplets": triplets.name, "count": len(triplets)})
    return referee
