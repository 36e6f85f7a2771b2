"""CLIPAG Eq. 3 on one batch: the attack, then the gradients of the same loss on what it found.

A contrastive loss knows no single image: each is measured against the texts of all others, in the attack as in the
update. So where a batch is spread over processes, or held in memory part by part, embeddings are gathered before the
loss is taken, at every step of the attack too, and every image meets the same negatives as if one device held it all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustclip import distributed, rng, sharding
from robustclip.attacks.gradient import eval_mode, pgd
from robustclip.data.batch import Batch
from robustclip.robustification.losses import Objective
from robustclip.threat import ThreatModel

Embed = Callable[[Tensor], Tensor]

AttackNegatives = Literal["gathered", "local"]
"""What a contrastive attack climbs against: "gathered" is exact, all texts of the batch; "local" is an approximation,
only the texts of the same part in the same process, which saves a forward pass at every step. The update is exact in
both."""


@dataclass(frozen=True)
class AdversarialGradients:
    """`embed` maps images in [0, 1] to normalised embeddings by `tower`, which has been put in the mode to train in;
    `accumulate` is the number of parts whose activations are held one at a time."""

    tower: nn.Module
    embed: Embed
    objective: Objective
    threat: ThreatModel | None
    attack_steps: int = 2
    step_size: float | None = None
    clean_weight: float = 0.0
    accumulate: int = 1
    attack_negatives: AttackNegatives = "gathered"
    seed: int = 0

    def __call__(self, step: int, batch: Batch, texts: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        """Adversarial images (b,3,H,W) of this process's share of a batch, and the loss on them, the mean over all
        processes. Adds to the tower's gradients those of that mean (and of `clean_weight` times the clean one), the
        same in all processes. What it draws is a function of seed, step and the samples' ids."""
        with rng.seeded(self.seed, "tower", step, distributed.rank(), device=batch.images.device):
            images = self.attacked(step, batch, texts)
            loss_of = self._gathered(texts, batch.positives)
            loss = loss_of(images).mean()
            if self.clean_weight:
                loss = loss + self.clean_weight * loss_of(batch.images).mean()
            loss.backward()
        if not sharding.wanted():  # which averages on its own
            distributed.average_gradients(self.tower.parameters())
        return images, distributed.mean(loss)

    def attacked(self, step: int, batch: Batch, texts: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """The inner problem: images of the batch that maximise its loss inside the threat model (or as they are)."""
        if self.threat is None:
            return batch.images
        starts = rng.each(self.seed, "attack", step, ids=batch.ids, device=batch.images.device)
        if self.objective.coupled and self.attack_negatives == "gathered":
            return self._pgd(batch.images, self._gathered(texts, batch.positives), starts)
        # Where losses don't depend on each other, going part by part is exact; where they do, these are "local".
        size = -(-len(batch) // self.accumulate)
        return torch.cat(
            [
                self._pgd(batch.images[rows], self._local(texts[rows], batch.positives[rows]), starts[rows])
                for rows in (slice(first, first + size) for first in range(0, len(batch), size))
            ]
        )

    def _pgd(self, images: Tensor, loss_of: Embed, starts: list[torch.Generator]) -> Tensor:
        assert self.threat is not None
        frozen = None if sharding.wanted() else self.tower  # FSDP cannot freeze weights for a while
        with eval_mode(self.tower):
            return pgd(
                images,
                loss_of,
                self.threat,
                steps=self.attack_steps,
                step_size=self.step_size,
                coupled=self.objective.coupled,
                keep="last",
                module=frozen,
                generator=starts,
            )

    def _local(self, texts: Float[Tensor, "b d"], ids: Int[Tensor, " b"]) -> Embed:
        return lambda images: self.objective(self.embed(images), texts, ids)

    def _gathered(self, texts: Float[Tensor, "b d"], ids: Int[Tensor, " b"]) -> Embed:
        """Losses (b,) of this process's images; the gradient of their sum is that of the losses of all processes."""
        if not self.objective.coupled or distributed.count() == 1:
            return lambda images: self.objective(self._embed_in_parts(images), texts, ids)
        all_texts, all_ids = distributed.everyone(texts), distributed.everyone(ids)

        def losses(images: Tensor) -> Tensor:
            embeddings = distributed.everyone_with_gradient(self._embed_in_parts(images))
            everyones = self.objective(embeddings, all_texts, all_ids)
            own = everyones.chunk(distributed.count())[distributed.rank()]
            others = everyones.sum() - own.sum()  # which own images change too, as negatives
            return own + (others - others.detach()) / len(own)

        return losses

    def _embed_in_parts(self, images: Tensor) -> Tensor:
        """Embeddings of a batch whose activations do not fit: computed part by part and forgotten, and computed again,
        one part at a time, when the gradient comes back (Gao et al. 2021, GradCache, by torch's checkpointing)."""
        if self.accumulate == 1:
            return self.embed(images)
        if not torch.is_grad_enabled():
            return torch.cat([self.embed(part) for part in images.chunk(self.accumulate)])
        parts = [checkpoint(self.embed, part, use_reentrant=False) for part in images.chunk(self.accumulate)]
        return torch.cat(parts)
