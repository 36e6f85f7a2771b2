"""Referee interface: float images in [0,1] of any size and texts in, embeddings out."""

from __future__ import annotations

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import ftfy
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.data.images import check_range
from robustclip.errors import UsageError
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess

SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Referee(ABC, nn.Module):
    """Base class of referees: a card, and the input size of the image tower.

    Referees resize and normalise themselves; all interfaces take (B,3,H,W) float images in [0,1], so that eps has the
    same units everywhere.
    """

    card: Card
    preprocess: Preprocess

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the image tower's input, after resizing."""
        return self.preprocess.size

    @property
    def device(self) -> torch.device:
        """Device of the weights, on which images are expected."""
        return self.preprocess.mean.device


class TextTower(ABC, nn.Module):
    """Text encoder: always in eval mode, and frozen but for `robustification.texts`, which trains it."""

    width: int
    """Length D of the embeddings."""
    context: int | None = None
    """Maximal number of tokens, beyond which texts are truncated; None if unlimited or unknown."""
    is_packaged: bool = False
    """Whether its weights are those of an installed package, named by `source`; training makes them its own."""

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Number of tokens per text without truncation, including start and end tokens. Only with a `context`."""
        raise NotImplementedError(f"{type(self).__name__} does not count tokens")

    def source(self) -> dict[str, str] | None:
        """Name and digest of weights that are loaded by name instead of from the referee's folder; else None."""
        return None

    @abstractmethod
    def forward(self, texts: list[str]) -> Float[Tensor, "t d"]:
        """Embed texts, not normalised, on the device of the weights; an empty list gives (0,D)."""


