"""One adversarial training step (CLIPAG Eq. 3): attack, then gradients of the loss on the attacked images.

A contrastive loss compares every image with the texts of all others, in the attack as in the update. If a batch is
spread over processes, or processed in parts, embeddings are gathered before the loss, also in each attack step, so that
every image has the same negatives as on a single device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustclip.attacks.gradient import attacking, eval_mode, pgd
from robustclip.attacks.threat import ThreatModel
from robustclip.data.samples import Batch
from robustclip.errors import UsageError
from robustclip.robustification.energy import NegativeSamples
from robustclip.robustification.losses import Objective, clip
from robustclip.runs import distributed, rng

MOST: Final = 100_000
"""Samples whose perturbation is kept, the latest; 25 kB each at 64x64, 300 kB at 224x224, and in every checkpoint."""


class WarmStarts:
    """Last perturbation of each sample by id, in float16 on the CPU."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.ends: dict[str, Tensor] = {}

    def starts(
        self, images: Float[Tensor, "b 3 h w"], ids: Sequence[str], threat: ThreatModel, random: list[torch.Generator]
    ) -> Float[Tensor, "b 3 h w"]:
        """Initial perturbations inside the threat model: each sample's last one, random for new samples."""
        fresh = threat.random_start(images, random)
        known = [self.ends.get(one) for one in ids]
        rows = [new if old is None else old.to(new) for old, new in zip(known, fresh, strict=True)]
        return threat.project(torch.stack(rows))

    def keep(self, perturbations: Float[Tensor, "b 3 h w"], ids: Sequence[str]) -> None:
        """Store final perturbations; beyond `most` samples, those seen longest ago are dropped."""
        for one, end in zip(ids, perturbations.detach().half().cpu(), strict=True):
            self.ends.pop(one, None)
            self.ends[one] = end.clone()
        while len(self.ends) > self.most:
            del self.ends[next(iter(self.ends))]

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints."""
        return {"ids": list(self.ends), "ends": torch.stack(list(self.ends.values())) if self.ends else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        ends = state["ends"]
        self.ends = {} if ends is None else dict(zip(state["ids"], ends.cpu().clone().unbind(), strict=True))


def refuse_warm_starts(processes: int) -> None:
    """Raise UsageError with several processes: a sample may be in another process the next time."""
    if processes > 1:
        message = f"warm starts need a single process, not {processes}: leave --warm-start out, or launch one process"
        raise UsageError(message, "one_process", processes=processes)


Embed = Callable[[Tensor], Tensor]

AttackNegatives = Literal["gathered", "local"]
"""Negatives of a contrastive attack: "gathered", all texts of the batch (exact); "local", only those of the same part
in the same process (approximate; saves a forward pass per step). The update is exact in both."""


@dataclass(frozen=True)
class AdversarialGradients:
    """Compute the gradients of one adversarial update.

    embed               images in [0, 1] to embeddings by `tower`, which is in training mode; need not be normalised,
                        as objectives that need unit vectors normalise
    objective           minimised by the update; the attack maximises `attack_objective` (default: the same)
    original            as `embed`, by the tower before training, for objectives that read it
    random_start        start the attack at random in the ball; False: at the image (CLIP-JEM Alg. 1)
    warm                warm starts of the attack instead
    sampler             of negative samples, for objectives that read them (`energy.jem`)
    momentum            momentum of the attack (0.9 in RobustVLM)
    accumulate          number of parts of a batch; activations of one part are held at a time
    any_size            scale an L2 eps to the same RMS change of a pixel for batches of another size
    """

    tower: nn.Module
    embed: Embed
    objective: Objective
    threat: ThreatModel | None
    attack_objective: Objective | None = None
    original: Embed | None = None
    attack_steps: int = 2
    step_size: float | None = None
    random_start: bool = True
    warm: WarmStarts | None = None
    sampler: NegativeSamples | None = None
    momentum: float = 0.0
    clean_weight: float = 0.0
    accumulate: int = 1
    attack_negatives: AttackNegatives = "gathered"
    any_size: bool = False
    seed: int = 0

    def __call__(self, step: int, batch: Batch, texts: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        """Adversarial images (b,3,H,W) of this process's share of a batch, and their mean loss over all processes.

        Adds the gradients of that mean (plus `clean_weight` times the clean one) to the tower's, equal in all
        processes. Random numbers depend on seed, step and the samples' ids only.
        """
        with rng.seeded(self.seed, "tower", step, distributed.rank(), device=batch.images.device):
            original = self._of_original(batch.images)
            images = self.attacked(step, batch, texts, original)
            samples = self._sampled(step, batch, texts)
            embed = self._in_parts(self.embed)
            beside = self._beside(self.objective, embed, batch, texts, original, samples)
            loss_of = self._gathered(self.objective, embed, beside)
            loss = loss_of(images).mean()
            if self.clean_weight:
                loss = loss + self.clean_weight * loss_of(batch.images).mean()
            loss.backward()
        if not distributed.is_sharded():  # FSDP averages gradients itself
            distributed.average_gradients(self.tower.parameters())
        return images, distributed.mean(loss)

    def attacked(
        self, step: int, batch: Batch, texts: Float[Tensor, "b d"], original: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b 3 h w"]:
        """Inner maximisation: adversarial images of the batch inside the threat model (or the clean ones)."""
        if self.threat is None:
            return batch.images
        objective = self.attack_objective or self.objective
        starts = rng.each(self.seed, "attack", step, ids=batch.ids, device=batch.images.device)
        if objective.coupled and self.attack_negatives == "gathered":
            with eval_mode(self.tower), torch.no_grad():
                embed = self._in_parts(self.embed)
                beside = self._beside(objective, embed, batch, texts, original)
                loss_of = self._gathered(objective, embed, beside)
            return self._pgd(objective, loss_of, batch, starts)
        # Exact for uncoupled losses; for coupled ones these are the "local" negatives.
        size = -(-len(batch) // self.accumulate)
        found = []
        for first in range(0, len(batch), size):
            rows = slice(first, first + size)
            part = Batch(batch.images[rows], batch.captions[rows], batch.positives[rows], batch.ids[rows])
            by_original = None if original is None else original[rows]
            with eval_mode(self.tower), torch.no_grad():
                beside = self._beside(objective, self.embed, part, texts[rows], by_original)
                loss_of = self._local(objective, self.embed, beside)
            found.append(self._pgd(objective, loss_of, part, starts[rows]))
        return torch.cat(found)

    def _pgd(self, objective: Objective, loss_of: Embed, batch: Batch, random: list[torch.Generator]) -> Tensor:
        assert self.threat is not None
        height, width = batch.images.shape[-2:]
        threat = self.threat.resized((height, width)) if self.any_size else self.threat
        with eval_mode(self.tower):
            found = pgd(
                batch.images,
                loss_of,
                threat,
                steps=self.attack_steps,
                step_size=self.step_size,
                momentum=self.momentum,
                random_start=self.random_start,
                start=None if self.warm is None else self.warm.starts(batch.images, batch.ids, threat, random),
                coupled=objective.coupled,
                keep="last",
                module=self._frozen,
                generator=random,
                strict=False,  # the trainer skips and logs such a step
            )
        if self.warm is not None:
            self.warm.keep(found - batch.images, batch.ids)
        return found

    def _sampled(self, step: int, batch: Batch, texts: Tensor) -> Tensor | None:
        """Negative samples (b,3,h,w) of this process's texts, if the objective reads them, by the frozen tower in eval
        mode; texts of the whole batch are each other's negatives."""
        if "samples" not in self.objective.reads:
            return None
        assert self.sampler is not None, f"{self.objective.name} reads samples, and no sampler was given"
        random = rng.each(self.seed, "energy", step, ids=batch.ids, device=batch.images.device)
        contrast = clip(self.sampler.scale)
        with eval_mode(self.tower), attacking(self._frozen):
            embed = self._in_parts(self.embed)
            loss_of = self._gathered(contrast, embed, self._beside(contrast, embed, batch, texts))
            return self.sampler.lower(self.sampler.draw(batch.images, random), loss_of)

    @property
    def _frozen(self) -> nn.Module | None:
        """The tower, if an attack can freeze its weights for a while; FSDP's cannot be."""
        return None if distributed.is_sharded() else self.tower

    def _local(self, objective: Objective, embed: Embed, beside: dict[str, Tensor]) -> Embed:
        """Losses (b,) as a function of images, with negatives of this process only; `beside` of `_beside`."""
        return lambda images: objective(embed(images), **beside, **self._here(objective, images))

    def _gathered(self, objective: Objective, embed: Embed, own: dict[str, Tensor]) -> Embed:
        """Losses (b,) of this process's images; the gradient of their sum is that of all processes' losses."""
        if not objective.coupled or distributed.count() == 1:
            return self._local(objective, embed, own)
        beside = {name: _everyone(values) for name, values in own.items()}

        def losses(images: Tensor) -> Tensor:
            here = {name: _everyone(values) for name, values in self._here(objective, images).items()}
            everyones = objective(_everyone(embed(images)), **beside, **here)
            here_only = everyones.chunk(distributed.count())[distributed.rank()]
            others = everyones.sum() - here_only.sum()  # depend on own images as negatives
            return here_only + (others - others.detach()) / len(here_only)

        return losses

    def _beside(
        self,
        objective: Objective,
        embed: Embed,
        batch: Batch,
        texts: Tensor,
        original: Tensor | None = None,
        samples: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective's inputs that do not depend on the attacked images."""
        inputs = {"texts": texts, "ids": batch.positives}
        if "clean" in objective.reads:
            inputs["clean"] = embed(batch.images)
        if "original" in objective.reads:
            assert original is not None, f"{objective.name} reads the original tower, and none was given"
            inputs["original"] = original
        if "samples" in objective.reads:
            assert samples is not None, f"{objective.name} reads negative samples, which an attack does not have"
            inputs["samples"] = embed(samples)
        return inputs

    def _here(self, objective: Objective, images: Tensor) -> dict[str, Tensor]:
        if "original_here" not in objective.reads:
            return {}
        assert self.original is not None, f"{objective.name} reads the original tower, and none was given"
        return {"original_here": self._in_parts(self.original)(images)}

    @torch.no_grad()
    def _of_original(self, images: Tensor) -> Tensor | None:
        """Embeddings of clean images by the tower before training, if an objective reads them."""
        read = self.objective.reads | (self.attack_objective or self.objective).reads
        if "original" not in read:
            return None
        assert self.original is not None, "an objective reads the original tower, and none was given"
        return self._in_parts(self.original)(images)

    def _in_parts(self, embed: Embed) -> Embed:
        return in_parts(embed, self.accumulate)


def in_parts(embed: Embed, count: int) -> Embed:
    """`embed` in `count` parts, whose activations are recomputed in the backward pass (GradCache, Gao et al. 2021, by
    torch's checkpointing)."""
    if count == 1:
        return embed

    def embedded(images: Tensor) -> Tensor:
        parts = images.chunk(count)
        if not torch.is_grad_enabled():
            return torch.cat([embed(part) for part in parts])
        return torch.cat([checkpoint(embed, part, use_reentrant=False) for part in parts])

    return embedded


def _everyone(values: Tensor) -> Tensor:
    """`values` of all processes in order of rank, with gradients if `values` has them."""
    return distributed.everyone_with_gradient(values) if values.requires_grad else distributed.everyone(values)
