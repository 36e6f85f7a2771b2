"""Load the guiding referees with their weights and targets, and the captioned pictures that correct these targets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, final

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from robustclip.data.examples import read_examples
from robustclip.data.images import load_image
from robustclip.diffusion.mutual_information import MARK, pointwise_mi
from robustclip.diffusion.pipelines import diffusion_dtype, load_diffusion
from robustclip.diffusion.selection import information_of, whole_in_cells
from robustclip.diffusion.stable import LatentDiffusion
from robustclip.errors import UsageError
from robustclip.losses.scores import Pairing
from robustclip.losses.similarity import Cosine, Pairs, Spherical, Target, aligned
from robustclip.referees.base import TwoTower
from robustclip.referees.blip2 import Blip2
from robustclip.referees.pair_readers import is_pair_reader, load_pair_reader, pair_fingerprint
from robustclip.referees.registry import load_referee
from robustclip.referees.smoothed import fingerprint
from robustclip.runs.devices import UNNAMED, chosen_dtype
from robustclip.synthesis.prompts import Part, Prompt, check_context

Given = str | Path | TwoTower
NUMBER = re.compile(r"[+]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
PROBE = 8  # images of the pass timed by `--dtype measure`


class Guides:
    """One or more CLIPs as guides; the objective is their weighted mean.

    Each part of a prompt is embedded once.
    """

    def __init__(self, referees: Sequence[TwoTower], weights: Sequence[float], dtype: torch.dtype) -> None:
        self.referees = list(referees)
        self.weights = list(weights)
        self.dtype = dtype
        self._embedded: list[dict[Part, Tensor]] = [{} for _ in referees]

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
        """Referees by name, folder or object, with weights as `NAME=WEIGHT`; in eval mode and frozen.

        `recorded` is the dtype of a resumed run (see `chosen_dtype`). Raises UsageError for none, duplicates, and a
        weight that is not a positive number.
        """
        listed = [given] if isinstance(given, str | Path | TwoTower) else list(given)
        if not listed:
            raise UsageError(
                "there is no referee to guide: give one, e.g. emoji-robust (robustclip referees list)", "no_referees"
            )
        named = [one if isinstance(one, TwoTower) else parse_weight(str(one)) for one in listed]
        names = [one[0] for one in named if not isinstance(one, TwoTower)]
        if twice := [name for name in names if names.count(name) > 1]:
            message = f"the referee {twice[0]} comes twice: give it once, as {twice[0]}=2 if it is to count double"
            raise UsageError(message, "listed_twice", referee=twice[0])
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
        """Input height and width of the first guide."""
        return self.referees[0].image_size

    @property
    def device(self) -> torch.device:
        return self.referees[0].device

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise UsageError for texts that are too long for a guide and unreadable pictures."""
        for referee in self.referees:
            check_context(referee, prompts)
        for prompt in prompts:
            prompt.check_images()

    def targets(self, prompts: Sequence[Prompt]) -> list[Target]:
        """Each referee's targets, for one picture per prompt."""
        longest = max(len(prompt.parts) for prompt in prompts)
        weights, stops = torch.zeros(len(prompts), longest), torch.full((len(prompts), longest), -torch.inf)
        for row, prompt in enumerate(prompts):
            weights[row, : len(prompt.parts)] = torch.tensor([part.weight for part in prompt.parts])
            stops[row, : len(prompt.parts)] = torch.tensor([part.stop for part in prompt.parts])
        stopping = stops.to(self.device) if stops.isfinite().any() else None
        targets = []
        for referee, embedded, share in zip(self.referees, self._embedded, self.weights, strict=True):
            self._embed(referee, embedded, prompts)
            directions = torch.zeros(len(prompts), longest, referee.width, device=self.device)
            for row, prompt in enumerate(prompts):
                directions[row, : len(prompt.parts)] = torch.stack([embedded[part] for part in prompt.parts])
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
        """Weighted sum of the cosines of each prompt's parts with its picture, without views."""
        return self.cosine(prompts).similarity(images.unsqueeze(1))[:, 0]

    def directions(self, prompts: Sequence[Prompt]) -> Float[Tensor, "p d"]:
        """For each prompt the vector whose product with a picture's concatenated embeddings is the similarity, to rank
        many embedded pictures (see robustclip.inits.basic)."""
        return torch.cat(
            [
                weight / sum(self.weights) * torch.einsum("ptd,pt->pd", target.directions, target.weights)
                for weight, target in zip(self.weights, self.targets(prompts), strict=True)
            ],
            dim=1,
        )

    def describe(self) -> list[dict[str, Any]]:
        """Name, weight and fingerprint of each, recorded so that no guide judges its own pictures."""
        return [
            {"name": referee.card.name, "weight": weight, "fingerprint": fingerprint(referee)}
            for referee, weight in zip(self.referees, self.weights, strict=True)
        ]

    def _embed(self, referee: TwoTower, embedded: dict[Part, Tensor], prompts: Sequence[Prompt]) -> None:
        new = list(dict.fromkeys(part for prompt in prompts for part in prompt.parts if part not in embedded))
        texts = [part for part in new if part.kind == "text"]
        if texts:
            embedded.update(zip(texts, referee.embed_texts([part.content for part in texts]), strict=True))
        for part in new:
            if part.kind == "image":
                image = load_image(part.content)[None].to(self.device)
                with torch.no_grad():
                    embedded[part] = referee.embed_images(image)[0]


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
            f"write e.g. {name[:100]}=0.5",
            "not_positive",
            argument=name,
            given=weight,
        )
    return name, float(weight)


