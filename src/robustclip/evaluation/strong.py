"""Accuracy under classifier attacks: APGD, Square and AutoAttack.

They are given the referee's logits over all candidate texts, as those of a classifier. An image counts as right only if
it is right untouched and after every part of the ensemble; each part is run only on images that are still standing.
These attacks are after the first answer: they stop at an image as soon as that is wrong. So only top-1 is told; the
right answer may well be second, where an attack on the first five would have driven it farther.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.attacks.library import Part, library_attack, parts
from robustclip.attacks.spec import AttackSpec, check_inside, size_of
from robustclip.data.pictures import Images
from robustclip.evaluation.ledger import Page
from robustclip.evaluation.robustness import answers_to, remembered
from robustclip.evaluation.zeroshot import Predictions
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches, cosines
from robustclip.runs.rng import generator


def classify_under_strong_attack(
    referee: TwoTower,
    images: Images,
    targets: Int[Tensor, " n"],
    classes: Float[Tensor, "c d"],
    spec: AttackSpec,
    *,
    clean: Predictions,
    batch_size: int,
    seed: int,
    ids: Sequence[str],
    dtype: torch.dtype = torch.float32,
    title: str = "",
    page: Page | None = None,
) -> Predictions:
    """The worst answers over all parts of an attack that is not PGD, where `clean` are those to the untouched images.

    Images whose first answer is wrong are left as they are. The attack sees float32 logits; what it found is answered
    in `dtype`. Random numbers are keyed by the seed, the attack, and the id of the first image of a batch. With a
    `page`, batches that are in it are not attacked again, and others are written down.

    Raises UsageError where there are too few classes for the attack, or torchattacks is not installed; RunError if an
    image left the threat model or [0,1].
    """
    todo = parts(spec, len(classes))
    top, worst = clean.top.clone(), clean.ranks.clone()
    for batch in batches((worst == 0).nonzero()[:, 0], batch_size, title):
        names = [ids[int(index)] for index in batch]

        def attacked(batch: Tensor = batch, names: Sequence[str] = names) -> Predictions:
            found = Predictions(clean.top[batch], clean.ranks[batch])
            for place, part in enumerate(todo):
                stream = generator(seed, f"{spec} of {names[0]}", place)
                found = _after(part, referee, images[batch], targets[batch], classes, spec, found, stream, dtype)
            return found

        answers = remembered(page, 0, names, attacked)
        top[batch], worst[batch] = answers.top, answers.ranks
    return Predictions(top, worst)


def _after(
    part: Part,
    referee: TwoTower,
    images: Float[Tensor, "b 3 h w"],
    targets: Int[Tensor, " b"],
    classes: Float[Tensor, "c d"],
    spec: AttackSpec,
    found: Predictions,
    stream: torch.Generator,
    dtype: torch.dtype,
) -> Predictions:
    """The answers after one part more: what fell before stays as it fell."""
    standing = (found.ranks == 0).nonzero()[:, 0]
    if not len(standing):
        return found
    given = images[standing].to(classes.device)
    threat = spec.threat(size_of(given))

    def logits(pixels: Tensor) -> Tensor:
        return referee.logit_scale * cosines(referee, pixels, classes, torch.float32)

    moved = library_attack(
        given,
        logits,
        threat,
        labels=targets[standing].to(classes.device),
        attack=part.attack,
        steps=part.steps,
        targets=part.targets,
        module=referee,
        generator=stream,
    )
    check_inside(given, moved, threat)
    answers = answers_to(referee, moved, classes, targets[standing], dtype)
    fallen = answers.ranks > 0
    top, ranks = found.top.clone(), found.ranks.clone()
    top[standing[fallen]], ranks[standing[fallen]] = answers.top[fallen], answers.ranks[fallen]
    return Predictions(top, ranks)
