"""Test-time defences around a referee, and the attackers that know them: TTC, CLIPure-Cos, randomised smoothing.

A defence takes the base's embedding function, images and a source of noise, and gives embeddings. Its accuracy means
something under an adaptive attack only (Athalye et al. 2018; Tramer et al. 2020): `attackers` gives the referees whose
gradients an attack on a defended one follows. The adaptive one differentiates through the defence, with the identity as
the gradient of a step that has none (BPDA, `straight_through`), in expectation over noise that is not the defender's
(EOT, the mean embedding of several draws). The static one is the base: an attacker who does not know the defence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.attacks.threat import broadcast
from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.smoothed import WrappedTower, wrapped
from robustclip.runs.rng import generator

Embed = Callable[[Tensor], Tensor]  # images (B,3,H,W) in [0,1] -> (B,D), not normalised
STATIC: Final = "static "  # the attack's spec follows
BLANK: Final = "a photo of a."  # CLIPure's template without a name
NAMES: Final = ("ttc", "clipure:cos")


class Defence(nn.Module):
    """A test-time defence: `forward(embed, images, noise)` gives the defended embeddings (B,D), with the gradients to
    the images that an adaptive attack follows.

    `name` follows the ~ of the referee's name, `constants` are attributes for its card, and `draws` is over how many
    draws of noise an attack takes the mean (1: the defence draws none).
    """

    name: str
    draws: int = 1
    constants: tuple[str, ...] = ()


@final
class Counterattack(Defence):
    """Test-time counterattack (TTC, Xing et al. 2025): move the image so that its own embedding changes most.

        delta_0    ~ U(-eps, eps)
        tau        = |f(x + delta_0) - f(x)| / |f(x)|
        delta_i+1  = project(delta_i + step_size * sign(grad |f(x + delta_i) - f(x)|^2))
        f(x + sum_i w_i delta_i),  w_i = softmax(beta * i)      if tau < threshold, else f(x + delta_0)

    Every x + delta is clipped to [0,1]. Constants are those of its code, in [0,1] pixels. The noise is shared by the
    images of a call (ours), so that an embedding does not depend on its batch. A sign is constant almost everywhere,
    and so are its deltas: the gradient is that of f at the moved image, as BPDA would have it.
    """

    name, draws = "ttc", 4
    constants = ("eps", "steps", "step_size", "threshold", "beta")

    def __init__(
        self,
        eps: float = 4 / 255,
        steps: int = 2,
        step_size: float = 1 / 255,
        threshold: float = 0.2,
        beta: float = 2.0,
    ) -> None:
        super().__init__()
        self.eps, self.steps, self.step_size, self.threshold, self.beta = eps, steps, step_size, threshold, beta

    def forward(self, embed: Embed, images: Float[Tensor, "b 3 h w"], noise: torch.Generator) -> Float[Tensor, "b d"]:
        drawn = torch.rand(images.shape[1:], generator=noise).to(images)
        return embed(images + self._change(embed, images.detach(), self.eps * (2 * drawn - 1)))

    @torch.enable_grad()
    def _change(
        self, embed: Embed, images: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "3 h w"]
    ) -> Float[Tensor, "b 3 h w"]:
        delta = (images + noise).clamp(0, 1) - images
        with torch.no_grad():
            before = embed(images).float()
            tau = (embed(images + delta).float() - before).norm(dim=1) / before.norm(dim=1)
        changes = [delta]
        for _ in range(self.steps):
            leaf = delta.detach().requires_grad_()
            squared = (embed(images + leaf).float() - before).square().sum()
            (gradient,) = torch.autograd.grad(squared, leaf)
            moved = (leaf.detach() + self.step_size * gradient.sign()).clamp(-self.eps, self.eps)
            delta = (images + moved).clamp(0, 1) - images
            changes.append(delta)
        weights = torch.softmax(self.beta * torch.arange(len(changes)), 0).tolist()
        counter = torch.stack([weight * change for weight, change in zip(weights, changes, strict=True)]).sum(0)
        return torch.where(broadcast(tau < self.threshold, images), counter, changes[0]).detach()


@final
class Purification(Defence):
    """CLIPure-Cos (Zhang et al. 2025): `steps` steps of the embedding's direction u towards the blank template's, t.

        u  <-  unit(u + step_size * g / |g|),  g = grad_u cos(u, t) = t - (u . t) u

    Constants are those of its code, which divides g by its norm over the batch: here by the image's own (ours), so that
    an embedding does not depend on its batch. A step turns u by arctan(step_size) in the plane of u and t, with 30 by
    88.1 degrees and past t, so that the next step turns it back: see docs/benchmark.md. Its gradient is exact.
    """

    name = "clipure:cos"
    constants = ("steps", "step_size")

    def __init__(self, blank: Float[Tensor, " d"], *, steps: int = 10, step_size: float = 30.0) -> None:
        super().__init__()
        self.steps, self.step_size = steps, step_size
        self.blank: Tensor
        self.register_buffer("blank", F.normalize(blank.float(), dim=0), persistent=False)

    def forward(self, embed: Embed, images: Float[Tensor, "b 3 h w"], noise: torch.Generator) -> Float[Tensor, "b d"]:
        embeddings = embed(images)
        turned = unit(embeddings)
        with torch.autocast(images.device.type, enabled=False):  # each step magnifies the rounding of its product
            for _ in range(self.steps):
                towards = self.blank - (turned @ self.blank)[:, None] * turned
                turned = F.normalize(turned + self.step_size * F.normalize(towards, dim=1), dim=1)
        return turned * embeddings.float().norm(dim=1, keepdim=True)


def straight_through(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`function(images)`, of their shape, with the gradient of the identity (BPDA), for what has none of use."""
    return images + (function(images) - images).detach()