@final
class TwoTower(Referee):
    """A CLIP: image tower and text tower with a shared embedding space.

    `image_tower` maps normalised (B,3,h,w) of `preprocess.size` to (B,D); `logit_scale` multiplies cosine similarities
    (100 in a trained CLIP) and `logit_bias` is added (SigLIP). Both embeddings are float32 unless the caller opens an
    autocast. Raises UsageError when the towers' widths differ.
    """

    def __init__(
        self,
        image_tower: nn.Module,
        text_tower: TextTower,
        preprocess: Preprocess,
        *,
        card: Card,
        logit_scale: float = 100.0,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower.eval().requires_grad_(False)
        self.preprocess = preprocess
        self.card = card
        self.logit_scale = float(logit_scale)
        self.logit_bias = None if logit_bias is None else float(logit_bias)
        self.width = text_tower.width
        self._refuse_different_widths()

    def train(self, mode: bool = True) -> TwoTower:
        """Set the image tower's mode; the text tower stays in eval mode."""
        super().train(mode)
        self.text_tower.eval()
        return self

    def embed_images(self, images: Float[Tensor, "b 3 H W"], normalize: bool = True) -> Float[Tensor, "b d"]:
        """Embed [0,1] images of any size, with gradients to the pixels; `normalize` gives unit length.

        Raises UsageError for images that are not (B,3,H,W) floats in [0,1] (1e-3 of slack for rounding).
        """
        check_images(images)
        embeddings = self.image_tower(self.preprocess(images))
        return unit(embeddings) if normalize else embeddings

    def embed_views(self, views: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d"]:
        """Embed augmented images without clamping or range check, so that gradients pass where noise or brightness
        leaves [0,1].
        """
        return self.image_tower(self.preprocess(views))

    def unnormalised(self) -> TwoTower:
        """The same towers (shared weights) without mean and std normalisation: images are only resized.

        CLIPDraw's code does so by default (a bug); for faithful recipes only.
        """
        config = self.preprocess.config() | {"mean": [0.0] * 3, "std": [1.0] * 3}
        return self.with_image_tower(self.image_tower, Preprocess.from_config(config).to(self.device)).eval()

    def with_image_tower(self, image_tower: nn.Module, preprocess: Preprocess, card: Card | None = None) -> TwoTower:
        """Another image tower and preprocessing with this text tower and logits (shared weights)."""
        logits: dict[str, Any] = {"logit_scale": self.logit_scale, "logit_bias": self.logit_bias}
        return TwoTower(image_tower, self.text_tower, preprocess, card=card or self.card, **logits)

    @torch.no_grad()
    def embed_texts(self, texts: list[str], normalize: bool = True) -> Float[Tensor, "t d"]:
        """Embed texts, without gradients; `normalize` gives unit length.

        Raises UsageError for a bare string, and for anything else than a list of texts.
        """
        if isinstance(texts, str):
            raise UsageError(f"embed_texts takes a list of texts, and got one text: write embed_texts([{texts!r:.80}])")
        embeddings = self.text_tower(check_texts(texts))
        return unit(embeddings) if normalize else embeddings

    @torch.no_grad()
    def _refuse_different_widths(self) -> None:
        training = self.image_tower.training
        probe = self.image_tower.eval()(torch.zeros(1, 3, *self.image_size, device=self.device))
        self.image_tower.train(training)
        if probe.shape != (1, self.width):
            raise UsageError(
                f"the image tower turns one image into {tuple(probe.shape)}, the text tower a text into "
                f"(1, {self.width}): towers of different width cannot be compared. Give the image tower a projection "
                f'to {self.width} ("timm_proj": "linear" with "embed_dim": {self.width}) or take the text tower it was '
                "trained with",
                "unequal_widths",
                image=tuple(probe.shape),
                text=(1, self.width),
            )


def unit(embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """L2-normalise embeddings, in float32 (float64 stays)."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list. Raises UsageError unless each is a text without lone surrogates."""
    listed = list(texts) if isinstance(texts, Iterable) else [texts]
    for text in listed:
        if not isinstance(text, str):
            message = f"a referee reads a list of texts, and got a {type(text).__name__}: give e.g. ['a cat']"
            raise UsageError(message, "wrong_type", type=type(text).__name__)
        if SURROGATE.search(text):
            raise UsageError(
                f"the text {text!r:.100} holds a lone surrogate, which is not UTF-8: remove it", "not_utf8", given=text
            )
    return listed


def check_images(images: Tensor) -> None:
    """Raise UsageError unless `images` are (B,3,H,W) floats in [0,1], with a description of what they look like."""
    if not isinstance(images, Tensor):
        raise UsageError(
            f"images are a {type(images).__name__}; a referee takes a tensor (B,3,H,W) of floats in [0,1]: give e.g. "
            "torch.as_tensor(images), or torch.stack(images) of a list of tensors",
            "wrong_type",
            type=type(images).__name__,
        )
    if images.ndim != 4 or images.shape[1] != 3:
        fix = "images.unsqueeze(0)" if images.ndim == 3 and images.shape[0] == 3 else "images of shape (B,3,H,W)"
        message = f"images have shape {tuple(images.shape)}; a referee takes (B,3,H,W): give {fix}"
        raise UsageError(message, "wrong_shape", shape=tuple(images.shape))
    if not images.is_floating_point():
        message = f"images are {images.dtype}; a referee takes floats in [0,1]: give images.float() / 255"
        raise UsageError(message, "wrong_type", given=images.dtype)
    if not torch.compiler.is_compiling() and images.numel():  # a compiled graph cannot branch on pixel values
        check_range(images)


def cleaned(text: str) -> str:
    """open_clip's text cleaning for transformers tokenizers (open_clip.tokenizer, clean="whitespace"): ftfy, HTML
    entities unescaped twice, white space collapsed."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def of_transformers(tokenizer: Any, texts: list[str], *, bare: bool = False) -> list[int]:
    """Token counts by a transformers tokenizer; `bare` excludes start and end tokens."""
    if not texts:  # the tokenizer refuses an empty list
        return []
    encoded = tokenizer(texts, add_special_tokens=not bare, truncation=False, verbose=False)
    return [len(ids) for ids in encoded["input_ids"]]


def of_open_clip(tokenizer: Any, texts: list[str]) -> list[int]:
    """Token counts by open_clip's CLIP tokenizer, or its wrapper of a transformers tokenizer."""
    if hasattr(tokenizer, "bpe"):
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    texts = [tokenizer.clean_fn(text) for text in texts]
    if tokenizer.tokenizer_mode == "clips":  # it adds start, end and class tokens
        return [count + 3 for count in of_transformers(tokenizer.tokenizer, texts, bare=True)]
    return of_transformers(tokenizer.tokenizer, texts)


FAMILIES: Final = ("blip2", "blip2-mini")
"""Card families of pair readers: full-size, and embedded."""


class PairReader(Referee):
    """Base class of models that score an image-text pair jointly. Augmented images may leave [0,1] unchecked, so that
    gradients pass. A list of texts has one text per image.
    """

    can_caption: bool
    """Whether it has a captioning loss."""

    @abstractmethod
    def matching_logits(self, images: Float[Tensor, "b 3 H W"], texts: list[str]) -> Float[Tensor, "b 2"]:
        """Logits of (no match, match), float32, differentiable with respect to the pixels."""

    @abstractmethod
    def pair_losses(
        self, images: Float[Tensor, "b 3 H W"], texts: list[str], *, matching: float = 1.0, captioning: float = 1.0
    ) -> Float[Tensor, " b"]:
        """The weighted sum of the matching loss (cross-entropy to "do") and the captioning loss, for each pair.

        Raises UsageError for a captioning loss where there is none.
        """

    @abstractmethod
    def contrastive(self, images: Float[Tensor, "b 3 H W"], texts: list[str]) -> Float[Tensor, "b t"]:
        """Similarities of all images with all texts in [-1, 1], from separate embeddings."""

    @abstractmethod
    def caption(self, images: Float[Tensor, "b 3 H W"]) -> list[str]:
        """Generate a caption per image. Raises UsageError if the model cannot."""

    def check_texts(self, texts: list[str]) -> None:
        """Warn once about texts beyond the context length. The default accepts all."""


def not_a_clip(folder: Path) -> UsageError:
    """Error message for a pair reader's folder where a CLIP is required."""
    return UsageError(
        f"{folder} holds a BLIP-2, which reads image and text together, and embeds neither for a CLIP's place: it goes "
        f'where pairs are read, as in robustclip synthesize referee-can-play "a red fish" --referee {folder}',
        "not_a_clip",
        folder=str(folder),
    )


Box = tuple[float, float, float, float]
"""Left, top, right, bottom in shares of the picture."""


class Detection(NamedTuple):
    """A detected object: label, score in [0,1], and box."""

    label: str
    score: float
    box: Box
