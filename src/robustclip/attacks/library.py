"""Wrapper of torchattacks: APGD, FAB and Square with our signature, for evaluation.

They attack classifiers, so in place of a loss they take logits and labels. Its AutoAttack is not used: of 3.5.1, it
gives APGD 10 steps instead of the paper's 100, and as many targets as there are wrong classes instead of 9. What
`attacks.library` puts together from its parts has the paper's numbers. torchattacks pins an old `requests` that
other packages cannot live with, so it comes with `pip install 'robustclip[evaluation]'` only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustclip.attacks.gradient import attacking
from robustclip.attacks.spec import AttackSpec
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import RunError, UsageError, require

Name = Literal["apgd", "apgd-dlr", "apgd-t", "fab-t", "square"]
_NORMS: Final = {"l2": "L2", "linf": "Linf"}


def library_attack(
    images: Float[Tensor, "b 3 h w"],
    logits_fn: Callable[[Tensor], Tensor],
    threat: ThreatModel,
    *,
    labels: Int[Tensor, " b"],
    attack: Name,
    steps: int,
    targets: int | None = None,
    module: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """Run an attack of torchattacks on `logits_fn(images) -> (B, classes)` inside `threat`, against `labels`.

    attack      "apgd" (APGD on the cross-entropy), "apgd-dlr" (on the difference of logits ratio; at least 3 classes),
                "apgd-t" (on its targeted form; at least 4 classes; all three Croce & Hein 2020), "fab-t" (targeted FAB,
                which looks for the nearest such image and is left out where that is not in `threat`; Croce & Hein
                2020b), or "square" (no gradients; `steps` counts its queries; Andriushchenko et al. 2020).
    targets     of "apgd-t" and "fab-t", and of these only: how many of the wrong classes they are run against, the
                likeliest first; each takes `steps`. Fewer than there are classes.
    generator   seeds the attack; torch's global generators, from which torchattacks draws, are put back afterwards.

    Other arguments are those of `attacks.pgd`. Where an attack fails, the image comes back as it was. Raises UsageError
    when torchattacks is not installed, and for a size of images that Square cannot tile; RunError, which names the
    image, where logits or what an attack made of them are not finite.
    """
    threat.check(images)
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device if generator else "cpu"))
    if attack == "square":
        _check_tiles(threat, images.shape[-2], images.shape[-1])
    with torch.random.fork_rng(range(torch.cuda.device_count())), attacking(module):
        torch.manual_seed(seed)
        build = _builder(attack, threat, steps, targets, seed)
        model = _Logits(logits_fn, images)
        adversarial: Tensor = build(model)(images.contiguous(), labels)  # FAB and Square take views of rows
    _check_finite(adversarial, images, images, "the pixels that it became")
    return adversarial.detach()


def check_installed() -> None:
    """Raise UsageError if torchattacks is not installed."""
    require("torchattacks", "evaluation", "every attack but PGD")


class _Logits(nn.Module):
    """Wraps a function as the module that torchattacks needs."""

    def __init__(self, logits_fn: Callable[[Tensor], Tensor], images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.logits_fn = partial(logits_fn)  # not a child module, because `attacking` sets its mode
        self.device = nn.Parameter(images.new_empty(0), requires_grad=False)  # torchattacks reads its device

    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits_fn(images)
        _check_finite(logits, images, self.images, "its logits")
        if images.requires_grad:  # sign(NaN) is 0, and APGD would not move
            images.register_hook(lambda gradient: _check_finite(gradient, images, self.images, "its gradients"))
        return logits


def _check_finite(found: Tensor, rows: Tensor, images: Tensor, what: str) -> None:
    """Raise RunError for outputs that are not finite, from which torchattacks would compute images that look robust or
    are invalid. Attacks evaluate some rows only, so the reported image is the nearest one."""
    good = found.detach().flatten(1).isfinite().all(1)
    if not bool(good.all()):
        row = rows[int(good.int().argmin())].detach()
        far = (images - row).nan_to_num(nan=0.0).abs().flatten(1).amax(1)
        at = int(far.argmin()) if len(rows) < len(images) else int(good.int().argmin())
        raise RunError(
            f"image {at + 1} of {len(images)} was not attacked: {what} are not finite. Compute in float32, or look at "
            f"what logits_fn gives for images[{at}]",
            "not_finite",
            image=at,
        )


def _builder(
    attack: Name, threat: ThreatModel, steps: int, targets: int | None, seed: int
) -> Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]:
    check_installed()
    import torchattacks

    settings: dict[str, Any] = {
        "norm": _NORMS[threat.norm],
        "eps": threat.eps,
        "n_restarts": 1,
        "seed": seed,
        ("n_queries" if attack == "square" else "steps"): steps,
    }
    if targets is not None:
        settings["n_classes"] = targets + 1  # torchattacks uses it only to count targets
    match attack:
        case "apgd" | "apgd-dlr":
            return partial(torchattacks.APGD, loss="dlr" if attack == "apgd-dlr" else "ce", **settings)
        case "apgd-t":
            return partial(torchattacks.APGDT, **settings)
        case "fab-t":
            return partial(torchattacks.FAB, multi_targeted=True, **settings)
        case "square":
            return partial(torchattacks.Square, **settings)


def _check_tiles(threat: ThreatModel, height: int, width: int) -> None:
    """Raise UsageError where Square's first windows, of 80% of the pixels, or the tiles of its L2 start, would not fit
    into the image: torchattacks then ends with an error of shapes."""
    window = max(round(math.sqrt(0.8 * height * width)), 1)
    tile = height // 5
    fits = window + (threat.norm == "l2" and window % 2 == 0) <= min(height, width)
    for side in (height, width) if threat.norm == "l2" else ():
        # Tiles of one pixel may lie outside the image.
        fits &= tile == 1 or (tile > 1 and (height - 5 * tile) // 2 + side // tile * tile <= side)
    if not fits:
        message = f"Square cannot tile images of {height}x{width}: bring them to 64x64 or 224x224, for instance"
        raise UsageError(message, "not_tileable", size=(height, width))


TARGETS: Final = 9
LIGHT_TARGETS: Final = 3
QUERIES: Final = 5000
FEWEST: Final[dict[Name, int]] = {"apgd": 2, "apgd-dlr": 3, "apgd-t": 4, "fab-t": 2, "square": 2}
"""Classes that an attack compares: the ratio divides by a difference to the third logit, its targeted form to the
fourth."""


@dataclass(frozen=True)
class Part:
    """One component attack with its steps (Square: queries) and targets."""

    attack: Name
    steps: int
    targets: int | None = None


def parts(spec: AttackSpec, classes: int) -> list[Part]:
    """Component attacks in order, each run on the images still classified correctly, for `classes` classes.

    There are at most as many targets as wrong classes. Raises UsageError for PGD, which needs no classifier, and where
    a part needs more classes.
    """
    found = _parts(spec, classes)
    fewest = max(FEWEST[part.attack] for part in found)
    if classes < fewest:
        fewer = f"take {spec.ball}@apgd-ce or {spec.ball}@square, or " if classes >= FEWEST["apgd"] else "take "
        raise UsageError(
            f"{spec} compares the logits of at least {fewest} labels, and there are {classes} to choose from: "
            f"{fewer}more labels",
            "too_few_labels",
            labels=classes,
            fewest=fewest,
        )
    return found


def _parts(spec: AttackSpec, classes: int) -> list[Part]:
    targets, light = min(TARGETS, classes - 1), min(LIGHT_TARGETS, classes - 1)
    match spec.kind:
        case "apgd-ce":
            return [Part("apgd", spec.steps)]
        case "apgd-dlr":
            return [Part("apgd-dlr", spec.steps)]
        case "apgd-t":
            return [Part("apgd-t", spec.steps, targets)]
        case "square":
            return [Part("square", spec.steps)]
        case "autoattack":
            first = [Part("apgd", spec.steps), Part("apgd-t", spec.steps, targets)]
            return [*first, Part("fab-t", spec.steps, targets), Part("square", QUERIES)]
        case "autoattack-light":
            return [Part("apgd", spec.steps), Part("apgd-t", spec.steps, light)]
        case _:
            raise UsageError(f"{spec} is PGD, and no attack of torchattacks: call attacks.pgd", "is_pgd")
