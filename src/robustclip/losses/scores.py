"""Losses by other models' scores of a picture: its class, aesthetics, the match with a prompt, or any function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.base import PairReader, TwoTower
from robustclip.referees.image_judges import Aesthetics, Classifier
from robustclip.runs.devices import autocast

Entropy = Literal["cross", "binary"]
PictureLoss = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, " b"]]
"""Pictures in [0,1] -> one loss each, differentiable."""


@final
class OfClass:
    """Classification loss (P,V,3,h,w) -> (P,V): cross-entropy, or mean binary cross-entropy over all classes (DOODL's
    paper has the latter, its code the former).
    """

    def __init__(
        self,
        classifier: Classifier,
        classes: Sequence[int],
        *,
        entropy: Entropy = "cross",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.classifier, self.classes, self.entropy, self.dtype = classifier, list(classes), entropy, dtype

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        with autocast(views.device, self.dtype):
            logits = self.classifier.logits(views.flatten(0, 1)).float()
        labels = torch.tensor(self.classes, device=views.device).repeat_interleave(views.shape[1])
        if self.entropy == "cross":
            losses = F.cross_entropy(logits, labels, reduction="none")
        else:
            targets = F.one_hot(labels, logits.shape[1]).to(logits)
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        return losses.unflatten(0, views.shape[:2])

    def __str__(self) -> str:
        return f"{self.entropy} entropy of {self.classifier.name}"


@final
class Scored:
    """Views (P,V,3,h,w) -> (P,V): distance of a head's score to `target` (DOODL's is 10), or for "up" and "down"
    the signed score. Each head reads embeddings of one CLIP; several are averaged by weight.

    Raises UsageError for a head of another width than its CLIP's embeddings.
    """

    def __init__(
        self,
        heads: Sequence[tuple[TwoTower, Aesthetics, float]],
        target: float | Literal["up", "down"],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for referee, head, _ in heads:
            if head.width != referee.width:
                raise UsageError(
                    f"the head {head.name} reads embeddings of {head.width} numbers, and those of {referee.card.name} "
                    f"have {referee.width}: give the CLIP it was trained on as --referee",
                    "other_width",
                    head=head.width,
                    referee=referee.width,
                )
        self.heads, self.target, self.dtype = list(heads), target, dtype

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        total = torch.zeros(views.shape[:2], device=views.device)
        for referee, head, weight in self.heads:
            with autocast(views.device, self.dtype):
                embeddings = referee.embed_views(views.flatten(0, 1))
            scores = head.head(F.normalize(embeddings.float(), dim=-1)).unflatten(0, views.shape[:2])
            if isinstance(self.target, str):
                loss = scores if self.target == "down" else -scores
            else:
                loss = (scores - self.target).abs()
            total = total + weight * loss
        return total / sum(weight for _, _, weight in self.heads)

    def __str__(self) -> str:
        return f"score {self.target}" if isinstance(self.target, str) else f"score to {self.target:g}"


@final
class OfFunction:
    """Loss by any function of pictures: (P,V,3,h,w) -> (P,V)."""

    def __init__(self, function: PictureLoss) -> None:
        self.function = function

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        losses = self.function(views.flatten(0, 1))
        if losses.shape != (views.shape[0] * views.shape[1],):
            raise UsageError(
                f"the loss {self} gave {tuple(losses.shape)} for {views.shape[0] * views.shape[1]} pictures: it must "
                "give (B,), one number per picture",
                "wrong_shape",
                shape=tuple(losses.shape),
            )
        return losses.unflatten(0, views.shape[:2])

    def __str__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def asymmetry(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean squared difference between a picture and its mirror image: an example of a loss function."""
    return (images - images.flip(-1)).square().mean((1, 2, 3))


@final
class Pairing:
    """Matching and captioning losses of a pair reader: views (P,V,3,h,w) -> (P,V), float32.

    The reader computes in `dtype` under autocast. Raises UsageError if both weights are 0, and for a captioning
    weight without a captioning loss.
    """

    def __init__(
        self,
        reader: PairReader,
        texts: Sequence[str],
        *,
        matching: float = 1.0,
        captioning: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not matching and not captioning:
            raise UsageError("matching and captioning are both 0: give one of them a weight")
        if captioning and not reader.can_caption:
            raise UsageError(
                f"{reader.card.name} has no captioning loss: leave it out (--captioning 0), or take weights of "
                "robustclip convert lavis-blip2"
            )
        self.reader, self.texts, self.dtype = reader, list(texts), dtype
        self.matching, self.captioning = matching, captioning

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        texts = [text for text in self.texts for _ in range(views.shape[1])]
        with autocast(views.device, self.dtype):
            losses = self.reader.pair_losses(
                views.flatten(0, 1), texts, matching=self.matching, captioning=self.captioning
            )
        return losses.float().unflatten(0, views.shape[:2])

    def __str__(self) -> str:
        parts = (("itm", self.matching), ("lm", self.captioning))
        return "+".join(name if weight == 1 else f"{weight:g}{name}" for name, weight in parts if weight)
