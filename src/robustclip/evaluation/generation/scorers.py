"""Judges that are not CLIPs: preference models, and diffusion models by mutual information.

`--judge pickscore:FOLDER` and `hpsv2:FOLDER` take CLIPs in the format of transformers or open_clip, which can also
guide (`--referee FOLDER`). `imagereward:FOLDER` (imscore) and `vqascore:MODEL` (t2v-metrics) need the extra
`preference`. `mi:NAME` and `mi:FOLDER` are diffusion models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.data.images import save_image
from robustclip.diffusion.mutual_information import MARK, METRIC, pointwise_mi
from robustclip.errors import UsageError, require
from robustclip.evaluation.generation.measure import JudgeOptions, JudgeScores
from robustclip.evaluation.generation.pictures import Pictures
from robustclip.referees.base import TwoTower
from robustclip.referees.registry import load_referee
from robustclip.referees.similarity import batches
from robustclip.referees.smoothed import fingerprint
from robustclip.referees.weights import digest

Score = Callable[[Tensor, list[str]], Tensor]
"""Pictures (b,3,h,w) in [0,1] and their prompts to scores (b,)."""


def clip_scorer(referee: TwoTower, scale: float) -> Score:
    """`scale` times the cosine, with gradients to the pixels: for PickScore (Kirstain et al. 2023) the logit scale, for
    HPSv2 (Wu et al. 2023) 1."""

    def score_fn(images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        texts = referee.embed_texts(prompts)
        return scale * (referee.embed_images(images.to(referee.device)) * texts.to(referee.device)).sum(1)

    return score_fn


def _pickscore(name: str, device: torch.device) -> tuple[Score, str]:
    referee = load_referee(name, device=str(device))
    return clip_scorer(referee, referee.logit_scale), fingerprint(referee)


def _hpsv2(name: str, device: torch.device) -> tuple[Score, str]:
    referee = load_referee(name, device=str(device))
    return clip_scorer(referee, 1.0), fingerprint(referee)


def _imagereward(name: str, device: torch.device) -> tuple[Score, str]:
    """imscore's copy of ImageReward (Xu et al. 2023); differentiable."""
    require("imscore", "preference", "imagereward")
    from imscore.imreward.model import ImageReward

    model: Any = ImageReward.from_pretrained(name).to(device).eval()
    return lambda images, prompts: model.score(images.to(device), prompts).reshape(-1), digest(model.state_dict())


def _vqascore(name: str, device: torch.device) -> tuple[Score, str]:
    """t2v-metrics' VQAScore (Lin et al. 2024), which reads pictures from files; not differentiable."""
    require("t2v_metrics", "preference", "vqascore")
    import t2v_metrics

    model: Any = t2v_metrics.VQAScore(model=name, device=str(device))
    weights = model.state_dict()
    own = digest(weights) if weights else hashlib.sha256(name.encode()).hexdigest()  # some models are no modules

    def score_fn(images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        with TemporaryDirectory() as folder:
            files = [str(Path(folder) / f"{row}.png") for row in range(len(images))]
            for file, image in zip(files, images, strict=True):
                save_image(image, file)
            each = [model(images=[file], texts=[text]) for file, text in zip(files, prompts, strict=True)]
        return torch.cat([one.reshape(1) for one in each])

    return score_fn, own


LOADERS: Final[dict[str, Callable[[str, torch.device], tuple[Score, str]]]] = {
    "pickscore": _pickscore,
    "hpsv2": _hpsv2,
    "imagereward": _imagereward,
    "vqascore": _vqascore,
}


def is_scorer(name: object) -> bool:
    """Whether a judge is named by one of LOADERS and its model, as in pickscore:FOLDER."""
    return isinstance(name, str | Path) and str(name).partition(":")[0] in LOADERS and ":" in str(name)


@final
class PreferenceScorer:
    """Scores sets of pictures by a preference model. Raises UsageError for a missing model or package."""

    def __init__(self, name: str, options: JudgeOptions, device: torch.device) -> None:
        self.metric, _, model = name.partition(":")
        if not model:
            raise UsageError(f"{name!r} names no model: give its folder, as in {self.metric}:FOLDER", "no_model")
        self.score_fn, self.fingerprint = LOADERS[self.metric](model, device)
        self.name, self.options = f"{self.metric}:{Path(model).name}", options

    @torch.no_grad()
    def score(self, pictures: Pictures) -> JudgeScores:
        """Score each picture by its prompt."""
        parts = []
        for rows in batches(torch.arange(len(pictures)), self.options.batch_size, f"{self.name}: {pictures.name}"):
            prompts: Sequence[str] = [pictures.prompts[row] for row in rows.tolist()]
            parts.append(self.score_fn(pictures.images[rows], list(prompts)).float().cpu())
        return JudgeScores(pictures, self.name, self.fingerprint, {self.metric: torch.cat(parts)})


DRAWS: Final = 2
"""Noise draws per noise level (32 levels), ours: intervals are over pictures, not over draws."""


def is_diffusion_judge(name: object) -> bool:
    """Whether a judge is named `mi:NAME` or `mi:FOLDER`, of a diffusion model."""
    return isinstance(name, str | Path) and str(name).startswith(MARK)


class InformationScorer:
    """Scores sets of pictures by a diffusion model's MMSE gap (`pointwise_mi`), in nats.

    Raises UsageError for a name or folder that is not a diffusion model.
    """

    def __init__(self, name: str, options: JudgeOptions, device: torch.device) -> None:
        from robustclip.diffusion.pipelines import load_diffusion  # here, since it needs diffusers

        model = name.removeprefix(MARK)
        self.model = load_diffusion(model, device, dtype=options.dtype)
        self.name, self.options = f"{MARK}{Path(model).name}", options
        self.fingerprint = self.model.fingerprint

    @torch.no_grad()
    def score(self, pictures: Pictures) -> JudgeScores:
        """Estimate each picture's mutual information with its prompt; all share the noise and noise levels."""
        from robustclip.diffusion.selection import whole_in_cells

        empty, parts = self.model.embed_prompts([""]), []
        title = f"{self.name} looks at {pictures.name}"
        for rows in batches(torch.arange(len(pictures)), self.options.batch_size, title):
            texts = self.model.embed_prompts([pictures.prompts[row] for row in rows.tolist()])
            latents = self.model.encode(whole_in_cells(self.model, pictures.images[rows]))
            parts.append(pointwise_mi(self.model, latents, texts, empty, draws=DRAWS, seed=self.options.seed))
        scores = {METRIC: torch.cat([one.nats for one in parts]).float().cpu()}
        return JudgeScores(pictures, self.name, self.fingerprint, scores)


def load_scorers(
    names: Sequence[str], options: JudgeOptions, device: torch.device
) -> list[InformationScorer | PreferenceScorer]:
    """The judges of distinct names, those of diffusion models first. Folders of one name are named as given."""
    given = sorted(dict.fromkeys(names), key=is_scorer)
    models: list[InformationScorer | PreferenceScorer] = [
        (PreferenceScorer if is_scorer(name) else InformationScorer)(name, options, device) for name in given
    ]
    short = [model.name for model in models]
    for model, name in zip(models, given, strict=True):
        if short.count(model.name) > 1:
            model.name = name
    return models
