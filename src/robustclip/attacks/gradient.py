"""Projected gradient descent (Madry et al. 2018): the inner maximisation of CLIPAG's Eq. 3.

    x_0     = clamp(x + random start)
    v_t+1   = steepest(momentum * v_t + steepest(grad loss(x_t)))        (steepest(grad loss(x_t)) without momentum)
    x_t+1   = clamp(x + project(x_t + step_size * v_t+1 - x))

`steepest`, `project` and the random start belong to the threat model. Clamping after projecting keeps both
constraints: the clean image lies in [0, 1], so no coordinate of the perturbation grows by clamping towards it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.attacks.threat import Source, ThreatModel, broadcast
from robustclip.errors import RunError, UsageError

Losses = Callable[[Tensor], Tensor]  # images (B,3,H,W) -> losses (B,)


def pgd(
    images: Float[Tensor, "b 3 h w"],
    loss_fn: Losses,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float | None = None,
    momentum: float = 0.0,
    random_start: bool = True,
    start: Float[Tensor, "b 3 h w"] | None = None,
    restarts: int = 1,
    coupled: bool = False,
    keep: Literal["best", "last"] = "best",
    module: nn.Module | None = None,
    generator: Source = None,
    strict: bool = True,
) -> Float[Tensor, "b 3 h w"]:
    """Projected gradient descent: images inside `threat` around `images` that *maximise* `loss_fn(images) -> (B,)`.

    images      in [0, 1] (what rounding put outside is clamped); float16 and bfloat16 are raised to float32, in which
                all arithmetic of the attack is done, also when `loss_fn` runs under autocast. The result is in
                [0, 1], detached, in the same memory format.
    step_size   in pixel units; default 2.5 * eps / steps (MadryLab/robustness), which can cross the ball.
    momentum    on normalised gradients (RobustVLM uses 0.9). A sample whose gradient is zero takes a zero step; with
                momentum it coasts on.
    start       perturbations to start from instead of random ones; they are projected into the ball.
    restarts    independent random starts, of which each image keeps its best.
    coupled     the loss of an image depends on its batch (a contrastive loss): steps climb the sum of losses, and
                keep="best" keeps the best batch as a whole, not a mix of steps.
    keep        "last" returns the last step and costs exactly `steps` forward and backward passes (for training).
                "best" returns the best of the clean image and all steps, so that no loss falls, for one or two
                forward passes more a restart (for evaluation).
    module      the tower behind `loss_fn`: in eval mode and with frozen parameters during the attack.
    generator   the source of the random start: one for the batch, or one an image, whose start then does not depend on
                the rest of the batch; None is torch's default generator.

    strict      raise RunError, which names the first image, where a loss or a gradient is not finite at any step: such
                an image was not attacked, and would pass for a robust one. Read back from the device once, at the end.
                Without it, such a loss is never the best and such a gradient a zero step (for training, which skips
                and reports steps that are not finite).

    Raises UsageError for images that do not fit the threat model and for settings or losses of the wrong kind.
    """
    _check_kinds(loss_fn, threat, module, generator, start)
    _check_settings(threat, steps, step_size, momentum, random_start and start is None, restarts, keep)
    threat.check(images)
    clean = images.detach().to(torch.promote_types(images.dtype, torch.float32)).clamp(0, 1)
    step_size = 2.5 * threat.eps / steps if step_size is None else step_size
    best, broken = _Best(clean, coupled), _Broken(clean, strict)

    with attacking(module):
        if keep == "best" and (random_start or start is not None):
            losses = _losses(loss_fn, clean)
            broken.note(0, losses)
            best.offer(clean, losses)
        for _ in range(restarts):
            if start is not None:
                x = (clean + threat.project(start.to(clean).expand_as(clean))).clamp(0, 1)
            else:
                x = (clean + threat.random_start(clean, generator)).clamp(0, 1) if random_start else clean
            velocity = torch.zeros_like(clean)
            for step in range(steps):
                losses, gradient = _losses_and_gradient(loss_fn, x)
                broken.note(step, losses, gradient)
                if keep == "best":
                    best.offer(x, losses)
                direction = threat.steepest(gradient)
                if momentum:
                    direction = velocity = threat.steepest(momentum * velocity + direction)
                x = (clean + threat.project(x + step_size * direction - clean)).clamp(0, 1)
            if keep == "best":
                losses = _losses(loss_fn, x)
                broken.note(steps, losses)
                best.offer(x, losses)
    broken.check()
    return best.images if keep == "best" else x


@contextmanager
def attacking(module: nn.Module | None) -> Iterator[None]:
    """Context manager: a module in eval mode with frozen parameters; both are restored, also after an error.

    Eval mode, so that the attack neither moves BatchNorm's statistics nor fights dropout; frozen, so that the
    backward pass only computes what the attack needs, the gradient to the images.
    """
    if module is None:
        yield
        return
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with eval_mode(module):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Context manager: a module in eval mode; the modes of all submodules are restored, also after an error."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for child, mode in modes:
            child.training = mode


class _Best:
    """The images of the highest finite loss so far, starting from the clean ones, without host synchronisation."""

    def __init__(self, clean: Tensor, coupled: bool) -> None:
        self.images = clean
        self.coupled = coupled
        self.scores = clean.new_full((len(clean),), -torch.inf)

    def offer(self, images: Tensor, losses: Tensor) -> None:
        scores = losses.sum().expand_as(losses) if self.coupled else losses
        better = scores.isfinite() & (scores > self.scores)
        self.scores = torch.where(better, scores, self.scores)
        self.images = torch.where(broadcast(better, images), images, self.images)


class _Broken:
    """The first step, for each image, at which its loss or gradient was not finite. Recorded and raised only if
    `strict`, at the cost of a pass over each gradient."""

    def __init__(self, clean: Tensor, strict: bool) -> None:
        self.strict = strict
        self.steps = torch.full((len(clean),), -1, device=clean.device)

    def note(self, step: int, losses: Tensor, gradient: Tensor | None = None) -> None:
        if not self.strict:
            return
        found = ~losses.isfinite()
        if gradient is not None:
            found = found | ~gradient.flatten(1).isfinite().all(1)
        self.steps = torch.where((self.steps < 0) & found, step, self.steps)

    def check(self) -> None:
        """Raises RunError, which names the first."""
        steps = self.steps.tolist()
        found = sorted((step, row) for row, step in enumerate(steps) if step >= 0)
        if found:
            step, row = found[0]
            others = f" (and of {len(found) - 1} others)" if len(found) > 1 else ""
            raise RunError(
                f"image {row + 1} of {len(steps)} was not attacked: its loss or gradient is not finite at step {step}"
                f"{others}. Compute in float32, or look at what loss_fn gives for images[{row}]",
                "not_finite",
                image=row,
                step=step,
                others=len(found) - 1,
            )


def _losses_and_gradient(loss_fn: Losses, images: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) and the gradient of their sum; for independent losses that is each image's own gradient."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        losses = _per_image(loss_fn(leaf), leaf)
        if not losses.requires_grad:
            raise UsageError(
                "loss_fn's losses do not depend on the images: is it under no_grad, or is a detach in it?",
                "no_gradient",
            )
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


@torch.no_grad()
def _losses(loss_fn: Losses, images: Tensor) -> Tensor:
    return _per_image(loss_fn(images), images)


def _per_image(losses: Tensor, images: Tensor) -> Tensor:
    if not isinstance(losses, Tensor):
        message = f"loss_fn must return a tensor, one loss per image, not a {type(losses).__name__}"
        raise UsageError(message, "wrong_type", type=type(losses).__name__)
    if losses.shape != (len(images),):
        raise UsageError(
            f"loss_fn must return one loss per image, of shape ({len(images)},), not {tuple(losses.shape)}: "
            "e.g. cross_entropy(..., reduction='none')",
            "wrong_shape",
            shape=tuple(losses.shape),
            images=len(images),
        )
    return losses.to(images.dtype)  # out of autocast's half precision, in which sums and comparisons are coarse


def _check_kinds(loss_fn: object, threat: object, module: object, generator: object, start: object) -> None:
    source = (torch.Generator, Sequence)
    for name, value, kinds, example in (
        ("loss_fn", loss_fn, Callable, "lambda images: cross_entropy(model(images), labels, reduction='none')"),
        ("threat", threat, ThreatModel, "ThreatModel('linf', 4 / 255, 224)"),
        ("module", module, nn.Module | None, "the tower"),
        ("generator", generator, source[0] | source[1] | None, "torch.Generator().manual_seed(0)"),
        ("start", start, Tensor | None, "torch.zeros_like(images)"),
    ):
        if not isinstance(value, kinds):  # type: ignore[arg-type]
            message = f"pgd({name}={value!r:.100}) is a {type(value).__name__}: give e.g. {example}"
            raise UsageError(message, "wrong_type", argument=name, given=value)


def _check_settings(
    threat: ThreatModel,
    steps: int,
    step_size: float | None,
    momentum: float,
    random_start: bool,
    restarts: int,
    keep: str,
) -> None:
    for name, value in (("steps", steps), ("restarts", restarts)):
        if not isinstance(value, int):
            raise UsageError(
                f"{name} must be a whole number, not {value!r:.100}: e.g. 10", "wrong_type", argument=name, given=value
            )
    for name, number in (("step_size", 1.0 if step_size is None else step_size), ("momentum", momentum)):
        if not isinstance(number, int | float):
            raise UsageError(
                f"{name} must be a number, not {number!r:.100}: e.g. 0.1", "wrong_type", argument=name, given=number
            )
    if steps < 1 or restarts < 1:
        message = f"an attack needs at least 1 step and 1 restart, not steps={steps}, restarts={restarts}"
        raise UsageError(message, "too_few", steps=steps, restarts=restarts)
    if step_size is not None and not step_size > 0:
        message = f"step_size must be positive, not {step_size}: leave it out for 2.5 * {threat.eps:g} / steps"
        raise UsageError(message, "not_positive", argument="step_size", given=step_size)
    if not 0 <= momentum < 1:
        message = f"momentum must lie in [0, 1), not {momentum}: e.g. 0.9"
        raise UsageError(message, "out_of_range", argument="momentum", given=momentum)
    if keep not in ("best", "last"):
        raise UsageError(f"keep must be 'best' or 'last', not {keep!r}", "unknown_choice", argument="keep", given=keep)
    if restarts > 1 and keep == "last":
        message = f"keep='last' would throw {restarts - 1} of {restarts} restarts away: use keep='best'"
        raise UsageError(message, "restarts_lost", restarts=restarts)
    if restarts > 1 and not random_start:
        message = f"{restarts} restarts from the same clean start are identical: use random_start=True"
        raise UsageError(message, "restarts_identical", restarts=restarts)