@final
class Information:
    """Latents (P,1,c,h,w), or pictures (P,1,3,H,W) for another model, -> (P,1): negative mutual information of each
    and its prompt in nats (the MMSE gap, `pointwise_mi`), differentiable.

    Every call draws new noise, common to all pictures, at a step in each of `levels` strata. It costs 2 * levels
    evaluations of the denoiser, forward and backward; SDS costs 2 forward. Without the denoiser's Jacobian its gradient
    is that of SDS in the limit of infinite guidance.
    """

    def __init__(self, model: LatentDiffusion, texts: Sequence[str], *, of_latents: bool, levels: int = 4) -> None:
        self.model, self.levels, self.reads = model, levels, "latent" if of_latents else "image"
        self.texts, self.empty = model.embed_prompts(list(texts)), model.embed_prompts([""])
        self.calls = 0

    def __call__(self, views: Tensor) -> Float[Tensor, "p 1"]:
        read = views[:, 0]
        latents = read if self.reads == "latent" else self.model.encode(whole_in_cells(self.model, read))
        self.calls += 1
        estimate = pointwise_mi(
            self.model, latents, self.texts, self.empty, levels=self.levels, draws=1, seed=self.calls
        )
        return -estimate.nats.float().to(views.device).unsqueeze(1)

    def __str__(self) -> str:
        return f"mutual information at {self.levels} levels"


