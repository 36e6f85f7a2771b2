"""Train BLIP-2's Q-Former on a frozen image tower (Li et al. 2023, §3.1, first stage), on request under attack.

Deviations, ours: negatives are texts only, no images; a scene's caption with exchanged colours, if it has two, is a
negative too, as captions drawn by similarity seldom are such hard ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from robustclip.attacks.gradient import pgd
from robustclip.attacks.threat import ThreatModel
from robustclip.diffusion.fitting import Trainer
from robustclip.errors import UsageError
from robustclip.referees.blip2 import MATCH, SMOOTHING, Blip2
from robustclip.robustification.state import adamw
from robustclip.runs.devices import autocast

COLDEST: Final = 0.01  # minimal temperature of the contrastive loss


@dataclass
class PairTrainer(Trainer):
    """Trains all parameters of `reader` that require gradients; those of its tower do not.

    threat: if given, every update sees images that PGD of `attack_steps` steps moved inside it to raise the matching
    and captioning losses of their own captions (ours).
    """

    stateful = ("reader", "optimiser")
    shown = ("contrastive", "matching", "captioning", "right")
    title = "training a BLIP-2"

    reader: Blip2
    threat: ThreatModel | None = None
    attack_steps: int = 2

    def __post_init__(self) -> None:
        self.optimiser = adamw(self.reader, self.lr, weight_decay=0.05)

    def step(
        self,
        images: Float[Tensor, "b 3 h w"],
        captions: Sequence[str],
        swapped: Sequence[str | None],
        generator: Generator,
    ) -> dict[str, float]:
        """One update on pictures in [0,1], their captions, and those with exchanged colours, if any; its metrics.

        Raises UsageError if all captions are equal.
        """
        if len(set(captions)) < 2:
            raise UsageError(
                f"a batch of {len(captions)} pictures with one caption has nothing to contrast: give --batch-size 2 or "
                "more, and data with several captions",
                "one_text",
                pairs=len(captions),
            )
        reader = self.reader.train()
        if self.threat is not None:
            images = self._attacked(images, list(captions), self.threat, generator)
        with autocast(images.device, self.dtype):
            tokens = reader.image_tokens(images)
            ids, mask = reader.tokenizer(list(captions), images.device)
            cosines = reader.similarities(reader.image_features(tokens), reader.text_features(ids, mask))
            contrastive = self._contrastive(cosines, captions)
            matching, right = self._matching(tokens, captions, swapped, cosines.detach(), generator)
            captioning = reader.caption_losses(tokens, ids, mask).mean()
        loss = contrastive + matching + captioning
        self.update(loss)
        with torch.no_grad():
            reader.temperature.clamp_(COLDEST, 0.5)
        self.done += 1
        numbers = {"contrastive": contrastive, "matching": matching, "captioning": captioning, "right": right}
        return {"loss": loss.item(), **{name: value.item() for name, value in numbers.items()}}

    def _attacked(
        self, images: Float[Tensor, "b 3 h w"], captions: list[str], threat: ThreatModel, generator: Generator
    ) -> Float[Tensor, "b 3 h w"]:
        def losses(moved: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
            with autocast(moved.device, self.dtype):
                return self.reader.pair_losses(moved, captions)

        return pgd(
            images,
            losses,
            threat,
            steps=self.attack_steps,
            keep="last",
            module=self.reader,
            generator=generator,
            strict=False,
        )

    def _contrastive(self, cosines: Float[Tensor, "b b"], captions: Sequence[str]) -> Tensor:
        """In both directions, with label smoothing (LAVIS: 0.1); equal captions are not negatives."""
        logits = cosines / self.reader.temperature
        same = torch.tensor([[one == other for other in captions] for one in captions], device=logits.device)
        own = torch.eye(len(captions), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same & ~own, -100.0)
        targets = torch.arange(len(captions), device=logits.device)
        both = [F.cross_entropy(one, targets, label_smoothing=SMOOTHING) for one in (logits, logits.mT)]
        return torch.stack(both).mean()

    def _matching(
        self,
        tokens: Float[Tensor, "b n w"],
        captions: Sequence[str],
        swapped: Sequence[str | None],
        cosines: Float[Tensor, "b b"],
        generator: Generator,
    ) -> tuple[Tensor, Tensor]:
        """(loss, accuracy) on each image's caption, one drawn by similarity, and its own with exchanged colours."""
        reader, count = self.reader, len(captions)
        chances = (cosines / reader.temperature.detach()).float().softmax(1)
        same = torch.tensor([[one == other for other in captions] for one in captions], device=chances.device)
        chances = (chances.masked_fill(same, 0) + 1e-6 * ~same).cpu()  # excludes its own
        differing = [row for row in range(count) if bool(chances[row].any())]
        drawn = torch.multinomial(chances[differing], 1, generator=generator)[:, 0].tolist() if differing else []
        others = [row for row in range(count) if swapped[row] is not None and swapped[row] != captions[row]]
        rows = [*range(count), *differing, *others]
        texts = [*captions, *(captions[row] for row in drawn), *(str(swapped[row]) for row in others)]
        ids, mask = reader.tokenizer(texts, tokens.device)
        logits = reader.match(tokens[rows], ids, mask)
        labels = torch.full((len(rows),), 1 - MATCH, device=logits.device)
        labels[:count] = MATCH
        # Balance positives against all negatives of the batch.
        weights = torch.where(labels == MATCH, max(len(rows) - count, 1) / count, 1.0)
        losses = F.cross_entropy(logits, labels, reduction="none") * weights
        return losses.sum() / weights.sum(), (logits.argmax(1) == labels).float().mean()
