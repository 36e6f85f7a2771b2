"""Read the settings that determine a recipe's cost from its flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

from robustclip.errors import UsageError
from robustclip.recipes import Recipe
from robustclip.runs.processes import Place

LOG_EVERY = 10  # the trainer's own, which recipes leave as it is


@dataclass(frozen=True)
class Settings:
    """Fields are named as the flags are; a recipe without one has the trainer's default."""

    start: str
    steps: int
    batch_size: int
    architecture: str | None = None
    attack_steps: int = 0
    objective: str = "clip"
    split: str | None = None
    clean_weight: float = 0.0
    anchor: float = 0.0
    accumulate: int = 1
    attack_negatives: str = "gathered"
    grad_checkpointing: bool = False
    frozen_statistics: bool = False
    evaluate_every: int = 0
    channels_last: bool = False
    dtype: str = "auto"
    device: str = "auto"

    @property
    def coupled(self) -> bool:
        """Whether an image's loss depends on the others of its batch."""
        return self.objective in ("clip", "siglip")

    @property
    def reads_clean(self) -> bool:
        """Whether the update embeds the untouched images too, with gradients."""
        return self.objective == "trades" or self.anchor > 0

    @property
    def reads_original(self) -> bool:
        """Whether the tower as it was before training is kept and asked."""
        return self.objective == "fare" or self.anchor > 0

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size

    def share(self, count: int) -> int:
        """Pairs of a batch that each of `count` processes takes. Raises UsageError where it does not divide."""
        return Place(world_size=count).share(self.batch_size)

    def part(self, count: int) -> int:
        """Pairs whose activations a process holds at a time."""
        return ceil(self.share(count) / self.accumulate)


def of_recipe(recipe: Recipe, arguments: Mapping[str, Any], samples: int | None = None) -> Settings:
    """What a call of `recipe` with `arguments` (all of them, defaults included) would train, for `samples` pairs if
    given, else for the recipe's steps.

    Raises UsageError for a recipe that says no tower or no batch size.
    """
    known = dict(arguments)
    if lacking := [name for name in ("start", "steps", "batch_size") if not known.get(name)]:
        flags = ", ".join("--" + name.replace("_", "-") for name in lacking)
        raise UsageError(
            f"{recipe.name} does not say what a plan must know: {flags}. Give it where the recipe has the flag, "
            "e.g. --start emoji-vanilla or --start ViT-B-32:laion2b_s34b_b79k"
        )
    if samples is not None:
        known["steps"] = ceil(samples / known["batch_size"])
    return Settings(**{field.name: known[field.name] for field in fields(Settings) if field.name in known})
