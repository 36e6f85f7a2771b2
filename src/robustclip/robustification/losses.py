"""Training and attack objectives: CLIP, SigLIP, text bank, TeCoA, AGFT, FARE, TRADES and AdvFLYP's regularisers.

    clip          CLIPAG Eq. 3 "in practice": the batch-contrastive loss            Ganz & Elad; Radford et al. 2021
    text_bank     softmax over a finite set of texts                                ours
    tecoa         softmax over the texts of all classes                             Mao et al. 2023
    agft          cross-entropy to the original's softened predictions on the clean image      YuboCui/AGFT
    siglip        pairwise sigmoid                                                  Zhai et al. 2023
    fare          squared distance to the original's embedding of the clean image   Schlarmann et al. 2024
    divergence    KL from the predictions on the clean image                        Zhang et al. 2019, the inner problem
    trades        clean loss + beta * divergence                                    Zhang et al. 2019
    anchored      a loss + AdvFLYP's distances to the original and the clean image  Sxing2/AdvFLYP

CLIP-JEM's energy loss is in `energy`.

Every loss returns one value per image, in float32 (float64 if embeddings are) and outside autocast: a bfloat16 logit of
30 has steps of 0.125. Images and texts match if their ids are equal, so a repeated concept in a batch is not its own
negative; several matches share the target equally (UniCL, Yang et al. 2022, Eq. 3-4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower, unit

PerImage = Float[Tensor, " b"]
Embeddings = Float[Tensor, "b d"]

Reads = Literal["texts", "clean", "original", "original_here", "samples"]
"""Inputs of a loss besides the images' own embeddings; each needs forward passes, so only those read are computed."""


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a loss for B pairs. Embeddings (B,D) are unnormalised.

    features        of the images to score, attacked or not, by the tower in training
    texts, ids      normalised embeddings of the captions (B,D), and the concept of each pair (B,)
    clean           of the clean images, by the tower in training: with gradients in the update, none in the attack
    original        of the clean images, by the tower before training
    original_here   of the images to score, by that tower
    samples         of the update's negative samples, by the tower in training (`energy`)
    """

    features: Embeddings
    texts: Embeddings
    ids: Int[Tensor, " b"]
    clean: Embeddings | None = None
    original: Embeddings | None = None
    original_here: Embeddings | None = None
    samples: Embeddings | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> LossInputs:
        """A copy with `change` applied to all embeddings."""
        embeddings = {name: value for name, value in vars(self).items() if name != "ids" and value is not None}
        return replace(self, **{name: change(value) for name, value in embeddings.items()})


@dataclass(frozen=True)
class Objective:
    """A loss by name: `loss(LossInputs) -> (B,)`.

    coupled   an image's loss depends on the other images of its batch, so the attack maximises the batch's sum
    reads     inputs besides the images' own embeddings
    """

    name: str
    loss: Callable[[LossInputs], Tensor]
    coupled: bool
    reads: frozenset[Reads] = frozenset({"texts"})

    @property
    def reads_texts(self) -> bool:
        """Whether the loss uses the batch's captions."""
        return "texts" in self.reads

    def __call__(
        self,
        features: Embeddings,
        texts: Embeddings,
        ids: Int[Tensor, " b"],
        *,
        clean: Embeddings | None = None,
        original: Embeddings | None = None,
        original_here: Embeddings | None = None,
        samples: Embeddings | None = None,
    ) -> PerImage:
        """Loss of each image (B,). Arguments are the fields of `LossInputs`; raises ValueError if a required one is
        missing."""
        inputs = LossInputs(features, texts, ids, clean, original, original_here, samples)
        if lacking := sorted(name for name in self.reads if getattr(inputs, name) is None):
            raise ValueError(f"the objective {self.name} needs {', '.join(lacking)}, which this call lacks")
        exact = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            return self.loss(inputs.mapped(lambda embeddings: embeddings.to(exact)))


def clip(scale: float) -> Objective:
    """CLIP's batch-contrastive loss in both directions (Radford et al. 2021, Fig. 3), which CLIPAG uses for Eq. 3
    "in practice" (CLIPAG §3), in attack and update. `scale` is the frozen exp(logit_scale)."""
    return Objective(
        "clip", lambda inputs: contrastive(unit(inputs.features), inputs.texts, inputs.ids, scale), coupled=True
    )


