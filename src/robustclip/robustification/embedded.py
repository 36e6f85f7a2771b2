"""Parts shared by the recipes of the embedded world: towers, objectives, and the monitoring batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from robustclip.data.emoji import SIZES
from robustclip.data.emoji_batches import EmojiBatches
from robustclip.data.samples import Batch
from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.openclip import new_referee
from robustclip.referees.sentence import MINILM, SentenceEncoder
from robustclip.robustification.losses import (
    Objective,
    agft,
    anchored,
    clip,
    divergence,
    embed_captions,
    fare,
    siglip,
    tecoa,
    text_bank,
    trades,
)
from robustclip.robustification.state import inference
from robustclip.runs.rng import seeded

ObjectiveName = Literal["text-bank", "clip", "siglip", "tecoa", "agft", "fare", "trades"]
AttackName = Literal["same", "text-bank", "clip", "siglip", "tecoa", "agft", "fare", "divergence"]
"""Objective that the attack maximises: "same" is that of the update; for TRADES, its divergence."""

CLASS_TEMPLATE = "an emoji of a {}"
"""TeCoA's class texts here, after RobustVLM's "This is a photo of a {}"."""

LOGIT_SCALE = 30.0
"""exp(logit_scale) of the embedded referees, frozen (ours): the sentence encoder gives distinct nouns cosines of 0.2 to
0.5, which 30 separates; with CLIP's 100 a few misclassified images would dominate the gradient."""


VITS = {"vit_mini_patch8": {"layers": 4, "width": 128, "head_width": 64, "patch_size": 8}}
"""A small open_clip ViT (0.9 M weights) with CLIP's CLS pooling; trains in half an hour on two CPU cores
(docs/towers.md)."""


def fresh_referee(name: str, tower: str, *, image_size: int = 64, seed: int = 0) -> TwoTower:
    """A referee with a random tower that ends in the embedding (384-d), and the frozen sentence encoder.

    `tower` is a key of `VITS`, or a timm model, whose classifier then gives the embedding. Plain open_clip reads the
    config. The random weights are a function of `seed`.
    """
    of_timm = {
        "timm_model_name": tower,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "",  # the classifier is the projection
    }
    model_cfg = {
        "embed_dim": 384,
        "vision_cfg": {**VITS.get(tower, of_timm), "image_size": image_size},
        "text_cfg": {
            "hf_model_name": MINILM,
            "hf_tokenizer_name": MINILM,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": None,
            "hf_model_pretrained": False,
            "context_length": 77,
        },
    }
    with seeded(seed):  # module constructors draw from torch's global generator
        preprocess = {"size": image_size, "interpolation": "bicubic", "resize_mode": "squash"}
        return new_referee(model_cfg, preprocess, SentenceEncoder(), LOGIT_SCALE, name)


def emoji_objectives(
    name: ObjectiveName,
    referee: TwoTower,
    data: EmojiBatches,
    *,
    attack: AttackName = "same",
    beta: float = 6.0,
    temperature: float = 2.5,
    anchor: float = 0.0,
) -> tuple[Objective, Objective]:
    """Objectives of the update (minimised) and of the attack (maximised), by name.

    `beta` weighs TRADES' divergence, `temperature` softens AGFT's targets, and `anchor`, if not 0, weighs AdvFLYP's
    regularisers of features and logits, in the update only.
    """
    update = emoji_objective(name, referee, data, beta=beta, temperature=temperature)
    if attack == "divergence" or (attack == "same" and name == "trades"):
        attack_objective = divergence(referee.logit_scale, _names(referee, data)[0])
    else:
        attack_objective = (
            update if attack == "same" else emoji_objective(attack, referee, data, temperature=temperature)
        )
    if anchor:
        bank = None if update.reads_texts else _names(referee, data)[0]
        update = anchored(update, features=anchor, logits=anchor, scale=referee.logit_scale, bank=bank)
    return update, attack_objective


def emoji_objective(
    name: ObjectiveName, referee: TwoTower, data: EmojiBatches, *, beta: float = 6.0, temperature: float = 2.5
) -> Objective:
    """The loss by name. Its text bank holds the names of the concepts in `data` only, so held-out concepts are not
    negatives."""
    scale = referee.logit_scale
    if name == "clip":
        return clip(scale)
    if name == "siglip":
        return siglip(scale, bias=-10.0)  # SigLIP §3.2: bias -10 starts near "nothing matches"
    if name == "fare":
        return fare()
    if name == "tecoa":
        return tecoa(scale, *_names(referee, data, CLASS_TEMPLATE))
    bank, concepts = _names(referee, data)
    if name == "agft":
        return agft(scale, bank, temperature)
    named = text_bank(scale, bank, concepts)
    return trades(named, scale, bank, beta) if name == "trades" else named


def _names(referee: TwoTower, data: EmojiBatches, template: str = "{}") -> tuple[Tensor, Tensor]:
    """Embeddings (C,D) of the names of the concepts in `data`, and the concepts (C,)."""
    concepts = data.samples.labels.unique()
    bank = embed_captions(referee, [template.format(data.samples.label_names[one]) for one in concepts.tolist()])
    return bank, concepts.to(bank.device)


def refuse_sizes(referee: TwoTower, sizes: Sequence[int], dataset: str) -> None:
    """Raise UsageError for a tower of one size, as a ViT, if batches have others (`sizes`) or the probe, which has the
    data set's."""
    for side in sorted({*sizes, *([SIZES[dataset]] if sizes else [])}):
        try:
            with inference(referee.image_tower):
                referee.image_tower(torch.zeros(2, 3, side, side, device=referee.device))
        except (RuntimeError, AssertionError) as error:  # open_clip's and timm's
            raise UsageError(
                f"--sizes are for towers of any size, and {referee.card.name} cannot embed {side}x{side} pixels: leave "
                "--sizes out, and images are resized to the tower's own size",
                "other_size",
                size=side,
            ) from error


def emoji_probe(data: EmojiBatches, size: int = 128) -> Batch:
    """Probe batch for monitoring: training drawings of distinct concepts with another augmentation."""
    pool = EmojiBatches(data.split, batch_size=2 * size, seed=data.seed + 1, dataset=data.dataset).batch(0)
    first_rows = {concept: row for row, concept in reversed(list(enumerate(pool.positives.tolist())))}
    rows = sorted(first_rows.values())[:size]
    names = data.samples.label_names
    captions = [names[concept] for concept in pool.positives[rows].tolist()]
    return Batch(pool.images[rows], captions, pool.positives[rows], [pool.ids[row] for row in rows])
