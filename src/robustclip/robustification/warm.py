"""Warm-started attacks: each sample's perturbation is kept between epochs.

After ATTA (Zheng et al. 2020, "Efficient Adversarial Training with Transferable Adversarial Examples"): an attack of
few steps that starts at an old end comes farther than one that starts at random. Theirs moves perturbations along with
the augmentation; here they stay where they are on the picture (ours), whatever augmentation did to what it shows.
Worth it only where samples come again: docs/cost.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError

MOST: Final = 100_000
"""Samples whose perturbation is kept, the latest; 25 kB each at 64x64, 300 kB at 224x224, and in every checkpoint."""


class WarmStarts:
    """The last perturbation of each sample by its id, in half precision on the CPU."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.ends: dict[str, Tensor] = {}

    def starts(
        self, images: Float[Tensor, "b 3 h w"], ids: Sequence[str], threat: ThreatModel, random: list[torch.Generator]
    ) -> Float[Tensor, "b 3 h w"]:
        """Perturbations inside the threat model to start from: the last ones, of new samples random ones."""
        fresh = threat.random_start(images, random)
        known = [self.ends.get(one) for one in ids]
        rows = [new if old is None else old.to(new) for old, new in zip(known, fresh, strict=True)]
        return threat.project(torch.stack(rows))

    def keep(self, perturbations: Float[Tensor, "b 3 h w"], ids: Sequence[str]) -> None:
        """Remember where attacks ended; the samples seen longest ago are forgotten where there are too many."""
        for one, end in zip(ids, perturbations.detach().half().cpu(), strict=True):
            self.ends.pop(one, None)
            self.ends[one] = end.clone()
        while len(self.ends) > self.most:
            del self.ends[next(iter(self.ends))]

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"ids": list(self.ends), "ends": torch.stack(list(self.ends.values())) if self.ends else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        ends = state["ends"]
        self.ends = {} if ends is None else dict(zip(state["ids"], ends.cpu().clone().unbind(), strict=True))


def refuse_warm_starts(processes: int) -> None:
    """Raise UsageError where several processes train: a sample may come to another one the next time."""
    if processes > 1:
        raise UsageError(
            f"warm starts are kept by one process, and {processes} train here: leave --warm-start out, or launch one"
        )
