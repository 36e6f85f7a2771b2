"""CLIP-JEM's contrastive energy loss (Ganz & Elad 2025, arXiv 2408.17046, Alg. 1).

    L_adv   the contrastive adversarial loss: `adversarial`, from delta = 0 (`random_start=False`)
    sample  an initial negative sample I'                                                         `NegativeSamples.draw`
    repeat  T_JEM times: AdamW(I', lr = alpha_2) on ClipLoss(f_I(I'), f_T(T))                    `NegativeSamples.lower`
    L_CE    the contrastive energy loss of real pairs (I, T) and the samples I'                     `contrastive_energy`
    loss    L_adv + gamma L_CE                                                                                     `jem`

The energy of a pair is E(I, T) = -cos(f_I(I), f_T(T)). Algorithm and energy are the paper's. Unknown to us, so ours:
the initial sample (uniform noise), the clamp to [0, 1], the form of L_CE, and all values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import AdamW

from robustclip.errors import UsageError
from robustclip.inits.basic import noise
from robustclip.referees.base import unit
from robustclip.robustification.losses import LossInputs, Objective, matching_cross_entropy


def jem(base: Objective, scale: float, gamma: float) -> Objective:
    """`base` plus `gamma` times the contrastive energy loss of the clean images and the samples (Alg. 1, last line);
    `base` itself if gamma is 0. `scale` is the frozen exp(logit_scale). Attack with `base`. A `clean_weight` of the
    trainer counts this term again, as all of the loss."""
    if not gamma:
        return base

    def loss(inputs: LossInputs) -> Tensor:
        assert inputs.clean is not None
        assert inputs.samples is not None
        images, samples = unit(inputs.clean), unit(inputs.samples)
        return base.loss(inputs) + gamma * contrastive_energy(images, samples, inputs.texts, inputs.ids, scale)

    return Objective(f"{base.name} and energy", loss, coupled=True, reads=base.reads | {"texts", "clean", "samples"})


def refuse_unsampled(objective: Objective, attack_objective: Objective, sampler: NegativeSamples | None) -> None:
    """Raise UsageError if the update reads negative samples and has no sampler, or if an attack reads them."""
    if "samples" in attack_objective.reads:
        raise UsageError(
            f"the attack of {attack_objective.name} has no negative samples: attack the loss without energy, "
            "train(objective=jem(base, ...), attack_objective=base)"
        )
    if "samples" in objective.reads and sampler is None:
        raise UsageError(f"{objective.name} reads negative samples: give train(sampler=NegativeSamples(scale))")


def contrastive_energy(
    images: Float[Tensor, "b d"],
    samples: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    ids: Int[Tensor, " b"],
    scale: float,
) -> Float[Tensor, " b"]:
    """Cross-entropy of each text to its real images, among all real images and all samples of the batch, at logits
    -scale * E. Embeddings have unit length. The form is ours: InfoNCE, with samples as further negatives."""
    logits = scale * texts @ torch.cat([images, samples]).T
    matches = ids[:, None] == ids
    return matching_cross_entropy(logits, torch.cat([matches, torch.zeros_like(matches)], dim=1))


@dataclass(frozen=True)
class NegativeSamples:
    """Negative samples of an update: AdamW moves noise towards the batch's texts, as the tower embeds them. All values
    are ours; AdamW's others are torch's defaults.

    steps, lr   T_JEM and alpha_2; lr is the change of a pixel in the first step
    scale       exp(logit_scale) of the loss that is lowered
    """

    scale: float
    steps: int = 5
    lr: float = 0.1

    def draw(self, images: Float[Tensor, "b 3 h w"], generators: Sequence[torch.Generator]) -> Tensor:
        """Uniform noise in the size, dtype and memory format of `images`, one generator per sample."""
        height, width = images.shape[-2:]
        return torch.empty_like(images).copy_(noise(height, width, generators, images.device))

    def lower(self, start: Float[Tensor, "b 3 h w"], loss_fn: Callable[[Tensor], Tensor]) -> Float[Tensor, "b 3 h w"]:
        """Samples in [0,1], detached, after `steps` steps down the sum of `loss_fn(images) -> (B,)`."""
        samples = start.clone().requires_grad_()
        optimizer = AdamW([samples], lr=self.lr)
        for _ in range(self.steps):
            (samples.grad,) = torch.autograd.grad(loss_fn(samples).sum(), samples)
            optimizer.step()
            with torch.no_grad():
                samples.clamp_(0, 1)
        return samples.detach()
