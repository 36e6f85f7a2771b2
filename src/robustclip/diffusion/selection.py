"""Best-of-N selection of a diffusion model's own samples (MI-TUNE, Alg. 1), by mutual information or others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from robustclip.data.images import resize
from robustclip.diffusion.mutual_information import MARK, Form, Kappa, pointwise_mi, sample_with_mi
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.stable import LatentDiffusion, base_digest
from robustclip.errors import RunError
from robustclip.referees.pair_readers import is_pair_reader, load_pair_reader, pair_fingerprint
from robustclip.referees.registry import load_referee
from robustclip.referees.smoothed import fingerprint
from robustclip.runs import distributed
from robustclip.runs.files import atomic_write, is_file
from robustclip.runs.progress import watched
from robustclip.runs.rng import generator

NAME: Final = "{:06d}.safetensors"
Selector = Literal["mi", "gap", "random"]
Scorer = Callable[[Float[Tensor, "m 3 H W"], str], Float[Tensor, " m"]]
"""(pictures in [0,1], prompt) -> a score each, higher is better."""


@dataclass(frozen=True)
class Rater:
    """A `Scorer` with its referee's name and fingerprint."""

    name: str
    fingerprint: str
    score: Scorer

    def __call__(self, images: Float[Tensor, "m 3 H W"], prompt: str) -> Float[Tensor, " m"]:
        return self.score(images, prompt)


def whole_in_cells(model: LatentDiffusion, images: Float[Tensor, "m 3 H W"]) -> Float[Tensor, "m 3 h w"]:
    """Pictures on the model's device, resized to multiples of its cell if necessary."""
    height, width = (max(1, round(side / model.factor)) * model.factor for side in images.shape[-2:])
    return resize(images.to(model.device), (height, width))


@torch.no_grad()
def information_of(
    model: LatentDiffusion,
    images: Float[Tensor, "m 3 H W"],
    prompt: str,
    *,
    form: Form = "gap",
    draws: int = 1,
    seed: int = 0,
) -> Float[Tensor, " m"]:
    """Mutual information (`pointwise_mi`) of pictures in [0,1], resized by `whole_in_cells`, and a prompt: nats,
    float32."""
    latents = model.encode(whole_in_cells(model, images))
    texts = model.embed_prompts([prompt]).rows(torch.zeros(len(latents), dtype=torch.long, device=model.device))
    empty = model.embed_prompts([""])
    return pointwise_mi(model, latents, texts, empty, form=form, draws=draws, seed=seed).nats.float()


def load_rater(by: str, device: torch.device) -> Rater:
    """A score of pictures and a prompt: the mutual information of a diffusion model (`mi:NAME` or `mi:FOLDER`), the
    matching logit of a pair reader, or the cosine of a CLIP. Raises UsageError for an unknown name."""
    if by.startswith(MARK):
        model = load_diffusion(by.removeprefix(MARK), device)
        return Rater(by, model.fingerprint, partial(information_of, model))
    if is_pair_reader(by):
        reader = load_pair_reader(by, device)

        def matching(images: Tensor, prompt: str) -> Tensor:
            logits = reader.matching_logits(images.to(device), [prompt] * len(images))
            return logits[:, 1] - logits[:, 0]

        return Rater(by, pair_fingerprint(reader), matching)
    referee = load_referee(by, device=str(device))
    return Rater(
        by,
        fingerprint(referee),
        lambda images, prompt: (referee.embed_images(images.to(device)) @ referee.embed_texts([prompt]).T)[:, 0],
    )