def refuse_degenerate(
    objective: Objective, ids: Int[Tensor, " b"], texts: Float[Tensor, "b d"], *, part: int | None = None
) -> None:
    """Raise UsageError if a coupled objective would be constant on a batch: a single pair, pairs of one concept, or
    equal texts. `part` is the number of pairs per loss, if fewer than the batch."""
    if not objective.coupled:
        return
    pairs = len(ids) if part is None else part
    if pairs < 2:
        raise UsageError(
            one_pair(objective.name) + ("" if part is None else ", or --attack-negatives gathered"),
            "one_pair",
            part=part,
        )
    if len(ids.unique()) < 2 or bool((texts == texts[:1]).all()):
        shared = "show one concept" if len(ids.unique()) < 2 else "have the same text"
        raise UsageError(
            f"all {len(ids)} pairs of the first batch {shared}: the loss {objective.name} contrasts the pairs of a "
            "batch, and would be constant. Give data with several texts, shuffled",
            "one_concept" if len(ids.unique()) < 2 else "one_text",
            pairs=len(ids),
        )


def one_pair(name: str) -> str:
    """Error message for a contrastive loss over a single pair."""
    return (
        f"the loss {name} contrasts the pairs of a batch, and is constant for a batch of one: give --batch-size 2 or "
        "more"
    )


def text_bank(scale: float, bank: Float[Tensor, "t d"], bank_ids: Int[Tensor, " t"]) -> Objective:
    """Softmax over all texts of a finite set, so that every concept is a negative in every step (ours). Does not read
    the batch's captions. Raises UsageError for fewer than two different texts."""
    _refuse_one_text(bank)

    def loss(inputs: LossInputs) -> Tensor:
        return matching_cross_entropy(_logits(inputs.features, bank, scale), inputs.ids[:, None] == bank_ids)

    return Objective("text-bank", loss, coupled=False, reads=frozenset())


def tecoa(scale: float, classes: Float[Tensor, "c d"], class_ids: Int[Tensor, " c"]) -> Objective:
    """Cross-entropy over class texts (TeCoA, Mao et al. 2023, Eq. 3; RobustVLM, with scale 100 and "This is a photo of
    a {}"): a text bank with one text per class. Raises ValueError for a class with two texts, and as `text_bank`."""
    if len(class_ids.unique()) < len(class_ids):
        raise ValueError(f"TeCoA takes one text a class, not the ids {class_ids.tolist()}")
    return replace(text_bank(scale, classes, class_ids), name="tecoa")


def agft(scale: float, bank: Float[Tensor, "t d"], temperature: float = 2.5, *, sharpness: float = 1.8) -> Objective:
    """Cross-entropy to soft targets (AGFT, Cui et al. 2026): the original tower's softmax over the texts of a bank on
    the clean image, its logits divided by `temperature`; no labels. Raises UsageError as `text_bank`.

    As in YuboCui/AGFT 90a4114 (train.py), in attack and update. Both softmaxes multiply the referee's `scale` by
    `sharpness`; its README has a scale of 180 in training, for CLIP's 100, and 0.4 of that for the targets. As the
    temperature falls to 0, the target becomes the original's answer.
    """
    _refuse_one_text(bank)

    def loss(inputs: LossInputs) -> Tensor:
        assert inputs.original is not None
        targets = _logits(inputs.original, bank, sharpness * scale / temperature).softmax(1)
        return F.cross_entropy(_logits(inputs.features, bank, sharpness * scale), targets, reduction="none")

    return Objective("agft", loss, coupled=False, reads=frozenset({"original"}))


def siglip(scale: float, bias: float) -> Objective:
    """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023, Alg. 1), per image: the sum over its texts."""

    def loss(inputs: LossInputs) -> Tensor:
        sign = torch.where(inputs.ids[:, None] == inputs.ids, 1.0, -1.0)
        return -F.logsigmoid(sign * (scale * unit(inputs.features) @ inputs.texts.T + bias)).sum(dim=1)

    return Objective("siglip", loss, coupled=True)


def fare() -> Objective:
    """FARE (Schlarmann et al. 2024, Eq. 3): squared L2 distance (sum over dimensions) of unnormalised embeddings to the
    original tower's clean embeddings; no texts, no labels.
    """

    def loss(inputs: LossInputs) -> Tensor:
        assert inputs.original is not None
        return (inputs.features - inputs.original).square().sum(dim=1)

    return Objective("fare", loss, coupled=False, reads=frozenset({"original"}))


def divergence(scale: float, bank: Float[Tensor, "t d"]) -> Objective:
    """KL(p(text | clean image) || p(text | image)) over the texts of a bank, which TRADES' attack maximises (Zhang et
    al. 2019, Eq. 5). Its gradient is zero at the clean image, so start at random. Raises UsageError as `text_bank`."""
    _refuse_one_text(bank)

    def loss(inputs: LossInputs) -> Tensor:
        assert inputs.clean is not None
        return kl(_logits(inputs.clean, bank, scale), _logits(inputs.features, bank, scale))

    return Objective("divergence", loss, coupled=False, reads=frozenset({"clean"}))


