"""Pair readers: models that score an image and a text jointly."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Final

from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.base import Referee

FAMILIES: Final = ("blip2", "blip2-mini")
"""What the cards of pair readers say: at the published size, and of the embedded world."""


class PairReader(Referee):
    """A judge of pairs. Images are on the scale of [0,1]; augmented ones may leave it, which is neither checked nor
    undone, so that gradients pass. A list of texts has one text an image."""

    can_caption: bool
    """Whether it has a captioning loss."""

    @abstractmethod
    def matching_logits(self, images: Float[Tensor, "b 3 H W"], texts: list[str]) -> Float[Tensor, "b 2"]:
        """Logits of "do not belong together" and "do", float32, with gradients to the pixels."""

    @abstractmethod
    def pair_losses(
        self, images: Float[Tensor, "b 3 H W"], texts: list[str], *, matching: float = 1.0, captioning: float = 1.0
    ) -> Float[Tensor, " b"]:
        """The weighted sum of the matching loss (cross-entropy to "do") and the captioning loss, for each pair.

        Raises UsageError for a captioning loss where there is none.
        """

    @abstractmethod
    def contrastive(self, images: Float[Tensor, "b 3 H W"], texts: list[str]) -> Float[Tensor, "b t"]:
        """Similarities of all images with all texts, -1 to 1: of their embeddings, which have not seen each other."""

    @abstractmethod
    def caption(self, images: Float[Tensor, "b 3 H W"]) -> list[str]:
        """What it says of each image. Raises UsageError where it can't."""

    def check_texts(self, texts: list[str]) -> None:
        """Say once which texts are longer than what is read of them. The default reads all of any."""


def not_a_clip(folder: Path) -> UsageError:
    """What to say where a CLIP is asked for and a pair reader's folder came."""
    return UsageError(
        f"{folder} holds a BLIP-2, which reads image and text together, and embeds neither for a CLIP's place: it goes "
        f'where pairs are read, as in robustclip synthesize referee-can-play "a red fish" --referee {folder}'
    )
