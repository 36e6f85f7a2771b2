"""Watching a run: accuracy on a fixed batch under the attack it trains with and under a stronger one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustclip.attacks.gradient import pgd
from robustclip.data.batch import Batch
from robustclip.rng import generator
from robustclip.robustification.losses import contrastive
from robustclip.threat import ThreatModel

STRONG_STEPS = 20


@dataclass
class OverfitAlarm:
    """Rings when training overfits to its own attack: accuracy under the strong attack falls while under the weak one
    it holds (catastrophic overfitting, Wong et al. 2020). `drop` is how far below its best counts as fallen (ours)."""

    drop: float = 0.1
    best_weak: float = field(default=0.0, init=False)
    best_strong: float = field(default=0.0, init=False)

    def observe(self, weak: float, strong: float) -> bool:
        self.best_weak, self.best_strong = max(weak, self.best_weak), max(strong, self.best_strong)
        return strong <= self.best_strong - self.drop and weak > self.best_weak - self.drop


@torch.no_grad()
def matching_accuracy(images: Tensor, texts: Tensor, ids: Tensor) -> float:
    """The share of images (B,D) whose nearest text of the batch (B,D) carries their id."""
    nearest = (images @ texts.T).argmax(dim=1)
    return float((ids[nearest] == ids).float().mean())


def probe_accuracies(
    embed: Callable[[Tensor], Tensor],
    tower: nn.Module,
    texts: Tensor,
    probe: Batch,
    *,
    scale: float,
    threat: ThreatModel | None,
    attack_steps: int,
    seed: int,
) -> dict[str, float]:
    """Matching accuracy on `probe`: clean, and if a threat is given under `attack_steps` and `STRONG_STEPS` of PGD."""
    mode = tower.training
    tower.eval()
    with torch.no_grad():
        results = {"clean_accuracy": matching_accuracy(embed(probe.images), texts, probe.positives)}
    if threat is not None:
        for name, steps in (("weak_accuracy", attack_steps), ("strong_accuracy", STRONG_STEPS)):
            attacked = pgd(
                probe.images,
                lambda images: contrastive(embed(images), texts, probe.positives, scale),
                threat,
                steps=steps,
                coupled=True,
                keep="last",
                module=tower,
                generator=generator(seed, "probe", steps, device=probe.images.device),
            )
            with torch.no_grad():
                results[name] = matching_accuracy(embed(attacked), texts, probe.positives)
    tower.train(mode)
    return results
