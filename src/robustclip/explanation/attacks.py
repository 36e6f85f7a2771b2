"""Attacks on explanations: untargeted, targeted and negation objectives, with noise of the same norm as control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.attacks.gradient import pgd
from robustclip.attacks.spec import AttackSpec, check_inside, perturbed, size_of
from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import cosines
from robustclip.runs.rng import each

Objective = Literal["negation", "untargeted", "targeted"]
OBJECTIVES: Final[tuple[str, ...]] = get_args(Objective)


def negate(text: str) -> str:
    """ "not a cat" for "a cat", as CLIPAG App. B writes it."""
    return f"not {text}"


def negation(own: Float[Tensor, " b"], other: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """CLIPAG App. B, Eq. 4: [1 - cos(x, text)] - [1 - cos(x, negated text)], which is to grow."""
    return (1 - own) - (1 - other)


def untargeted(own: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 - cos(x, text): away from the text."""
    return 1 - own


def targeted(other: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """cos(x, target): towards another text."""
    return other


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
    """Images within `spec`'s ball, at the size they have, at which the objective is greatest: PGD, the best step kept.

    `texts` are the images' own, `others` their negations or targets, all unit vectors (B,D). The random start is keyed
    by seed and id, so that no image depends on its batch. The paper gives Eq. 4 its 20 steps; norm, eps and step size
    are not legible there, and ours. Raises UsageError for an objective that lacks `others`, RunError if an image left
    the ball.
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"there is no objective {objective!r}; there are {', '.join(OBJECTIVES)}")
    if objective != "untargeted" and others is None:
        raise UsageError(f"the objective {objective!r} needs the texts to pull towards: give others=(B,D)")

    wanted = texts if others is None else torch.cat([texts, others])

    def loss(pixels: Tensor) -> Tensor:
        both = cosines(referee, pixels, wanted, dtype)
        own, other = both[:, : len(texts)].diagonal(), both[:, len(texts) :].diagonal()
        match objective:
            case "negation":
                return negation(own, other)
            case "untargeted":
                return untargeted(own)
            case "targeted":
                return targeted(other)

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
    """The attack's control: images moved by exactly its norm in a random direction, keyed by seed and id."""
    return perturbed(images, spec.threat(size_of(images)), each(seed, "control", ids=ids))
