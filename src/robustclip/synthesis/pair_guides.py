"""Guides that include pair readers (BLIP-2) or diffusion models, alone or beside CLIPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.diffusion.mutual_information import MARK, pointwise_mi
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.selection import information_of, whole_in_cells
from robustclip.diffusion.stable import LatentDiffusion
from robustclip.errors import UsageError
from robustclip.losses.pairing import Pairing
from robustclip.referees.blip2 import Blip2
from robustclip.referees.pair_readers import is_pair_reader, load_pair_reader, pair_fingerprint
from robustclip.runs.devices import UNNAMED, pick_dtype
from robustclip.synthesis.guides import Given, Guides, parse_weight
from robustclip.synthesis.prompts import Prompt


@final
class Information:
    """Latents (P,1,c,h,w), or pictures (P,1,3,H,W) of another model's, -> (P,1): minus the mutual information of each
    and its prompt in nats (the MMSE gap, `pointwise_mi`), differentiable.

    Every call draws new noise, the same for all pictures, at a step in each of `levels` strata. It takes 2 * levels
    evaluations of the denoiser, forward and back, where SDS takes 2 forward. Without the denoiser's own Jacobian its
    gradient would be that of SDS at guidance without limit.
    """

    def __init__(self, model: LatentDiffusion, texts: Sequence[str], *, of_latents: bool, levels: int = 4) -> None:
        self.model, self.levels, self.reads = model, levels, "latent" if of_latents else "image"
        self.texts, self.empty = model.embed_prompts(list(texts)), model.embed_prompts([""])
        self.calls = 0

    def __call__(self, views: Tensor) -> Float[Tensor, "p 1"]:
        seen = views[:, 0]
        latents = seen if self.reads == "latent" else self.model.encode(whole_in_cells(self.model, seen))
        self.calls += 1
        found = pointwise_mi(self.model, latents, self.texts, self.empty, levels=self.levels, draws=1, seed=self.calls)
        return -found.nats.float().unsqueeze(1)

    def __str__(self) -> str:
        return f"mutual information at {self.levels} levels"


@final
class PairGuides(Guides):
    """Pair readers, CLIPs and diffusion models, each with its weight. Where a pair reader is among them, the similarity
    that is shown is its probability of a match; where diffusion models are alone, their mutual information in nats."""

    def __init__(
        self,
        readers: Sequence[tuple[Blip2, float]],
        clips: Guides | None,
        dtype: torch.dtype,
        models: Sequence[tuple[LatentDiffusion, float]] = (),
    ) -> None:
        super().__init__(clips.referees if clips else [], clips.weights if clips else [], dtype)
        self.readers, self.models = list(readers), list(models)

    @classmethod
    def load_all(
        cls,
        given: Given | Sequence[Given],
        *,
        device: torch.device,
        dtype: str | torch.dtype = "auto",
        recorded: str | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> PairGuides:
        """Pair readers and CLIPs by name, folder or object, diffusion models as `mi:NAME` or `mi:FOLDER`, `NAME=WEIGHT`
        for one that counts more or less.

        Raises UsageError as `Guides.load`.
        """
        listed: list[Any] = [given] if not isinstance(given, list | tuple) else list(given)
        named = [one for one in listed if isinstance(one, str) and one.startswith(MARK)]
        pairs = [one for one in listed if isinstance(one, str) and is_pair_reader(parse_weight(one)[0])]
        rest = [one for one in listed if one not in (*pairs, *named)]
        for kind in (pairs, named):
            if len(set(kind)) < len(kind):
                raise UsageError(f"the referee {kind[0]} comes twice: give it once, as NAME=2 if it is to count double")
        if dtype in UNNAMED and recorded is not None:
            dtype = recorded
        clips = None
        if rest or not (pairs or named):
            clips = Guides.load(rest, device=device, dtype=dtype, channels_last=channels_last, compile=compile)
        readers = [(load_pair_reader(name, device), weight) for name, weight in (parse_weight(one) for one in pairs)]
        if channels_last:
            readers = [(reader.to(memory_format=torch.channels_last), weight) for reader, weight in readers]
        chosen = clips.dtype if clips else pick_dtype("float32" if dtype in UNNAMED else dtype, device)
        weighted = [parse_weight(one.removeprefix(MARK)) for one in named]
        return cls(
            readers, clips, chosen, [(load_diffusion(one, device, dtype=chosen), weight) for one, weight in weighted]
        )

    @property
    def size(self) -> tuple[int, int]:
        if self.readers or self.referees:
            return self.readers[0][0].image_size if self.readers else super().size
        model = self.models[0][0]
        side = model.factor * int(model.unet.config["sample_size"])
        return side, side

    @property
    def device(self) -> torch.device:
        alone = [one for one, _ in self.models] if not self.referees else []
        return next((one.device for one in (*(reader for reader, _ in self.readers), *alone)), None) or super().device

    def check(self, prompts: Sequence[Prompt]) -> None:
        super().check(prompts)
        for reader, _ in self.readers:
            reader.check_texts([text_of(prompt) for prompt in prompts])

    def pairings(self, prompts: Sequence[Prompt], *, matching: float, captioning: float) -> list[tuple[Pairing, float]]:
        """The loss of each pair reader for these prompts, and its weight."""
        texts = [text_of(prompt) for prompt in prompts]
        return [
            (Pairing(reader, texts, matching=matching, captioning=captioning, dtype=self.dtype), weight)
            for reader, weight in self.readers
        ]

    def informing(self, prompts: Sequence[Prompt], generator: LatentDiffusion) -> list[tuple[Information, float, str]]:
        """The loss of each diffusion model for these prompts, its weight and name; of the latents themselves where it
        is the `generator` of these."""
        texts = [text_of(prompt) for prompt in prompts]
        return [
            (
                Information(model, texts, of_latents=model.fingerprint == generator.fingerprint),
                weight,
                f"{MARK}{model.name}",
            )
            for model, weight in self.models
        ]

    @torch.no_grad()
    def similarity(self, images: Float[Tensor, "p 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " p"]:
        if not self.readers and self.referees:
            return super().similarity(images, prompts)
        texts = [text_of(prompt) for prompt in prompts]
        if not self.readers:
            each = list(zip(images.clamp(0, 1).split(1), texts, strict=True))
            found = [[information_of(model, *one) for one in each] for model, _ in self.models]
            return torch.stack([torch.cat(one) for one in found]).mean(0)
        chances = [weight * reader.matching_logits(images, texts).softmax(1)[:, 1] for reader, weight in self.readers]
        return torch.stack(chances).sum(0) / sum(weight for _, weight in self.readers)

    def describe(self) -> list[dict[str, Any]]:
        readers = [
            {"name": reader.card.name, "weight": weight, "fingerprint": pair_fingerprint(reader)}
            for reader, weight in self.readers
        ]
        models = [
            {"name": f"{MARK}{model.name}", "weight": weight, "fingerprint": model.fingerprint}
            for model, weight in self.models
        ]
        return [*readers, *models, *super().describe()]


def text_of(prompt: Prompt) -> str:
    """The text of a prompt of one text. Raises UsageError for others: a pair reader has no direction to weigh."""
    if len(prompt.parts) != 1 or prompt.parts[0].kind != "text" or prompt.parts[0].weight != 1:
        raise UsageError(
            f"{str(prompt)[:100]!r} has weights, parts or pictures, and a pair reader reads one text: give it as it "
            'stands, e.g. "a yellow banana and a blue butterfly"'
        )
    return prompt.parts[0].content
