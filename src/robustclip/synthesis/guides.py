"""Load the guiding referees with their weights and targets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.data.images import load_image
from robustclip.errors import UsageError
from robustclip.losses.similarity import Cosine, Spherical, Target
from robustclip.referees.base import TwoTower
from robustclip.referees.judging import fingerprint
from robustclip.referees.registry import load_referee
from robustclip.runs.devices import chosen_dtype
from robustclip.synthesis.prompts import Part, Prompt, check_context

Given = str | Path | TwoTower
NUMBER = re.compile(r"[+]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
PROBE = 8  # images of the pass that `--dtype measure` times


class Guides:
    """One or more CLIPs that say how near a picture is to its prompt; of several, the weighted mean says it.

    A prompt's parts are embedded once, however many pictures are made of it.
    """

    def __init__(self, referees: Sequence[TwoTower], weights: Sequence[float], dtype: torch.dtype) -> None:
        self.referees = list(referees)
        self.weights = list(weights)
        self.dtype = dtype
        self._known: list[dict[Part, Tensor]] = [{} for _ in referees]

    @classmethod
    def load(
        cls,
        given: Given | Sequence[Given],
        *,
        device: torch.device,
        dtype: str | torch.dtype = "auto",
        recorded: str | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> Guides:
        """Referees by name, folder or object, `NAME=WEIGHT` for one of several that counts more or less.

        They are in eval mode and frozen. `recorded` is the dtype of the run to go on with (see `chosen_dtype`).
        Raises UsageError for none, one that comes twice, and a weight that is not a positive number.
        """
        listed = [given] if isinstance(given, str | Path | TwoTower) else list(given)
        if not listed:
            raise UsageError("there is no referee to guide: give one, e.g. emoji-robust (robustclip referees list)")
        named = [one if isinstance(one, TwoTower) else parse_weight(str(one)) for one in listed]
        names = [one[0] for one in named if not isinstance(one, TwoTower)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(
                f"the referee {twice[0]} comes twice: give it once, as {twice[0]}=2 if it is to count double"
            )
        referees, weights = [], []
        for one in named:
            referee, weight = (
                (one, 1.0) if isinstance(one, TwoTower) else (load_referee(one[0], device=str(device)), one[1])
            )
            referee = referee.to(device).eval().requires_grad_(False)
            if channels_last:
                referee.image_tower.to(memory_format=torch.channels_last)
            referees.append(referee)
            weights.append(weight)
        probe = torch.zeros(PROBE, 3, *referees[0].image_size, device=device)
        chosen = chosen_dtype(dtype, referees[0].image_tower, probe, recorded=recorded)
        if compile:
            for referee in referees:
                referee.image_tower.compile()
        return cls(referees, weights, chosen)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the first of them sees."""
        return self.referees[0].image_size

    @property
    def device(self) -> torch.device:
        return self.referees[0].device

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises UsageError for texts that are too long for one of them and for pictures that can't be read."""
        for referee in self.referees:
            check_context(referee, prompts)
        for prompt in prompts:
            prompt.check_images()

    def targets(self, prompts: Sequence[Prompt]) -> list[Target]:
        """What each referee should see in one picture of each prompt."""
        longest = max(len(prompt.parts) for prompt in prompts)
        weights, stops = torch.zeros(len(prompts), longest), torch.full((len(prompts), longest), -torch.inf)
        for row, prompt in enumerate(prompts):
            weights[row, : len(prompt.parts)] = torch.tensor([part.weight for part in prompt.parts])
            stops[row, : len(prompt.parts)] = torch.tensor([part.stop for part in prompt.parts])
        stopping = stops.to(self.device) if stops.isfinite().any() else None
        targets = []
        for referee, known, share in zip(self.referees, self._known, self.weights, strict=True):
            self._embed(referee, known, prompts)
            directions = torch.zeros(len(prompts), longest, referee.width, device=self.device)
            for row, prompt in enumerate(prompts):
                directions[row, : len(prompt.parts)] = torch.stack([known[part] for part in prompt.parts])
            targets.append(Target(referee, directions, weights.to(self.device), share, stopping))
        return targets

    def cosine(self, prompts: Sequence[Prompt], *, normalise: bool = True) -> Cosine:
        """The loss of CLIPAG for these prompts; without `normalise`, as CLIPDraw's: see TwoTower.unnormalised."""
        targets = self.targets(prompts)
        if not normalise:
            targets = [replace(target, referee=target.referee.unnormalised()) for target in targets]
        return Cosine(targets, self.dtype)

    def spherical(self, prompts: Sequence[Prompt]) -> Spherical:
        """The loss of VQGAN-CLIP for these prompts."""
        return Spherical(self.targets(prompts), self.dtype)

    @torch.no_grad()
    def similarity(self, images: Float[Tensor, "p 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " p"]:
        """Weighted sum over each prompt's parts of their cosine with its picture, by itself, without views: the cosine,
        for a prompt of one text."""
        return self.cosine(prompts).similarity(images.unsqueeze(1))[:, 0]

    def directions(self, prompts: Sequence[Prompt]) -> Float[Tensor, "p d"]:
        """For each prompt the vector whose product with a picture's embeddings, of all guides side by side, is the
        similarity: to rank many pictures that were embedded once (see robustclip.inits.pool)."""
        return torch.cat(
            [
                weight / sum(self.weights) * torch.einsum("ptd,pt->pd", target.directions, target.weights)
                for weight, target in zip(self.weights, self.targets(prompts), strict=True)
            ],
            dim=1,
        )

    def describe(self) -> list[dict[str, Any]]:
        """Name, weight and fingerprint of each, as a run keeps them, so that none of them judges its own pictures."""
        return [
            {"name": referee.card.name, "weight": weight, "fingerprint": fingerprint(referee)}
            for referee, weight in zip(self.referees, self.weights, strict=True)
        ]

    def _embed(self, referee: TwoTower, known: dict[Part, Tensor], prompts: Sequence[Prompt]) -> None:
        new = list(dict.fromkeys(part for prompt in prompts for part in prompt.parts if part not in known))
        texts = [part for part in new if part.kind == "text"]
        if texts:
            known.update(zip(texts, referee.embed_texts([part.content for part in texts]), strict=True))
        for part in new:
            if part.kind == "image":
                image = load_image(part.content)[None].to(self.device)
                with torch.no_grad():
                    known[part] = referee.embed_images(image)[0]


def parse_weight(text: str) -> tuple[str, float]:
    """`NAME=WEIGHT` as (name, weight); a name alone weighs 1.

    Raises UsageError for a weight that is not a positive number.
    """
    name, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, 1.0
    if NUMBER.fullmatch(weight.strip()) is None or not 0 < float(weight) < float("inf"):
        raise UsageError(
            f"the weight {weight[:40]!r} of the referee {name[:100]!r} is not a positive number: "
            f"write e.g. {name[:100]}=0.5"
        )
    return name, float(weight)
