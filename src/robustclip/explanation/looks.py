"""Heat maps of one referee on clean, attacked and noisy images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.attacks.spec import AttackSpec
from robustclip.explanation.attacks import Objective, attack, noise
from robustclip.explanation.maps import HeatMaps, Mapper
from robustclip.explanation.measures import centre_shift, energy_in_box, pointing_hit, rank_correlation, top_iou

CLEAN, ATTACKED, NOISY = "clean", "attacked", "noisy"
POINTING, ENERGY = "pointing game", "energy in box"
CORRELATION, OVERLAP, SHIFT = "rank correlation", "overlap of top 20%", "centre shift"
SCORE = "cosine"


@dataclass(frozen=True)
class Look:
    """A batch of images, (B,3,H,W) in [0,1], with their maps and the cosines of their texts."""

    images: Float[Tensor, "b 3 H W"]
    heat: HeatMaps
    scores: Float[Tensor, " b"]


Looks = dict[str, Look]
"""The look at untouched images ("clean"), and where there is an attack those at "attacked" and "noisy" ones."""


def look(
    mapper: Mapper,
    images: Float[Tensor, "b 3 H W"],
    texts: Float[Tensor, "b d"],
    others: Float[Tensor, "b d"] | None,
    *,
    ids: Sequence[str],
    among: Float[Tensor, "t d"] | None = None,
    spec: AttackSpec | None,
    objective: Objective = "negation",
    seed: int = 0,
) -> Looks:
    """Heat maps of each image for its text: clean, attacked (on that referee), and with noise of the same norm.

    `texts` and `others` (what the objective pulls towards: negations, or targets) are unit vectors; `among` are those
    of a softmax (see `Mapper`). The attack's
    control is noise of exactly the same norm. Nothing depends on who else is in the batch.
    """
    versions = {CLEAN: images}
    if spec is not None:
        where = mapper.referee.device
        versions[ATTACKED] = attack(
            mapper.referee,
            images.to(where),
            texts,
            others,
            objective=objective,
            spec=spec,
            ids=ids,
            seed=seed,
            dtype=mapper.dtype,
        ).to(images.device)
        versions[NOISY] = noise(images, spec, ids=ids, seed=seed)
    return {
        name: Look(version, mapper(version, texts, ids, among), mapper.scores(version, texts))
        for name, version in versions.items()
    }


def numbers(looks: Looks, boxes: Int[Tensor, "b 4"] | None = None) -> dict[str, dict[str, Float[Tensor, " b"]]]:
    """What can be counted of each version: {version: {name: (B,) float32}}; NaN where a map shows nothing.

    The score; with boxes (top, left, bottom, right; half open) whether the map's peak lies inside, 0 or 1, and which
    share of the map does; and for moved images how alike their map is to the untouched one's.
    """
    found: dict[str, dict[str, Tensor]] = {}
    clean = looks[CLEAN].heat
    for name, seen in looks.items():
        here = found.setdefault(name, {SCORE: seen.scores})
        if boxes is not None:
            here[POINTING] = pointing_hit(seen.heat.maps, boxes).float()
            here[ENERGY] = _without(energy_in_box(seen.heat.maps, boxes), seen.heat)
        if name != CLEAN:
            for metric, measure in (
                (CORRELATION, rank_correlation),
                (OVERLAP, top_iou),
                (SHIFT, centre_shift),
            ):
                here[metric] = _without(measure(clean.maps, seen.heat.maps), clean, seen.heat)
    return found


def _without(values: Float[Tensor, " b"], *heats: HeatMaps) -> Float[Tensor, " b"]:
    """NaN where one of the maps is empty."""
    empty = torch.stack([heat.empty for heat in heats]).any(0)
    return values.float().masked_fill(empty, torch.nan)
