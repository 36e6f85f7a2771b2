"""Retrieval: recall@k from images to captions, and from captions to images.

Captions are taken by their text, each once: where two images share a caption, both are right answers to it, and the
caption is a right answer to both. A query counts at k if any of its right answers is among the first k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustclip.attacks.spec import AttackSpec
from robustclip.errors import UsageError
from robustclip.evaluation.robustness import strike
from robustclip.evaluation.similarity import Images, batches, cosines
from robustclip.referees.base import TwoTower

DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Gallery:
    """The captions of a set, each once, and which of them belong to which image."""

    captions: list[str]
    matches: Bool[Tensor, "n t"]

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]]) -> Gallery:
        """From the list of captions of each image. Raises UsageError naming an image that has none."""
        place: dict[str, int] = {}
        for index, own in enumerate(captions):
            if not own:
                raise UsageError(f"image {index} has no caption: retrieval needs one for each image")
            for caption in own:
                place.setdefault(caption, len(place))
        matches = torch.zeros(len(captions), len(place), dtype=torch.bool)
        for index, own in enumerate(captions):
            matches[index, [place[caption] for caption in own]] = True
        return cls(list(place), matches)


@dataclass(frozen=True)
class Recall:
    """The place (0: first) of the best right answer, for each image among captions and each caption among images."""

    image_to_text: Int[Tensor, " n"]
    text_to_image: Int[Tensor, " t"]


def recall(scores: Float[Tensor, "n t"], matches: Bool[Tensor, "n t"]) -> Recall:
    """Ranks both ways from one table of similarities, images as rows."""
    return Recall(best_ranks(scores, matches), best_ranks(scores.T, matches.T))


def best_ranks(scores: Float[Tensor, "q a"], matches: Bool[Tensor, "q a"]) -> Int[Tensor, " q"]:
    """How many wrong answers score at least as high as the best right one; ties and NaN count against the referee."""
    best = scores.masked_fill(~matches, -torch.inf).amax(1, keepdim=True)
    return (~(scores < best) & ~matches).sum(1)


def retrieve_under_attack(
    referee: TwoTower,
    images: Images,
    gallery: Gallery,
    texts: Float[Tensor, "t d"],
    spec: AttackSpec,
    *,
    batch_size: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> Recall:
    """Recall where each image is moved away from its own captions: PGD on -log of their share of the softmax.

    Captions are left as they are; from captions to images, all images of the gallery are moved ones. Ranks are the
    worst over the restarts.
    """
    worst: Recall | None = None
    for restart in range(spec.restarts):
        rows = []
        every = torch.arange(len(images))
        for batch in batches(every, batch_size, title and f"{title}, start {restart + 1} of {spec.restarts}"):
            own = gallery.matches[batch].to(texts.device)

            def loss(pixels: Tensor, own: Tensor = own) -> Tensor:
                logits = referee.logit_scale * cosines(referee, pixels, texts, dtype)
                return logits.logsumexp(1) - logits.masked_fill(~own, -torch.inf).logsumexp(1)

            moved = strike(referee, images[batch].to(texts.device), loss, spec, key=(seed, restart, int(batch[0])))
            with torch.no_grad():
                rows.append(cosines(referee, moved, texts, dtype).cpu())
        found = recall(torch.cat(rows), gallery.matches)
        worst = found if worst is None else _worst(worst, found)
    assert worst is not None  # an AttackSpec has at least one restart
    return worst


def _worst(first: Recall, second: Recall) -> Recall:
    return Recall(
        torch.maximum(first.image_to_text, second.image_to_text),
        torch.maximum(first.text_to_image, second.text_to_image),
    )