def trades(base: Objective, scale: float, bank: Float[Tensor, "t d"], beta: float = 6.0) -> Objective:
    """`base` on clean images plus `beta` times their divergence from the attacked ones (TRADES, Zhang et al. 2019, Eq.
    5; 6 is their 1/lambda). Attack it with `divergence`; gradients flow through both arguments, as in their code."""
    apart = divergence(scale, bank)

    def loss(inputs: LossInputs) -> Tensor:
        assert inputs.clean is not None
        return base.loss(replace(inputs, features=inputs.clean)) + beta * apart.loss(inputs)

    return Objective(f"trades of {base.name}", loss, base.coupled, base.reads | {"clean"})


def anchored(
    base: Objective,
    *,
    features: float = 1.0,
    logits: float = 1.0,
    scale: float = 100.0,
    bank: Float[Tensor, "t d"] | None = None,
) -> Objective:
    """`base` plus AdvFLYP's regularisers towards the original tower on the attacked image and this tower on the clean
    one.

    `features` weighs the L2 distances of unit embeddings; `logits` the KL divergences of the predictions over the
    batch's captions, or the texts of `bank`. Both are 1 in Sxing2/AdvFLYP (training_epoch.py, reg_level "feat" and
    "logit"), which adds them to the update only: attack with `base`.
    """

    def loss(inputs: LossInputs) -> Tensor:
        assert inputs.original_here is not None
        assert inputs.clean is not None
        texts = inputs.texts if bank is None else bank
        total = base.loss(inputs)
        for other in (inputs.original_here, inputs.clean):
            if features:
                total = total + features * torch.linalg.vector_norm(unit(inputs.features) - unit(other), dim=1)
            if logits:
                total = total + logits * kl(_logits(inputs.features, texts, scale), _logits(other, texts, scale))
        return total

    beside: set[Reads] = {"clean", "original_here"} if bank is not None else {"clean", "original_here", "texts"}
    return Objective(f"anchored {base.name}", loss, base.coupled, base.reads | beside)


def _refuse_one_text(bank: Float[Tensor, "t d"]) -> None:
    if len(bank) < 2 or bool((bank == bank[:1]).all()):
        raise UsageError(
            "a softmax needs two different texts, else it is constant: give at least two classes with different names",
            "one_text",
        )


def contrastive(
    images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], ids: Int[Tensor, " b"], scale: float
) -> PerImage:
    """Mean of image-to-text and text-to-image cross-entropy of unit embeddings, per pair; with distinct ids, their mean
    over the batch is open_clip's ClipLoss."""
    logits = scale * images @ texts.T
    matches = ids[:, None] == ids
    return (matching_cross_entropy(logits, matches) + matching_cross_entropy(logits.T, matches)) / 2


def matching_cross_entropy(logits: Float[Tensor, "b t"], matches: Bool[Tensor, "b t"]) -> PerImage:
    """Cross-entropy of each row to the uniform distribution over its matches.

    Raises ValueError on a CPU for a row without matches; on other devices, where the check would synchronise every
    step, such a row is NaN.
    """
    count = matches.sum(dim=1, keepdim=True)
    if count.device.type == "cpu" and not torch.compiler.is_compiling() and not count.all():
        rows = (count.squeeze(1) == 0).nonzero().flatten().tolist()
        raise ValueError(f"rows {rows} match no text: every id of a batch needs a text with that id")
    return F.cross_entropy(logits, matches.to(logits.dtype) / count, reduction="none")


def kl(logits: Float[Tensor, "b t"], others: Float[Tensor, "b t"]) -> PerImage:
    """KL(softmax(logits) || softmax(others)) of each row."""
    return F.kl_div(others.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="none").sum(1)


def _logits(features: Embeddings, texts: Float[Tensor, "t d"], scale: float) -> Float[Tensor, "b t"]:
    return scale * unit(features) @ texts.T.to(features.dtype)


@torch.no_grad()
def embed_captions(referee: TwoTower, captions: Sequence[str]) -> Float[Tensor, "b d"]:
    """Normalised embeddings (B,D) of the captions, float32 (float64 from a float64 tower).

    Distinct captions are embedded once per batch, without a cache over batches: an embedding's last bits depend on the
    batch it is computed in, so a cache would break bit-equal resumption.
    """
    distinct = list(dict.fromkeys(captions))
    rows = {caption: row for row, caption in enumerate(distinct)}
    return referee.embed_texts(distinct)[[rows[caption] for caption in captions]]
