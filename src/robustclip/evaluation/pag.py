"""PAG score: attack images towards another caption, and measure how often an independent judge predicts that caption.

PAG stands for perceptually aligned gradients (Ganz et al., CLIPAG, section 3). Real images are perturbed by targeted
PGD of fixed eps and steps on a guide's cosine with the name of another image, and a judge, an independent tower,
classifies them among 10 names. The score is the share of images for which the judge's top-1 is the target: the
perturbations of an ordinary guide do not transfer to the judge, those of a guide with aligned gradients show the
target. Controls are the judge's rates on the clean images and on images with noise of the same norm. Protocol and sizes
are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.attacks.gradient import pgd
from robustclip.attacks.spec import AttackSpec, check_inside, size_of
from robustclip.errors import RunError, UsageError
from robustclip.evaluation.zeroshot import ranks
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import cosines
from robustclip.runs.rng import each

PAG = "PAG score"
NAMES = 10  # candidates of the judge: the target, the image's own name, and 8 others


@dataclass(frozen=True)
class Pairs:
    """Targets and candidates: `choices` (N, K) are K different indices into `names` for each image.

    Column 0 is the target, column 1 the image's own name, the rest are others.
    """

    names: list[str]
    choices: Int[Tensor, "n k"]

    @property
    def targets(self) -> Int[Tensor, " n"]:
        """Each image's target, as an index into `names`."""
        return self.choices[:, 0]

    def metric(self, judge: str) -> str:
        """The score's name in reports and on cards, e.g. "PAG score (judge emoji-judge, 10 names)"."""
        return f"{PAG} (judge {judge}, {self.choices.shape[1]} names)"


@dataclass(frozen=True)
class Choices:
    """A judge's predictions: its top-1 (an index into the pairs' names), and the target's rank (0: first)."""

    first: Int[Tensor, " n"]
    ranks: Int[Tensor, " n"]


def draw_pairs(truths: Sequence[str], ids: Sequence[str], *, seed: int) -> Pairs:
    """For each image a target and other candidates, drawn from the names of all images, keyed by (seed, image id).

    `truths` are the images' own names. K is 10, or the number of different names if smaller. Raises UsageError if all
    images have the same name.
    """
    names = list(dict.fromkeys(truths))
    if len(names) < 2:
        message = f"the PAG score needs images of at least 2 different names, and all these are {names}"
        raise UsageError(message, "one_name", names=names)
    place = {name: index for index, name in enumerate(names)}
    rows = []
    for truth, stream in zip(truths, each(seed, "PAG pair", ids=ids), strict=True):
        own = place[truth]
        drawn = torch.randperm(len(names) - 1, generator=stream)[: NAMES - 1]
        others = drawn + (drawn >= own)
        rows.append(torch.cat([others[:1], torch.tensor([own]), others[1:]]))
    return Pairs(names, torch.stack(rows))


def pull(
    guide: TwoTower,
    images: Float[Tensor, "b 3 h w"],
    texts: Float[Tensor, "b d"],
    spec: AttackSpec,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b 3 h w"]:
    """Targeted PGD: maximise the cosine with the guide's unit vectors of `texts` within `spec`'s ball.

    Starts at the image itself, so the result is deterministic and independent of the batch; the best step is kept.
    Raises RunError if an image left the ball or [0,1].
    """
    threat = spec.threat(size_of(images))

    def similarity(pixels: Tensor) -> Tensor:
        return cosines(guide, pixels, texts, dtype).diagonal()

    moved = pgd(
        images, similarity, threat, steps=spec.steps, step_size=spec.step_size, random_start=False, module=guide
    )
    check_inside(images, moved, threat)
    return moved


@torch.no_grad()
def choose(
    judge: TwoTower,
    images: Float[Tensor, "b 3 h w"],
    texts: Float[Tensor, "t d"],
    choices: Int[Tensor, "b k"],
    dtype: torch.dtype = torch.float32,
) -> Choices:
    """The judge's zero-shot prediction for each image among the names in its row of `choices`; `texts` are all names.

    Ties count against the target. Raises RunError for cosines that are not finite.
    """
    scores = cosines(judge, images, texts, dtype).cpu().gather(1, choices)
    if not scores.isfinite().all():
        message = f"the cosines of the judge {judge.card.name} are not finite for some images"
        raise RunError(message, "not_finite", judge=judge.card.name)
    place = ranks(scores, torch.zeros(len(scores), dtype=torch.long))
    last = scores.shape[1] - 1 - scores.flip(1).argmax(1)  # the last of ties, since the target is in column 0
    return Choices(choices.gather(1, last[:, None])[:, 0], place)


def read_spec(text: str) -> AttackSpec:
    """A perturbation as `AttackSpec.parse` reads it. Raises UsageError for one with restarts, or that is not PGD."""
    spec = AttackSpec.parse(text)
    spec.check_pgd("the PAG score")
    if spec.restarts > 1:
        raise UsageError(
            f"the PAG score starts at the image itself, so the {spec.restarts} restarts of {text!r} are identical: "
            f"write {spec.norm}:{spec.eps:g}@{spec.steps}",
            "restarts_identical",
            restarts=spec.restarts,
        )
    return spec


def minus(metric: str, against: str) -> str:
    """A claim's name for a difference: "PAG score minus emoji-vanilla-long's (judge emoji-judge, 10 names)"."""
    return metric.replace(PAG, f"{PAG} minus {against}'s", 1)
