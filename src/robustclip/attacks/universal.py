"""Universal adversarial perturbations: one delta for all images (Moosavi-Dezfooli et al. 2017).

    delta_0   = 0
    delta_t+1 = project(delta_t + step_size * steepest(grad_delta mean_i mean_b loss_i(clamp(x_b + delta_t))))

where i runs over the losses of an ensemble of models, and each step takes the next batch x_b. The paper adds the
minimal perturbation of one image after the other (DeepFool); gradient steps on batches are those of Shafahi et al.
2020. X-Transfer (Huang et al. 2025, arXiv 2505.05528) also averages over models, but draws a few at each step from a
large set, by an upper confidence bound; here each step takes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks.gradient import Losses
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import RunError, UsageError
from robustclip.runs.rng import generator


def universal_perturbation(
    batches: Iterable[tuple[Float[Tensor, "b 3 h w"], Sequence[Losses]]],
    threat: ThreatModel,
    *,
    step_size: float,
    watch: Callable[[float], None] = lambda _: None,
) -> Float[Tensor, "3 h w"]:
    """Projected ascent of one perturbation on the mean of all losses, one step a batch: a delta inside `threat`.

    batches    images in [0, 1] of the threat model's size, and the functions images -> (B,) losses whose mean rises:
               one for each model, all about this batch. Images and losses may lie on any one device.
    step_size  in pixel units, of a steepest direction of unit norm (sign for L-inf, normalised for L2).
    watch      gets the mean loss of each batch, before its step.

    A pixel at 0 or 1 counts only where its gradient leads back inside: what leads outside would be clamped. Raises
    UsageError where there is no batch or images do not fit the threat model, RunError where a gradient is not finite,
    since `steepest` would pass over it.
    """
    delta: Tensor | None = None
    for step, (images, losses) in enumerate(batches):
        threat.check(images)
        delta = images.new_zeros(images.shape[1:], dtype=torch.float32) if delta is None else delta
        total, gradient, moved = 0.0, torch.zeros_like(delta), images.detach().float() + delta
        for loss in losses:  # one model's graph at a time
            leaf = moved.clamp(0, 1).requires_grad_()
            with torch.enable_grad():
                value = loss(leaf).mean() / len(losses)
            (slopes,) = torch.autograd.grad(value, leaf)
            undone = ((moved >= 1) & (slopes > 0)) | ((moved <= 0) & (slopes < 0))
            gradient += torch.where(undone, 0, slopes).sum(0)
            total += float(value.detach())
        if not bool(gradient.isfinite().all()):
            raise RunError(
                f"the gradient of step {step + 1} is not finite: compute in float32", "not_finite", step=step
            )
        watch(total)
        delta = threat.project(delta[None] + step_size * threat.steepest(gradient[None]))[0]
    if delta is None:
        raise UsageError("a universal perturbation needs at least one batch of images")
    return delta


def fitted(delta: Float[Tensor, "3 h w"], threat: ThreatModel) -> Float[Tensor, "3 h2 w2"]:
    """A perturbation for images of the threat model's size: resized bilinearly, as X-Transfer's attackers do (without
    antialiasing), then projected into the ball. A smaller perturbation is not enlarged."""
    if tuple(delta.shape[1:]) != threat.size:
        delta = F.interpolate(delta[None], threat.size, mode="bilinear", align_corners=False)[0]
    return threat.project(delta[None])[0]


def added(images: Float[Tensor, "b 3 h w"], delta: Float[Tensor, "3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The images with the perturbation, clamped to [0, 1]."""
    return (images + delta.to(images)).clamp(0, 1)


def permuted(delta: Float[Tensor, "3 h w"], *, seed: int) -> Float[Tensor, "3 h w"]:
    """The control: the same values at random places, so of the same L2 and L-inf norm, and as universal."""
    order = torch.randperm(delta.numel(), generator=generator(seed, "shuffled perturbation"))
    return delta.flatten()[order.to(delta.device)].view_as(delta)
