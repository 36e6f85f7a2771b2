"""Mutual information maps in a report: each latent cell's share, by a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from robustclip.diffusion.mutual_information import MARK, METRIC, pointwise_mi
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.selection import whole_in_cells
from robustclip.evaluation.generation.scorers import DRAWS
from robustclip.explanation.looks import CLEAN, ENERGY, POINTING
from robustclip.explanation.measures import energy_in_box, pointing_hit
from robustclip.pages.inputs import Pair
from robustclip.pages.report import About, View
from robustclip.pages.viewers import Seen, boxes_of


class InformationViewer:
    """A diffusion model that maps each cell's share of the MMSE gap (`pointwise_mi`) of a picture and its text.

    A cell's share is summed over channels, cut at 0 as GradCAM's maps are, and scaled to a greatest value of 1. No
    attack is made on it. Raises UsageError for a name or folder that holds no diffusion model.
    """

    def __init__(self, given: str, device: torch.device, *, dtype: torch.dtype, seed: int) -> None:
        name = given.removeprefix(MARK)
        self.model = load_diffusion(name, device, dtype=dtype)
        self.name, self.seed = f"{MARK}{Path(name).name}", seed

    def about(self) -> About:
        """For the report's foot."""
        layer = f"latent cells of {self.model.factor}x{self.model.factor} pixels"
        return About(self.name, METRIC, layer, self.model.fingerprint)

    @torch.no_grad()
    def see(self, pairs: Sequence[Pair], images: Float[Tensor, "b 3 H W"]) -> tuple[Seen, list[View]]:
        """What can be counted of a batch of untouched images, and each one's part of the page."""
        latents = self.model.encode(whole_in_cells(self.model, images))
        texts, empty = self.model.embed_prompts([pair.text for pair in pairs]), self.model.embed_prompts([""])
        found = pointwise_mi(self.model, latents, texts, empty, draws=DRAWS, seed=self.seed)
        cells = found.maps.sum(1, keepdim=True).clamp(min=0)
        size = (images.shape[-2], images.shape[-1])
        maps = F.interpolate(cells, size, mode="bilinear", align_corners=False)[:, 0].float().cpu()
        greatest = maps.amax((1, 2), keepdim=True)
        maps = maps / torch.where(greatest > 0, greatest, 1)
        nats, errors = found.nats.float().cpu(), found.standard_error.float().cpu()
        numbers = {METRIC: nats}
        if (boxes := boxes_of(pairs)) is not None:
            numbers |= {POINTING: pointing_hit(maps, boxes).float(), ENERGY: energy_in_box(maps, boxes)}
        views = [
            View(
                self.name,
                float(nats[row]),
                map=maps[row] if greatest[row] > 0 else None,
                numbers={"standard error": float(errors[row])}
                | ({POINTING: bool(numbers[POINTING][row])} if boxes is not None else {}),
                why="" if greatest[row] > 0 else "zero everywhere: no cell speaks for the text",
            )
            for row in range(len(pairs))
        ]
        return Seen({}, {CLEAN: numbers}), views
