"""Fine-tuning of a denoiser's adapters on selected latents by the denoising loss (MI-TUNE, Alg. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustclip.diffusion.adapters import trainable
from robustclip.diffusion.conditioning import Conditioning
from robustclip.diffusion.fitting import Trainer
from robustclip.diffusion.stable import LatentDiffusion
from robustclip.errors import RunError, UsageError
from robustclip.runs import distributed
from robustclip.runs.devices import autocast


@dataclass
class AdapterTrainer(Trainer):
    """Trainer of the adapters of `model` by AdamW (betas .9 and .999, weight decay .01, constant rate).

    Text states are cached if the text tower has no adapters.
    clip: maximum gradient norm; None: no clipping, as in effect in MI-TUNE's release. best: score, step and adapters of
    the round's best validation. Several processes (accelerate) share each batch, with the result of one process.
    """

    stateful = ("optimiser",)
    values = ("done", "best")

    model: LatentDiffusion
    lr: float = field(default=1e-4, kw_only=True)
    clip: float | None = 1.0
    at_once: int = 8
    best: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.parameters = [one for _, one in trainable(self.model)]
        self.adapts_texts = any(one.requires_grad for one in self.model.texts.parameters())
        self.states: dict[str, Conditioning] = {}
        self.renew()

    def begin(self, round_: int, steps: int) -> None:
        """Start round `round_` (from 1) of `steps` steps with a new optimiser, or continue it."""
        self.steps = round_ * steps
        if self.done == self.steps - steps:
            self.renew()
            self.best = None

    def renew(self) -> None:
        """Replace the optimiser by a new one."""
        self.optimiser = torch.optim.AdamW(self.parameters, lr=self.lr, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)

    def step(self, latents: Float[Tensor, "b c h w"], prompts: Sequence[str], stream: Generator) -> dict[str, float]:
        """One update on latents and their prompts, `at_once` per denoiser pass; `stream` draws noise and (uniform)
        times.

        Raises RunError for a loss that is not finite, UsageError for fewer latents than processes.
        """
        model, count = self.model, len(latents)
        if count < distributed.count():
            raise UsageError(f"--batch-size {count} for {distributed.count()} processes: give each at least one")
        mine = torch.arange(count, device=latents.device)[distributed.place().mine()]
        noise = torch.randn(latents.shape, generator=stream).to(latents)
        times = torch.randint(model.steps, (count,), generator=stream).to(latents.device)
        kept = model.alphas_cumprod[times].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        target = noise if model.prediction == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * latents
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for rows in mine.split(self.at_once):
            conditioning = self.embed([prompts[row] for row in rows.tolist()])
            with autocast(latents.device, model.dtype):
                prediction = model.unet(
                    noisy[rows], times[rows], conditioning.states, encoder_attention_mask=conditioning.mask
                ).sample
            loss = F.mse_loss(prediction.float(), target[rows]) * (len(rows) * distributed.count() / count)
            loss.backward()
            total += loss.item()
        total = float(distributed.mean(torch.tensor(total, device=latents.device)))
        distributed.average_gradients(self.parameters)
        if not torch.isfinite(torch.tensor(total)):
            raise RunError(f"the loss is {total} at step {self.done}: lower --lr, or train in --dtype float32")
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip if self.clip is not None else float("inf"))
        self.optimiser.step()
        self.done += 1
        return {"loss": total, "grad_norm": float(norm)}

    def embed(self, prompts: list[str]) -> Conditioning:
        """Token states of prompts, with a gradient if the text tower has adapters."""
        if self.adapts_texts:
            return self.model.embed_prompts(prompts)
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.states]:
            embedded = self.model.embed_prompts(new)
            self.states |= {prompt: embedded.rows([row]) for row, prompt in enumerate(new)}
        return reduce(Conditioning.joined, [self.states[prompt] for prompt in prompts])

    def state(self) -> dict[str, Any]:
        """Training state for resumption."""
        return {"adapters": self._adapters(), **super().state()}

    def _adapters(self) -> dict[str, Tensor]:
        return {name: one.detach() for name, one in trainable(self.model)}

    def judge(self, score: float) -> None:
        """Store the current adapters as best if the validation score is the round's highest."""
        if self.best is None or score > self.best["score"]:
            adapters = {name: one.clone() for name, one in self._adapters().items()}
            self.best = {"score": score, "step": self.done, "adapters": adapters}

    def take_best(self) -> int:
        """Restore the adapters of the best validation, if any, and return their step."""
        if self.best is None:
            return self.done
        with torch.no_grad():
            for name, one in trainable(self.model):
                one.copy_(self.best["adapters"][name])
        return int(self.best["step"])

    def load(self, state: dict[str, Any]) -> None:
        """Restore a `state`. Raises UsageError for that of other adapters."""
        own = dict(trainable(self.model))
        saved = state.get("adapters", {})
        if {name: one.shape for name, one in saved.items()} != {name: one.shape for name, one in own.items()}:
            raise UsageError("the checkpoint is of other adapters: go on with the arguments of its run")
        with torch.no_grad():
            for name, one in own.items():
                one.copy_(saved[name])
        super().load(state)


@dataclass(frozen=True)
class AlignmentPool:
    """Training data of adapters: selected latents and, optionally, real ones, each with its prompt.

    chosen, real: (latents, prompts); share: of real pictures in a batch.
    """

    chosen: tuple[Float[Tensor, "n c h w"], Sequence[str]]
    real: tuple[Float[Tensor, "m c h w"], Sequence[str]] | None = None
    share: float = 0.0

    def batch(self, count: int, stream: Generator) -> tuple[Float[Tensor, "b c h w"], list[str]]:
        """`count` latents and prompts drawn with replacement, a `share` of them (rounded) real."""
        real = 0 if self.real is None else round(self.share * count)
        latents, prompts = [], []
        for part, wanted in ((self.chosen, count - real), (self.real, real)):
            if part is not None and wanted:
                rows = torch.randint(len(part[0]), (wanted,), generator=stream)
                latents.append(part[0][rows])
                prompts += [part[1][row] for row in rows.tolist()]
        return torch.cat(latents), prompts
