"""torchattacks behind our signature: other people's attacks, to check ours against and to evaluate with.

They attack classifiers, so in place of a loss they take logits and labels. torchattacks pins an old `requests` that
other packages cannot live with, so it comes with `pip install 'robustclip[evaluation]'` only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustclip.attacks.gradient import attacking
from robustclip.errors import UsageError
from robustclip.threat import ThreatModel

Name = Literal["pgd", "apgd", "square"]
_NORMS: Final = {"l2": "L2", "linf": "Linf"}


def library_attack(
    images: Float[Tensor, "b 3 h w"],
    logits_fn: Callable[[Tensor], Tensor],
    threat: ThreatModel,
    *,
    labels: Int[Tensor, " b"],
    attack: Name = "pgd",
    steps: int,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    module: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """Images inside `threat` whose `logits_fn(images) -> (B, classes)` no longer name `labels`.

    attack      "pgd" (PGD or PGDL2, by the threat's norm), "apgd" (step size of its own; Croce & Hein 2020), or
                "square" (no gradients; `steps` counts its queries; Andriushchenko et al. 2020).
    step_size   of "pgd", as in `attacks.pgd`.
    restarts    of "apgd" and "square".
    generator   seeds the attack; torch's global generators, from which torchattacks draws, are put back afterwards.

    Other arguments are those of `attacks.pgd`. Raises UsageError when torchattacks is not installed, for an unknown
    attack, and for settings that an attack would ignore.
    """
    threat.check(images)
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device if generator else "cpu"))
    with torch.random.fork_rng(range(torch.cuda.device_count())), attacking(module):
        torch.manual_seed(seed)
        build = _builder(attack, threat, steps, step_size, random_start, restarts, seed)
        adversarial: Tensor = build(_Logits(logits_fn, images))(images, labels)
    return adversarial.detach()


class _Logits(nn.Module):
    """A function in the clothes of the module torchattacks asks for."""

    def __init__(self, logits_fn: Callable[[Tensor], Tensor], images: Tensor) -> None:
        super().__init__()
        self.logits_fn = partial(logits_fn)  # not a child, even if it is a module: its mode is `attacking`'s business
        self.device = nn.Parameter(images.new_empty(0), requires_grad=False)  # where torchattacks reads the device

    def forward(self, images: Tensor) -> Tensor:
        return self.logits_fn(images)


def _builder(
    attack: str,
    threat: ThreatModel,
    steps: int,
    step_size: float | None,
    random_start: bool,
    restarts: int,
    seed: int,
) -> Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]:
    try:
        import torchattacks
    except ImportError as error:
        raise UsageError("torchattacks is not installed: pip install 'robustclip[evaluation]'") from error
    eps, norm = threat.eps, _NORMS[threat.norm]
    if attack == "pgd":
        if restarts != 1:
            raise UsageError("torchattacks' PGD knows no restarts: use attacks.pgd or attack='apgd'")
        step = 2.5 * eps / steps if step_size is None else step_size
        kind = torchattacks.PGDL2 if threat.norm == "l2" else torchattacks.PGD
        return lambda model: kind(model, eps=eps, alpha=step, steps=steps, random_start=random_start)
    if attack not in ("apgd", "square"):
        raise UsageError(f"unknown library attack {attack!r}: use pgd, apgd or square")
    if step_size is not None or not random_start:
        raise UsageError(f"{attack} has its own start and step size: leave random_start and step_size out")
    settings: dict[str, Any] = {"norm": norm, "eps": eps, "n_restarts": restarts, "seed": seed}
    if attack == "apgd":
        return lambda model: torchattacks.APGD(model, steps=steps, **settings)
    return lambda model: torchattacks.Square(model, n_queries=steps, **settings)
