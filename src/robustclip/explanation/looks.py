"""Heat maps of one referee on clean, attacked and noisy images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.attacks.gradient import pgd
from robustclip.attacks.spec import AttackSpec, check_inside, perturbed, size_of
from robustclip.errors import UsageError
from robustclip.explanation.maps import (
    HeatMaps,
    Mapper,
    centre_shift,
    energy_in_box,
    pointing_hit,
    rank_correlation,
    top_iou,
)
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import cosines
from robustclip.runs.rng import each

Objective = Literal["negation", "untargeted", "targeted"]
OBJECTIVES: Final[tuple[str, ...]] = get_args(Objective)


def negate(text: str) -> str:
    """Negate a text as in CLIPAG App. B: "not a cat" for "a cat"."""
    return f"not {text}"


def attack(
    referee: TwoTower,
    images: Float[Tensor, "b 3 h w"],
    texts: Float[Tensor, "b d"],
    others: Float[Tensor, "b d"] | None = None,
    *,
    objective: Objective = "negation",
    spec: AttackSpec,
    ids: Sequence[str],
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b 3 h w"]:
    """Maximise the objective by PGD within `spec`'s ball, at the images' own size; keeps the best step.

    `texts` are the images' own, `others` their negations or targets, all unit vectors (B,D). The random start is keyed
    by seed and id, independent of the batch. 20 steps are the paper's for Eq. 4; norm, eps and step size are ours, as
    it does not give them. Raises UsageError if the objective needs `others`, RunError if an image left the ball.
    """
    if objective not in OBJECTIVES:
        message = f"there is no objective {objective!r}; there are {', '.join(OBJECTIVES)}"
        raise UsageError(message, "unknown_objective", given=objective)
    if objective != "untargeted" and others is None:
        raise UsageError(
            f"the objective {objective!r} needs target texts: give others=(B,D)", "no_targets", objective=objective
        )

    wanted = texts if others is None else torch.cat([texts, others])

    def loss(pixels: Tensor) -> Tensor:
        both = cosines(referee, pixels, wanted, dtype)
        own, other = both[:, : len(texts)].diagonal(), both[:, len(texts) :].diagonal()
        match objective:
            case "negation":  # CLIPAG App. B, Eq. 4
                return (1 - own) - (1 - other)
            case "untargeted":
                return 1 - own
            case "targeted":
                return other

    threat = spec.threat(size_of(images))
    moved = pgd(
        images,
        loss,
        threat,
        steps=spec.steps,
        step_size=spec.step_size,
        restarts=spec.restarts,
        module=referee,
        generator=each(seed, "explained attack", ids=ids),
    )
    check_inside(images, moved, threat)
    return moved


def noise(
    images: Float[Tensor, "b 3 h w"], spec: AttackSpec, *, ids: Sequence[str], seed: int
) -> Float[Tensor, "b 3 h w"]:
    """Control of the attack: images with random noise of exactly its norm, keyed by seed and id."""
    return perturbed(images, spec.threat(size_of(images)), each(seed, "control", ids=ids))


CLEAN, ATTACKED, NOISY = "clean", "attacked", "noisy"
POINTING, ENERGY = "pointing game", "energy in box"
CORRELATION, OVERLAP, SHIFT = "rank correlation", "overlap of top 20%", "centre shift"
SCORE = "cosine"


@dataclass(frozen=True)
class Look:
    """A batch of images (B,3,H,W) in [0,1] with their maps and the cosines with their texts."""

    images: Float[Tensor, "b 3 H W"]
    heat: HeatMaps
    scores: Float[Tensor, " b"]


Looks = dict[str, Look]
"""Looks at "clean" images and, with an attack, at "attacked" and "noisy" ones."""


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

    `texts` and `others` (the objective's negations or targets) are unit vectors; `among` are those of a softmax (see
    `Mapper`). Results do not depend on the rest of the batch.
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
    """Metrics of each version: {version: {name: (B,) float32}}, NaN for empty maps.

    The score; with boxes (top, left, bottom, right; half open) the pointing game, 0 or 1, and the map's energy in the
    box; for attacked and noisy images the similarity of their map to the clean one.
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
    """`values` with NaN where one of the maps is empty."""
    empty = torch.stack([heat.empty for heat in heats]).any(0)
    return values.float().masked_fill(empty, torch.nan)
