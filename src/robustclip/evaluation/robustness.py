"""Accuracy under PGD, and under random noise of the same norm.

The attack is untargeted PGD on the cross-entropy of the referee's logits over all candidate texts, as in TeCoA and
RobustVLM, per sample. An image counts as right only if it is right untouched and after every restart. So an image that
is wrong untouched need not be attacked (as AutoAttack has it), and accuracy under attack is never above clean accuracy.

The control is a random perturbation of the same norm: where that costs as much accuracy as the attack does, the attack
shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks.spec import AttackSpec, random_perturbation, run_attack, size_of
from robustclip.data.pictures import Images
from robustclip.evaluation.ledger import Page
from robustclip.evaluation.zeroshot import SHOWN, Predictions, predictions
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches, cosines


def classify_under_attack(
    referee: TwoTower,
    images: Images,
    targets: Int[Tensor, " n"],
    classes: Float[Tensor, "c d"],
    spec: AttackSpec,
    *,
    clean: Predictions,
    batch_size: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    title: str = "",
    ids: Sequence[str] = (),
    page: Page | None = None,
) -> Predictions:
    """The worst answers over all restarts of PGD, where `clean` are those to the untouched images.

    Images whose right answer is not among the first five are left as they are. The random starts are keyed by the seed,
    the restart and the first image of a batch: they change with `batch_size`, and with nothing else of the call. With a
    `page`, batches whose images (by `ids`) are in it are not attacked again, and others are written down.
    """
    top, worst = clean.top.clone(), clean.ranks.clone()
    for restart in range(spec.restarts):
        standing = (worst < SHOWN).nonzero()[:, 0]
        for batch in batches(standing, batch_size, title and f"{title}, start {restart + 1} of {spec.restarts}"):

            def attacked(batch: Tensor = batch, restart: int = restart) -> Predictions:
                right = targets[batch].to(classes.device)

                def loss(pixels: Tensor) -> Tensor:
                    logits = referee.logit_scale * cosines(referee, pixels, classes, dtype)
                    return F.cross_entropy(logits, right, reduction="none")

                key = (seed, restart, int(batch[0]))
                moved = run_attack(referee, images[batch].to(classes.device), loss, spec, key=key)
                return answers_to(referee, moved, classes, targets[batch], dtype)

            answers = remembered(page, restart, [ids[int(index)] for index in batch] if page else [], attacked)
            worse = answers.ranks > worst[batch]
            worst[batch[worse]] = answers.ranks[worse]
            top[batch[worse]] = answers.top[worse]
    return Predictions(top, worst)


def remembered(page: Page | None, turn: int, ids: Sequence[str], attacked: Callable[[], Predictions]) -> Predictions:
    """What `page` holds of these images in that round; else what `attacked` finds, which is written there."""
    if page is None:
        return attacked()
    known = page.recall(turn, ids)
    if known is None:
        known = attacked()
        page.keep(turn, ids, known)
    return known


@torch.no_grad()
def answers_to(
    referee: TwoTower,
    images: Float[Tensor, "b 3 h w"],
    classes: Float[Tensor, "c d"],
    targets: Int[Tensor, " b"],
    dtype: torch.dtype = torch.float32,
) -> Predictions:
    """The first answers to images, and the ranks of the right ones, on the CPU."""
    return predictions(cosines(referee, images, classes, dtype).cpu(), targets)


@torch.no_grad()
def cosines_under_noise(
    referee: TwoTower,
    images: Images,
    texts: Float[Tensor, "t d"],
    spec: AttackSpec,
    *,
    batch_size: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> Float[Tensor, "n t"]:
    """Cosines of images moved in a random direction to the edge of the threat model: the attack's control."""
    found = []
    for batch in batches(torch.arange(len(images)), batch_size, title):
        here = images[batch]
        moved = random_perturbation(here, spec.threat(size_of(here)), seed=seed, indices=batch)
        found.append(cosines(referee, moved.to(texts.device), texts, dtype).cpu())
    return torch.cat(found)
