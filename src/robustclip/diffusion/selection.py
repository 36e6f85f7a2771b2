"""A diffusion model's best samples of its own: MI-TUNE's Alg. 1, with other selectors beside mutual information."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from robustclip.diffusion.mutual_information import Kappa, pointwise_mi, sample_with_mi
from robustclip.diffusion.stable import LatentDiffusion
from robustclip.errors import RunError
from robustclip.runs.files import atomic_write, is_file
from robustclip.runs.rng import generator

Selector = Literal["mi", "gap", "random"]
Scorer = Callable[[Float[Tensor, "m 3 H W"], str], Float[Tensor, " m"]]
"""(pictures in [0,1], prompt) -> a score each, the higher the better: of a referee."""


@dataclass(frozen=True)
class Selection:
    """How samples are drawn and chosen: `keep` of `samples` a prompt.

    by: "mi", the information on the trajectory (the paper); "gap", the MMSE gap of the finished latent; "random"; or a
    `Scorer`. The samples of a prompt are the same whatever chooses among them.
    """

    by: Selector | Scorer = "mi"
    samples: int = 50
    keep: int = 1
    steps: int = 100
    guidance: float = 7.5
    kappa: Kappa = "exact"
    skip: int = 0
    size: tuple[int, int] = (512, 512)
    batch_size: int = 8
    seed: int = 0

    @torch.no_grad()
    def choose(
        self, model: LatentDiffusion, prompt: str, number: int, round_: int = 1
    ) -> tuple[Float[Tensor, "k c h w"], Float[Tensor, " m"]]:
        """(the chosen latents, best first; the scores of all samples) of prompt `number` in this round."""
        own = generator(self.seed, f"choice for {prompt}", round_, number)
        made, scores = [], []
        for first in range(0, self.samples, self.batch_size):
            count = min(self.batch_size, self.samples - first)
            latents, nats = self._sampled(model, prompt, range(first, first + count), round_, number)
            made.append(latents)
            scores.append(self._scored(model, latents, nats, prompt, own))
        latents, found = torch.cat(made), torch.cat(scores)
        return latents[found.topk(self.keep).indices], found

    def _sampled(
        self, model: LatentDiffusion, prompt: str, places: range, round_: int, number: int
    ) -> tuple[Tensor, Tensor]:
        streams = [generator(self.seed, f"sample of {prompt}", round_, number, place) for place in places]
        shape = (model.channels, *(side // model.factor for side in self.size))
        start = torch.stack([torch.randn(shape, generator=stream) for stream in streams]).to(model.device)
        every = torch.zeros(len(places), dtype=torch.long, device=model.device)
        return sample_with_mi(
            model,
            start,
            model.embed_prompts([prompt]).rows(every),
            model.embed_prompts([""]),
            generators=streams,
            steps=self.steps,
            guidance=self.guidance,
            kappa=self.kappa,
            skip=self.skip,
        )

    def _scored(
        self, model: LatentDiffusion, latents: Tensor, nats: Tensor, prompt: str, own: torch.Generator
    ) -> Float[Tensor, " m"]:
        if self.by == "mi":
            return nats.float().cpu()
        if self.by == "random":
            return torch.rand(len(latents), generator=own)
        if callable(self.by):
            return self.by(model.decode(latents).clamp(0, 1), prompt).float().cpu()
        every = torch.zeros(len(latents), dtype=torch.long, device=model.device)
        texts, empty = model.embed_prompts([prompt]).rows(every), model.embed_prompts([""])
        return pointwise_mi(model, latents, texts, empty, draws=1, seed=self.seed).nats.float().cpu()


def chosen_of(
    selection: Selection, model: LatentDiffusion, prompt: str, number: int, folder: Path, round_: int = 1
) -> Float[Tensor, "k c h w"]:
    """`Selection.choose`, kept in `folder`: what lies there whole is not sampled again."""
    path = folder / f"{number:06d}.safetensors"
    if is_file(path):
        try:
            return load_file(path)["latents"]
        except (SafetensorError, KeyError) as error:
            raise RunError(f"{path} is damaged: remove its folder and those of later rounds, and resume") from error
    latents, scores = selection.choose(model, prompt, number, round_)
    with atomic_write(path) as file:
        file.write(save({"latents": latents.float().cpu().contiguous(), "scores": scores}, {"prompt": prompt}))
    return latents.float().cpu()