@final
class DefendedTower(WrappedTower):
    """Images of any size in [0,1] to defended embeddings. The defender's noise is of one seed, so that it is the same
    at each call; with `attacked`, the mean unit embedding over `defence.draws` draws that are new at each call."""

    kind = "defended"

    def __init__(
        self, tower: nn.Module, preprocess: Preprocess, defence: Defence, *, seed: int = 0, attacked: bool = False
    ) -> None:
        super().__init__()
        self.tower, self.preprocess, self.defence = tower, preprocess, defence
        self.seed, self.attacked, self.calls = seed, attacked, 0

    @property
    def spec(self) -> str:
        return f"~{self.defence.name}"

    def as_attacked(self) -> DefendedTower:
        return DefendedTower(self.tower, self.preprocess, self.defence, seed=self.seed, attacked=True)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d"]:
        """Defended embeddings, with gradients to the images."""
        if not self.attacked:
            return self.defence(self._embed, images, generator(self.seed, "defence"))
        self.calls += 1
        keys = [(self.calls, draw) for draw in range(self.defence.draws)]
        draws = [generator(self.seed, "attacked defence", *key) for key in keys]
        return torch.stack([unit(self.defence(self._embed, images, noise)) for noise in draws]).mean(0)

    def _embed(self, images: Tensor) -> Tensor:
        return self.tower(self.preprocess(images))


def defended(referee: TwoTower, defence: Defence, *, seed: int = 0) -> TwoTower:
    """`referee` behind a test-time defence, named NAME~DEFENCE; the weights are shared, not copied.

    `seed` is that of the defender's noise. Raises UsageError for a smoothed or defended referee.
    """
    tower = DefendedTower(referee.image_tower, referee.preprocess, defence.to(referee.device), seed=seed)
    constants = {name: getattr(defence, name) for name in defence.constants}
    return wrapped(referee, tower, {"defence": defence.name, **constants, "seed": seed})


def by_name(referee: TwoTower, name: str) -> TwoTower:
    """`defended` by a name of `NAMES`. Raises UsageError for another one."""
    if name == Counterattack.name:
        return defended(referee, Counterattack())
    if name == Purification.name:
        return defended(referee, Purification(referee.embed_texts([BLANK])[0]))
    raise UsageError(
        f"unknown defence {name[:40]!r}: write {' or '.join(f'REFEREE~{one}' for one in NAMES)}, "
        f"e.g. emoji-vanilla~{NAMES[0]}",
        "unknown_defence",
        given=name,
    )


def split_defence(name: str) -> tuple[str, str] | None:
    """The base referee's name and the defence's, of "emoji-vanilla~ttc"; None for a name without a defence.

    Raises UsageError for a defence without a base.
    """
    base, mark, text = name.rpartition("~")
    if not mark or text.partition(":")[0] not in {one.partition(":")[0] for one in NAMES}:
        return None
    if not base:
        raise UsageError(
            f"{name[:100]!r} lacks the base referee: write e.g. emoji-vanilla{name[:40]}", "no_base", given=name
        )
    return base, text


def attackers(referee: TwoTower) -> dict[str, TwoTower]:
    """The referees whose gradients attacks on `referee` follow, by what is put before the attack's name: "" for the
    adaptive one, and of a defended or smoothed referee also `STATIC`, its base."""
    tower = referee.image_tower
    if not isinstance(tower, WrappedTower):
        return {"": referee}
    return {
        "": referee.with_image_tower(tower.as_attacked(), referee.preprocess).eval(),
        STATIC: referee.with_image_tower(tower.tower, tower.preprocess).eval(),
    }