@dataclass(frozen=True)
class Selection:
    """Settings of sampling and selection: `keep` of `samples` per prompt.

    by: "mi", the information on the trajectory (the paper); "gap", the MMSE gap of the finished latent; "random"; or a
    `Scorer`. A prompt's samples do not depend on it. pool: folder that caches all samples of the first round and their
    gaps for other selections.
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
    pool: Path | None = None

    @torch.no_grad()
    def choose(
        self, model: LatentDiffusion, prompt: str, number: int, round_: int = 1
    ) -> tuple[Float[Tensor, "k c h w"], Float[Tensor, " m"]]:
        """(selected latents, best first; scores of all samples) of prompt `number` in this round."""
        latents, nats = self.drawn(model, prompt, number, round_)
        own = generator(self.seed, f"choice for {prompt}", round_, number)
        path = self._pooled(model, prompt, number, round_)
        path = path.with_suffix(".gap.safetensors") if path is not None and self.by == "gap" else None
        if path is not None and is_file(path) and len(cached := _kept(path, "scores")[0]) >= self.samples:
            scores = cached[: self.samples]
        else:
            parts = zip(latents.split(self.batch_size), nats.split(self.batch_size), strict=True)
            scores = torch.cat([self._scored(model, part, part_nats, prompt, own) for part, part_nats in parts])
            if path is not None:
                with atomic_write(path) as file:
                    file.write(save({"scores": scores}))
        order = torch.where(scores.isnan(), -torch.inf, scores).topk(self.keep).indices  # topk puts NaN first
        return latents[order], scores

    @torch.no_grad()
    def drawn(
        self, model: LatentDiffusion, prompt: str, number: int, round_: int = 1
    ) -> tuple[Float[Tensor, "m c h w"], Float[Tensor, " m"]]:
        """All samples of a prompt, float32, and their information on the trajectory in nats."""
        path = self._pooled(model, prompt, number, round_)
        parts = [_kept(path, "latents", "nats")] if path is not None and is_file(path) else []
        left = range(len(parts[0][1]) if parts else 0, self.samples)
        batches = (left[first : first + self.batch_size] for first in range(0, len(left), self.batch_size))
        parts += [self._sampled(model, prompt, batch, round_, number) for batch in batches]
        latents, nats = (torch.cat([part[at].float().to(model.device) for part in parts]) for at in (0, 1))
        if path is not None and len(left):
            with atomic_write(path) as file:
                file.write(save({"latents": latents.cpu().contiguous(), "nats": nats.cpu()}, {"prompt": prompt}))
        return latents[: self.samples], nats[: self.samples]

    def _pooled(self, model: LatentDiffusion, prompt: str, number: int, round_: int) -> Path | None:
        """The pool's file of a prompt's samples; None without a pool, and after the first round."""
        if self.pool is None or round_ > 1:
            return None
        # New adapters change nothing: the first round samples the denoiser below them.
        how = (base_digest(model.unet), self.steps, self.guidance, self.kappa, self.skip, self.size, self.seed)
        return self.pool / _key(how)[:16] / f"{number:06d}-{_key(prompt)[:8]}.safetensors"

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


def choose_all(
    selection: Selection, model: LatentDiffusion, prompts: Sequence[str], folder: Path, round_: int, title: str
) -> list[Float[Tensor, "k c h w"]]:
    """`chosen_of` each prompt, in order; several processes share them and wait for each other's files."""
    mine = range(len(prompts))[distributed.place().mine()]
    for number in watched(mine, title, "prompts"):
        chosen_of(selection, model, prompts[number], number, folder, round_)
    while not all(is_file(folder / NAME.format(number)) for number in range(len(prompts))):
        time.sleep(0.2)  # outlasts the timeout of messages between processes
    distributed.listed(None)
    return [chosen_of(selection, model, text, number, folder, round_) for number, text in enumerate(prompts)]


def chosen_of(
    selection: Selection, model: LatentDiffusion, prompt: str, number: int, folder: Path, round_: int = 1
) -> Float[Tensor, "k c h w"]:
    """`Selection.choose` cached in `folder`."""
    path = folder / NAME.format(number)
    if is_file(path):
        return _kept(path, "latents")[0]
    latents, scores = selection.choose(model, prompt, number, round_)
    with atomic_write(path) as file:
        file.write(save({"latents": latents.cpu().contiguous(), "scores": scores}, {"prompt": prompt}))
    return latents.cpu()


def _kept(path: Path, *names: str) -> tuple[Tensor, ...]:
    try:
        tensors = load_file(path)
        return tuple(tensors[name] for name in names)
    except (SafetensorError, KeyError) as error:
        raise RunError(
            f"{path} is damaged: remove its folder and those of later rounds, and resume", "damaged", path=path
        ) from error


def _key(of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()
