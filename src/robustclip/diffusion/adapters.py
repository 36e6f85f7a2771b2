"""Low-rank adapters of a diffusion model's denoiser and text tower, by peft, in diffusers' LoRA format; their
fine-tuning on selected latents by the denoising loss (MI-TUNE, Alg. 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustclip.diffusion.fitting import Trainer
from robustclip.diffusion.stable import Conditioning, LatentDiffusion, base_digest
from robustclip.errors import RunError, UsageError
from robustclip.runs import distributed
from robustclip.runs.devices import autocast
from robustclip.runs.files import is_file, new_folder, read_json, sha256, write_json
from robustclip.runs.rng import seeded

try:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict
except ImportError as error:
    raise UsageError("adapters are peft's, of diffusers' models: pip install 'robustclip[align]'") from error

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
CARD: Final = "card.json"
TARGETS: Final = ("to_k", "to_q", "to_v", "to_out.0")
"""The attention projections that MI-TUNE adapts."""
TEXT_TARGETS: Final = (
    *("q_proj", "k_proj", "v_proj", "out_proj"),
    *("query", "key", "value", "attention.output.dense"),
)
"""The same of CLIP's text towers and of BERT's."""


def add_adapter(
    model: LatentDiffusion, *, rank: int = 32, alpha: int = 32, dora: bool = True, text: bool = False, seed: int = 0
) -> list[nn.Parameter]:
    """Add adapters to the attention projections of a frozen denoiser and, with `text`, of its text tower.

    Returns the trainable parameters. Adapters start as the identity. `dora` decomposes weights
    into magnitude and direction (Liu et al. 2024); without it, and on the text tower, adapters are LoRA. Raises
    UsageError if the denoiser has adapters.
    """
    if getattr(model.unet, "peft_config", None):
        raise UsageError("this denoiser has an adapter already: merge it first (`merge_adapter`)", "has_adapter")
    config = partial(LoraConfig, r=rank, lora_alpha=alpha, init_lora_weights="gaussian")
    with seeded(seed):
        model.unet.add_adapter(config(use_dora=dora, target_modules=list(TARGETS)))
        if text:  # LoRA: transformers' load_adapter, which diffusers calls, drops DoRA's magnitudes
            model.texts.tower.add_adapter(config(target_modules=list(TEXT_TARGETS)))
    trained = dict(trainable(model))
    # MI-TUNE's release parses --use_dora and trains LoRA: check the layers.
    assert dora == any("lora_magnitude_vector" in name for name in trained)
    return list(trained.values())


def trainable(model: LatentDiffusion) -> list[tuple[str, nn.Parameter]]:
    """The adapters' parameters by name."""
    towers = (*model.unet.named_parameters(), *model.texts.named_parameters(prefix="text_encoder"))
    return [(name, one) for name, one in towers if one.requires_grad]


def save_adapter(model: LatentDiffusion, folder: Path, card: Mapping[str, Any]) -> None:
    """Write the adapter as a folder that diffusers' `load_lora_weights` reads, with a card; atomic.

    Raises UsageError if the path exists.
    """
    layers: dict[str, Any] = {}
    for name, module in (("unet", model.unet), ("text_encoder", model.texts.tower)):
        if getattr(module, "peft_config", None):
            config = module.peft_config["default"].to_dict()
            metadata = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
            layers |= {f"{name}_lora_layers": get_peft_model_state_dict(module, adapter_name="default")}
            layers |= {f"{name}_lora_adapter_metadata": metadata}
    with new_folder(folder) as draft:
        StableDiffusionPipeline.save_lora_weights(draft, **layers)
        described = {"base": model.name, "weights_sha256": sha256(draft / WEIGHTS)}
        described |= {"base_sha256": base_digest(model.unet), "text_sha256": base_digest(model.texts.tower)}
        write_json(draft / CARD, {**card, **described})


def load_adapter(model: LatentDiffusion, folder: str | Path) -> None:
    """Add a saved adapter to a diffusion model's denoiser and, if it has weights for it, text tower; frozen.

    Raises UsageError for a folder without adapter, an adapter of another model, and weights that differ from the card.
    """
    folder = Path(folder)
    if not is_file(folder / WEIGHTS):
        raise UsageError(
            f"{str(folder)[:200]} contains no adapter: give a folder with {WEIGHTS}, as `align` writes it", "no_adapter"
        )
    card = read_json(folder / CARD) if is_file(folder / CARD) else {}
    if card.get("weights_sha256") not in (None, sha256(folder / WEIGHTS)):
        raise UsageError(
            f"{folder / WEIGHTS} is not the file that its card describes: copy the folder again", "other_hash"
        )
    for key, part, module in (
        ("base_sha256", "denoiser", model.unet),
        ("text_sha256", "text tower", model.texts.tower),
    ):
        if card.get(key) not in (None, base_digest(module)):
            raise UsageError(
                f"{folder} adapts the {part} of {card.get('base')}, and {model.name} has another: load it "
                "on the former",
                "adapter_of_another_model",
                part=part,
            )
    try:
        model.unet.load_lora_adapter(folder, prefix="unet", weight_name=WEIGHTS, use_safetensors=True)
        state, _, metadata = StableDiffusionPipeline.lora_state_dict(
            folder, weight_name=WEIGHTS, use_safetensors=True, return_lora_metadata=True
        )
        texts, config = (_below("text_encoder.", one or {}) for one in (state, metadata))
        if texts:  # as diffusers does, which accepts only CLIP towers
            model.texts.tower.load_adapter(adapter_state_dict=texts, peft_config=LoraConfig(**config))
    except (RuntimeError, ValueError, KeyError) as error:
        raise UsageError(f"the adapter of {folder} does not fit this denoiser: {str(error)[:200]}") from error
    model.requires_grad_(False)


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): one for name, one in values.items() if name.startswith(prefix)}


def merge_adapter(model: LatentDiffusion) -> None:
    """Merge the denoiser's adapter into its weights in place, and remove it."""
    model.unet.fuse_lora()
    model.unet.unload_lora()
    model.requires_grad_(False)


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
        self.steps, self.title = round_ * steps, f"round {round_}"
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
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        target = {"epsilon": noise, "sample": latents, "v_prediction": velocity}[model.prediction]
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
        if not math.isnan(score) and (self.best is None or score > self.best["score"]):
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
        """Restore a `state`, except its learning rate. Raises UsageError for one of other adapters."""
        own = dict(trainable(self.model))
        saved = state.get("adapters", {})
        if {name: one.shape for name, one in saved.items()} != {name: one.shape for name, one in own.items()}:
            raise UsageError(
                "the checkpoint is of other adapters: go on with the arguments of its run", "other_checkpoint"
            )
        with torch.no_grad():
            for name, one in own.items():
                one.copy_(saved[name])
        super().load(state)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr  # of this call, not of the checkpoint


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
