"""One update's attack and gradients on a batch of 16, by as many processes as the environment says.

    python one_batch.py FOLDER TOWER_OBJECTIVE_PARTS...

For each case every process takes its rows of the same batch and writes its adversarial images, the loss, and the
gradients. Loading torch and open_clip is most of the time, so one call takes several cases.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from robustclip.attacks.threat import ThreatModel
from robustclip.data.samples import Batch
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.openclip import build_image_tower
from robustclip.referees.toy import ToyText, toy_referee
from robustclip.robustification.adversarial import AdversarialGradients
from robustclip.robustification.energy import NegativeSamples, jem
from robustclip.robustification.losses import (
    Objective,
    agft,
    anchored,
    clip,
    divergence,
    fare,
    siglip,
    text_bank,
    trades,
)
from robustclip.robustification.state import ready_to_train
from robustclip.runs import distributed
from robustclip.runs.rng import generator

BATCH, SIZE, WIDTH = 16, 32, 16
TOWERS = {
    "vit": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIZE},
    "resnet": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": SIZE},
}

CLIMBED = {"trades": "divergence", "energy": "clip"}
BANK = unit(torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64))


def referee(tower: str) -> TwoTower:
    """A small tower of open_clip, or the toy, in float64, beside a text tower without meaning."""
    toy = toy_referee(SIZE, WIDTH)
    if tower == "toy":
        return toy.double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image_tower = build_image_tower({"embed_dim": WIDTH, "vision_cfg": TOWERS[tower]})
    return TwoTower(image_tower, ToyText(WIDTH), toy.preprocess, card=toy.card).double()


def objective(name: str) -> Objective:
    if name == "clip":
        return clip(10.0)
    if name == "energy":
        return jem(clip(10.0), 10.0, 0.7)
    if name == "siglip":
        return siglip(10.0, -3.0)
    if name == "fare":
        return fare()
    if name == "agft":
        return agft(10.0, BANK)
    if name == "anchored":
        return anchored(clip(10.0), features=0.5, logits=0.7, scale=10.0)
    if name == "divergence":
        return divergence(10.0, BANK)
    if name == "trades":
        return trades(clip(10.0), 10.0, BANK)
    return text_bank(10.0, BANK, torch.arange(12))


def untrained(tower: str) -> TwoTower:
    """Another tower, to stand for what `referee(tower)` was before training."""
    other = referee(tower)
    with torch.no_grad():
        for weight in other.image_tower.parameters():
            weight.mul_(0.8)
    return other.eval()


def batch(rows: slice) -> Batch:
    """Rows of the one batch; two of its pairs show the same concept."""
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator(0, "images"), dtype=torch.float64)
    captions = [f"thing {number % 12}" for number in range(BATCH)]
    ids = [f"sample {number}" for number in range(BATCH)]
    return Batch(images[rows], captions[rows], (torch.arange(BATCH) % 12)[rows], ids[rows])


def one_update(tower: str, loss: str, parts: int, negatives: str = "gathered") -> dict[str, Tensor]:
    """Adversarial images of this process's rows, the batch's loss, and the gradients of all weights."""
    judge = referee(tower)
    ready_to_train(
        judge.image_tower, frozen_statistics=True, grad_checkpointing=False, accumulate=parts, channels_last=False
    )
    before = untrained(tower)
    share = BATCH // distributed.count()
    own = batch(slice(distributed.rank() * share, (distributed.rank() + 1) * share))
    gradients = AdversarialGradients(
        tower=judge.image_tower,
        embed=lambda images: judge.image_tower(judge.preprocess(images)),
        objective=objective(loss),
        attack_objective=objective(CLIMBED.get(loss, loss)),
        sampler=NegativeSamples(10.0, steps=3),
        original=lambda images: before.image_tower(before.preprocess(images)),
        threat=ThreatModel("l2", 0.5, SIZE),
        attack_steps=3,
        clean_weight=0.5,
        accumulate=parts,
        attack_negatives=negatives,  # type: ignore[arg-type]
    )
    images, value = gradients(7, own, judge.embed_texts(own.captions))
    named = judge.image_tower.named_parameters()
    return {"images": images, "loss": value, **{name: p.grad for name, p in named if p.grad is not None}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *cases = sys.argv[1:]
    for case in cases:
        tower, loss, parts = case.split("_")
        save_file(one_update(tower, loss, int(parts)), Path(folder) / f"{case}-rank{distributed.rank()}.safetensors")
