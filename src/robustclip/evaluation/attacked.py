"""Zero-shot accuracy under attack: PGD, APGD, Square and AutoAttack, and under random noise of the same norm.

Attacks are per sample, on the referee's logits over all candidate texts. PGD is untargeted, on their cross-entropy, as
in TeCoA and RobustVLM; APGD, Square and FAB are torchattacks'. An image counts as correct only if it is correct clean
and after every restart or part of an ensemble; misclassified images are not attacked again (as in AutoAttack).

Attacks other than PGD stop at an image as soon as its top-1 prediction is wrong, so only top-1 is reported for them: an
attack on the top 5 would move the correct label further down.

The control is a random perturbation of the same norm: if it costs as much accuracy as the attack, the attack shows
nothing.

A universal perturbation is given, not searched for: accuracy is that of the images with it, whatever it was clean. Its
control is the same perturbation with its values at random places.
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
from robustclip.attacks.universal import added
from robustclip.data.pictures import Images
from robustclip.evaluation.ledger import Page
from robustclip.evaluation.zeroshot import SHOWN, Predictions, predictions
from robustclip.referees.base import TwoTower
from robustclip.referees.defended import STATIC, attackers
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
    static: bool = False,
) -> Predictions:
    """The worst predictions over all restarts or parts of an attack; `clean` are those on the clean images.

    A defended or smoothed referee is attacked adaptively, through its defence; with `static` through its base alone
    (`referees.defended.attackers`).

    PGD attacks the images whose correct label is in the top 5; random starts are keyed by the seed, the restart and the
    first image of a batch. Other attacks run on images with a correct top-1, on float32 logits; their random numbers
    are keyed by the seed, the attack, and the id of the first image of a batch. Attacked images are classified in
    `dtype`. With a `page`, batches stored in it (by `ids`) are not attacked again, and new ones are stored.

    Raises UsageError if the attack needs more classes, or torchattacks is not installed; RunError if an image left the
    threat model or [0,1].
    """
    is_pgd = spec.kind == "pgd"
    todo = [] if is_pgd else parts(spec, len(classes))
    top, worst = clean.top.clone(), clean.ranks.clone()
    for turn in range(spec.restarts if is_pgd else 1):
        correct = (worst < (SHOWN if is_pgd else 1)).nonzero()[:, 0]
        shown = f"{title}, start {turn + 1} of {spec.restarts}" if title and is_pgd else title
        for batch in batches(correct, batch_size, shown):
            names = [ids[int(index)] for index in batch]

            def attacked(batch: Tensor = batch, names: Sequence[str] = names, turn: int = turn) -> Predictions:
                source = attackers(referee)[STATIC if static else ""]  # whose noise begins anew with each batch
                attack = _Attack(referee, source, classes, spec, dtype)
                if is_pgd:
                    return attack.pgd(images[batch], targets[batch], (seed, turn, int(batch[0])))
                before = Predictions(clean.top[batch], clean.ranks[batch])
                for place, part in enumerate(todo):
                    stream = generator(seed, f"{spec} of {names[0]}", place)
                    before = attack.part(part, images[batch], targets[batch], before, stream)
                return before

            predicted = cached(page, turn, names, attacked)
            worse = predicted.ranks > worst[batch]
            worst[batch[worse]] = predicted.ranks[worse]
            top[batch[worse]] = predicted.top[worse]
    return Predictions(top, worst)


@dataclass(frozen=True)
class _Attack:
    """An attack on a batch of images along the gradients of `source`, and the referee's predictions after it."""

    referee: TwoTower
    source: TwoTower
    classes: Float[Tensor, "c d"]
    spec: AttackSpec
    dtype: torch.dtype

    def pgd(self, images: Float[Tensor, "b 3 h w"], targets: Int[Tensor, " b"], key: tuple[int, ...]) -> Predictions:
        """After one restart of PGD."""
        right = targets.to(self.classes.device)

        def loss(pixels: Tensor) -> Tensor:
            return F.cross_entropy(self._logits(pixels, self.dtype), right, reduction="none")

        moved = run_attack(self.source, images.to(self.classes.device), loss, self.spec, key=key)
        return predict(self.referee, moved, self.classes, targets, self.dtype)

    def part(
        self,
        part: Part,
        images: Float[Tensor, "b 3 h w"],
        targets: Int[Tensor, " b"],
        before: Predictions,
        stream: torch.Generator,
    ) -> Predictions:
        """After another part of an ensemble, which attacks only images that are still correct."""
        correct = (before.ranks == 0).nonzero()[:, 0]
        if not len(correct):
            return before
        originals = images[correct].to(self.classes.device)
        threat = self.spec.threat(size_of(originals))
        moved = library_attack(
            originals,
            lambda pixels: self._logits(pixels, torch.float32),
            threat,
            labels=targets[correct].to(self.classes.device),
            attack=part.attack,
            steps=part.steps,
            targets=part.targets,
            module=self.source,
            generator=stream,
        )
        check_inside(originals, moved, threat)
        after = predict(self.referee, moved, self.classes, targets[correct], self.dtype)
        wrong = after.ranks > 0
        top, ranks = before.top.clone(), before.ranks.clone()
        top[correct[wrong]], ranks[correct[wrong]] = after.top[wrong], after.ranks[wrong]
        return Predictions(top, ranks)

    def _logits(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        return self.referee.logit_scale * cosines(self.source, pixels, self.classes, dtype)


def cached(page: Page | None, turn: int, ids: Sequence[str], attacked: Callable[[], Predictions]) -> Predictions:
    """The predictions of these images in that round from `page`; else those of `attacked`, which are stored there."""
    if page is None:
        return attacked()
    stored = page.recall(turn, ids)
    if stored is None:
        stored = attacked()
        page.keep(turn, ids, stored)
    return stored


@torch.no_grad()
def predict(
    referee: TwoTower,
    images: Float[Tensor, "b 3 h w"],
    classes: Float[Tensor, "c d"],
    targets: Int[Tensor, " b"],
    dtype: torch.dtype = torch.float32,
) -> Predictions:
    """Top predictions and ranks of the correct labels, on the CPU."""
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
    delta: Float[Tensor, "3 h w"] | None = None,
) -> Float[Tensor, "n t"]:
    """Cosines of images perturbed in a random direction to the boundary of the threat model: the attack's control. With
    `delta`, of images to each of which that is added."""
    rows = []
    for batch in batches(torch.arange(len(images)), batch_size, title):
        clean = images[batch]
        if delta is None:
            moved = random_perturbation(clean, spec.threat(size_of(clean)), seed=seed, indices=batch)
        else:
            moved = added(clean, delta)
        rows.append(cosines(referee, moved.to(texts.device), texts, dtype).cpu())
    return torch.cat(rows)
