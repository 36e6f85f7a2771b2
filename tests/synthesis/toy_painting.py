"""A recipe that paints 200 tiny pictures in a few seconds, to be killed by the tests. Each painting leaves a line in
the file that PAINTED names."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import NonNegativeFloat, PositiveInt

from robustclip.runs.folder import ResumeFrom, Run, RunFolder
from robustclip.synthesis.items import Item, Seeds, items_of
from robustclip.synthesis.painted import Painted, Watch
from robustclip.synthesis.prompts import parse_all
from robustclip.synthesis.studio import paint_all

STEPS = 3


def recipe(
    prompts: Annotated[list[str] | None, "what to paint"] = None,
    *,
    count: PositiveInt = 200,
    seeds: Seeds = [0],  # noqa: B006
    batch_size: PositiveInt = 8,
    pause: NonNegativeFloat = 0.0,
    resume: ResumeFrom | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Paint noise."""
    arguments = dict(locals())
    items = items_of(parse_all(prompts or [f"picture number {number}" for number in range(count)]), seeds)
    run = Run.start(out, resume, recipe="toy", verb="synthesize", arguments=arguments)

    def paint(batch: Sequence[Item], watch: Watch) -> Painted:
        painted = noise(batch, watch, pause)
        if "PAINTED" in os.environ:
            with open(os.environ["PAINTED"], "a", encoding="utf-8") as file:
                file.writelines(f"{item.id}\n" for item in batch)
        return painted

    with run:
        return paint_all(items, paint, run=run, steps=STEPS, batch_size=batch_size).numbers()


def noise(batch: Sequence[Item], watch: Watch, pause: float = 0.0) -> Painted:
    """Each picture gets its own noise, and each step makes it darker."""
    images = torch.stack([torch.rand(3, 8, 8, generator=item.generator("noise")) for item in batch])
    frames = []
    for step in range(1, STEPS + 1):
        images = images * 0.9
        time.sleep(pause)
        watch(step, images, {"similarity": images.mean((1, 2, 3))})
        frames.append(images)
    film = torch.stack(frames)
    return Painted(images, images.mean((1, 2, 3)), {"similarity": film.mean((2, 3, 4))}, film, [1, 2, 3])
