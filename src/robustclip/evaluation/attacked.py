"""Zero-shot accuracy under attack: PGD, APGD, Square and AutoAttack, and under random noise of the same norm.

All attacks are per sample on the referee's logits over all candidate texts, as on a classifier's. PGD is untargeted, on
their cross-entropy, as in TeCoA and RobustVLM; APGD, Square and FAB are torchattacks'. An image counts as right only
if it is right untouched and after every restart or part of an ensemble, so one that is wrong already is not attacked
again (as in AutoAttack), and accuracy under attack is never above clean accuracy.

Attacks other than PGD are after the first answer: they stop at an image as soon as that is wrong. So only top-1 is told
of them; the right answer may well be second, where an attack on the first five would have driven it farther.

The control is a random perturbation of the same norm: where that costs as much accuracy as the attack does, the attack
shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks.library import Part, library_attack, parts
from robustclip.attacks.spec import AttackSpec, check_inside, random_perturbation, run_attack, size_of
from robustclip.data.pictures import Images
from robustclip.evaluation.ledger import Page
from robustclip.evaluation.zeroshot import SHOWN, Predictions, predictions
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches, cosines
from robustclip.runs.rng import generator


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
    ids: Sequence[str],
    dtype: torch.dtype = torch.float32,
    title: str = "",
    page: Page | None = None,
) -> Predictions:
    """The worst answers over all restarts or parts of an attack, where `clean` are those to the untouched images.

    PGD attacks the images whose right answer is among the first five; its random starts are keyed by the seed, the
    restart and the first image of a batch. Other attacks are run where the first answer is right; they see float32
    logits, and random numbers are keyed by the seed, the attack, and the id of the first image of a batch. What is
    found is answered in `dtype`. With a `page`, batches whose images (by `ids`) are in it are not attacked again, and
    others are written down.

    Raises UsageError where there are too few classes for the attack, or torchattacks is not installed; RunError if an
    image left the threat model or [0,1].
    """
    is_pgd = spec.kind == "pgd"
    attack = _Attack(referee, classes, spec, dtype)
    todo = [] if is_pgd else parts(spec, len(classes))
    top, worst = clean.top.clone(), clean.ranks.clone()
    for turn in range(spec.restarts if is_pgd else 1):
        standing = (worst < (SHOWN if is_pgd else 1)).nonzero()[:, 0]
        shown = f"{title}, start {turn + 1} of {spec.restarts}" if title and is_pgd else title
        for batch in batches(standing, batch_size, shown):
            names = [ids[int(index)] for index in batch]

            def attacked(batch: Tensor = batch, names: Sequence[str] = names, turn: int = turn) -> Predictions:
                if is_pgd:
                    return attack.pgd(images[batch], targets[batch], (seed, turn, int(batch[0])))
                found = Predictions(clean.top[batch], clean.ranks[batch])
                for place, part in enumerate(todo):
                    stream = generator(seed, f"{spec} of {names[0]}", place)
                    found = attack.part(part, images[batch], targets[batch], found, stream)
                return found

            answers = remembered(page, turn, names, attacked)
            worse = answers.ranks > worst[batch]
            worst[batch[worse]] = answers.ranks[worse]
            top[batch[worse]] = answers.top[worse]
    return Predictions(top, worst)


@dataclass(frozen=True)
class _Attack:
    """An attack on a batch of images, and the answers after it."""

    referee: TwoTower
    classes: Float[Tensor, "c d"]
    spec: AttackSpec
    dtype: torch.dtype

    def pgd(self, images: Float[Tensor, "b 3 h w"], targets: Int[Tensor, " b"], key: tuple[int, ...]) -> Predictions:
        """After one restart of PGD."""
        right = targets.to(self.classes.device)

        def loss(pixels: Tensor) -> Tensor:
            return F.cross_entropy(self._logits(pixels, self.dtype), right, reduction="none")

        moved = run_attack(self.referee, images.to(self.classes.device), loss, self.spec, key=key)
        return answers_to(self.referee, moved, self.classes, targets, self.dtype)

    def part(
        self,
        part: Part,
        images: Float[Tensor, "b 3 h w"],
        targets: Int[Tensor, " b"],
        found: Predictions,
        stream: torch.Generator,
    ) -> Predictions:
        """After one part more of an ensemble: what fell before stays as it fell."""
        standing = (found.ranks == 0).nonzero()[:, 0]
        if not len(standing):
            return found
        given = images[standing].to(self.classes.device)
        threat = self.spec.threat(size_of(given))
        moved = library_attack(
            given,
            lambda pixels: self._logits(pixels, torch.float32),
            threat,
            labels=targets[standing].to(self.classes.device),
            attack=part.attack,
            steps=part.steps,
            targets=part.targets,
            module=self.referee,
            generator=stream,
        )
        check_inside(given, moved, threat)
        answers = answers_to(self.referee, moved, self.classes, targets[standing], self.dtype)
        fallen = answers.ranks > 0
        top, ranks = found.top.clone(), found.ranks.clone()
        top[standing[fallen]], ranks[standing[fallen]] = answers.top[fallen], answers.ranks[fallen]
        return Predictions(top, ranks)

    def _logits(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        return self.referee.logit_scale * cosines(self.referee, pixels, self.classes, dtype)


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
