"""Bytes that this process sends in a training step, beside the plan's.

    python sending.py FOLDER CHANGES...    # each a dict of train's arguments and of Settings, as Python

Started by torchrun's environment in two processes. Prints a line for each of CHANGES: what was gathered and what was
averaged in the second of two steps, in bytes that a ring sends, and what the plan says of both.
"""

from __future__ import annotations

import sys
from ast import literal_eval
from pathlib import Path
from typing import Any

import torch
from small_clip import OBJECTIVES, WIDTH, blueprint_of, train_on_noise
from torch import Tensor

from robustclip.planning.costs import sent
from robustclip.planning.settings import Settings
from robustclip.runs import distributed

SHARE = 4


class Counted:
    """Bytes of gathered rows and of averaged messages, but for single numbers, as rings of n processes send them."""

    def __init__(self) -> None:
        self.gather, self.reduce = distributed.gather, distributed.reduce
        self.rows = self.means = 0.0

    def gathered(self, values: Tensor) -> Tensor:
        self.rows += (distributed.count() - 1) * values.nbytes
        return self.gather(values)

    def reduced(self, values: Tensor, how: str) -> Tensor:
        if values.numel() > 1:
            self.means += 2 * (distributed.count() - 1) / distributed.count() * values.nbytes
        return self.reduce(values, how)


def of_steps(folder: Path, changes: dict[str, Any], steps: int) -> tuple[float, float]:
    counted = Counted()
    distributed.gather, distributed.reduce = counted.gathered, counted.reduced
    try:
        objective = OBJECTIVES[changes.get("objective", "clip")]
        given = {name: value for name, value in changes.items() if name != "objective"}
        train_on_noise(folder / str(steps), blueprint_of("vit"), SHARE, objective, steps=steps, **given)
    finally:
        distributed.gather, distributed.reduce = counted.gather, counted.reduce
    return counted.rows, counted.means


def main() -> None:
    for number, text in enumerate(sys.argv[2:]):
        changes: dict[str, Any] = literal_eval(text)
        folder = Path(sys.argv[1]) / str(number)
        one, two = (of_steps(folder, changes, steps) for steps in (1, 2))
        energetic = changes.get("objective", "clip").startswith("energetic ")
        known = {name: value for name, value in changes.items() if name not in ("objective", "dtype")}
        settings = Settings(
            "vit",
            1,
            SHARE * distributed.count(),
            objective=changes.get("objective", "clip").removeprefix("energetic "),
            energy=0.5 * energetic,
            energy_steps=3 * energetic,
            **known,
        )
        weights = sum(weight.numel() for weight in blueprint_weights())
        dtype = str(changes.get("dtype", torch.float32)).removeprefix("torch.")
        planned = sent(settings, WIDTH, distributed.count(), weights, weights, dtype)
        print(two[0] - one[0], two[1] - one[1], planned.embeddings, planned.gradients, flush=True)


def blueprint_weights() -> list[Tensor]:
    from robustclip.referees.openclip import build_image_tower

    return list(build_image_tower(blueprint_of("vit").model_cfg).parameters())


if __name__ == "__main__":
    main()