@final
class PairGuides(Guides):
    """Pair readers, CLIPs and diffusion models, with weights. The reported similarity is the matching probability of
    the pair readers, if any; of diffusion models alone, their mutual information in nats."""

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
        """Pair readers and CLIPs by name, folder or object, diffusion models as `mi:NAME` or `mi:FOLDER`, with weights
        as `NAME=WEIGHT`.

        Raises UsageError as `Guides.load`.
        """
        listed: list[Any] = [given] if not isinstance(given, list | tuple) else list(given)
        listed = [str(one) if isinstance(one, Path) else one for one in listed]
        named = [one for one in listed if isinstance(one, str) and one.startswith(MARK)]
        pairs = [one for one in listed if isinstance(one, str) and is_pair_reader(parse_weight(one)[0])]
        rest = [one for one in listed if one not in (*pairs, *named)]
        names = [parse_weight(one)[0] for one in (*pairs, *named)]
        if twice := [name for name in names if names.count(name) > 1]:
            message = f"the referee {twice[0]} comes twice: give it once, as NAME=2 if it is to count double"
            raise UsageError(message, "listed_twice", referee=twice[0])
        if dtype in UNNAMED and recorded is not None:
            dtype = recorded
        clips = None
        if rest or not (pairs or named):
            clips = Guides.load(rest, device=device, dtype=dtype, channels_last=channels_last, compile=compile)
        readers = [(load_pair_reader(name, device), weight) for name, weight in (parse_weight(one) for one in pairs)]
        if channels_last:
            readers = [(reader.to(memory_format=torch.channels_last), weight) for reader, weight in readers]
        chosen = clips.dtype if clips else diffusion_dtype(dtype, device)
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
        if self.readers:
            return self.readers[0][0].device
        return super().device if self.referees else self.models[0][0].device

    def check(self, prompts: Sequence[Prompt]) -> None:
        super().check(prompts)
        for reader, _ in self.readers:
            reader.check_texts([text_of(prompt) for prompt in prompts])

    def pairings(self, prompts: Sequence[Prompt], *, matching: float, captioning: float) -> list[tuple[Pairing, float]]:
        """Each pair reader's loss for the prompts, and its weight."""
        texts = [text_of(prompt) for prompt in prompts if self.readers]
        return [
            (Pairing(reader, texts, matching=matching, captioning=captioning, dtype=self.dtype), weight)
            for reader, weight in self.readers
        ]

    def informing(self, prompts: Sequence[Prompt], generator: LatentDiffusion) -> list[tuple[Information, float, str]]:
        """Each diffusion model's loss for the prompts, its weight and name; the `generator` itself reads latents."""
        texts = [text_of(prompt) for prompt in prompts if self.models]
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
            nats = [weight * torch.cat([information_of(model, *one) for one in each]) for model, weight in self.models]
            return torch.stack(nats).sum(0) / sum(weight for _, weight in self.models)
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
    """The text of a prompt of one unweighted text. Raises UsageError for others, which pair readers and diffusion
    models cannot read."""
    if len(prompt.parts) != 1 or prompt.parts[0].kind != "text" or prompt.parts[0].weight != 1:
        raise UsageError(
            f"{str(prompt)[:100]!r} has weights, parts or pictures, and pair readers and diffusion models read one "
            'text: give only text, e.g. "a yellow banana and a blue butterfly"',
            "not_one_text",
            given=str(prompt),
        )
    return prompt.parts[0].content


NONE: Final = "none"
ReferenceData = Annotated[
    str,
    "captioned pictures that correct text targets for the modality gap: emoji/guide-styles, a folder of pictures with "
    ".txt captions, or clip_benchmark's shards; none takes texts as they are",
]
ReferencePairs = Annotated[PositiveInt, "pictures drawn from --reference"]


@final
class Reference:
    """`count` captioned pictures of `data`, drawn by seed 0, as each guide embeds them; the first caption of each.

    "none" leaves targets as they are. Raises UsageError for pictures without captions, and as `read_examples`.
    """

    def __init__(self, data: str, guides: Guides, count: int) -> None:
        self.pairs: list[Pairs] = []
        if data == NONE:
            return
        size = None if data.startswith(("emoji/", "icons/")) else guides.size
        examples = read_examples(data, size=size, limit=count)
        if not examples.captions:
            raise UsageError(
                f"the pictures of --reference {data[:200]} have no captions: give a folder of pictures, each with a "
                "text file of its name beside it, emoji/guide-styles, or none"
            )
        captions = [own[0] for own in examples.captions]
        for referee in guides.referees:
            self.pairs.append(Pairs.of(referee, examples.images, captions, f"{referee.card.name}, reference"))

    def targets(self, guides: Guides, prompts: Sequence[Prompt], *, neighbours: int, blending: float) -> list[Target]:
        """The guides' targets for these prompts, corrected."""
        targets = guides.targets(prompts)
        if not self.pairs:
            return targets
        texts = torch.zeros_like(targets[0].weights, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            texts[row, : len(prompt.parts)] = torch.tensor([part.kind == "text" for part in prompt.parts])
        return [
            aligned(target, texts, pairs, neighbours=neighbours, blending=blending)
            for target, pairs in zip(targets, self.pairs, strict=True)
        ]
