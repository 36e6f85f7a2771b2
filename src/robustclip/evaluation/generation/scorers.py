"""Published preference models as judges: PickScore, HPSv2, ImageReward (imscore) and VQAScore (t2v-metrics).

`--judge pickscore:FOLDER` and `hpsv2:FOLDER` take CLIPs, as transformers or open_clip hold them; as any CLIP they guide
too (`--referee FOLDER`). `imagereward:FOLDER` and `vqascore:MODEL` call the packages (extra `preference`).
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
from robustclip.errors import UsageError, require
from robustclip.evaluation.generation.measure import Answers, Questions
from robustclip.evaluation.generation.pictures import Pictures
from robustclip.referees.base import TwoTower
from robustclip.referees.registry import load_referee
from robustclip.referees.similarity import batches
from robustclip.referees.smoothed import fingerprint
from robustclip.referees.weights import digest

Score = Callable[[Tensor, list[str]], Tensor]
"""Pictures (b,3,h,w) in [0,1] and a prompt each to scores (b,)."""


def clip_scorer(referee: TwoTower, scale: float) -> Score:
    """`scale` times the cosine, with gradients to the pixels: for PickScore (Kirstain et al. 2023) the logit scale, for
    HPSv2 (Wu et al. 2023) 1."""

    def score(images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        texts = referee.embed_texts(prompts)
        return scale * (referee.embed_images(images.to(referee.device)) * texts.to(referee.device)).sum(1)

    return score


def _pickscore(given: str, device: torch.device) -> tuple[Score, str]:
    referee = load_referee(given, device=str(device))
    return clip_scorer(referee, referee.logit_scale), fingerprint(referee)


def _hpsv2(given: str, device: torch.device) -> tuple[Score, str]:
    referee = load_referee(given, device=str(device))
    return clip_scorer(referee, 1.0), fingerprint(referee)


def _imagereward(given: str, device: torch.device) -> tuple[Score, str]:
    """imscore's copy of ImageReward (Xu et al. 2023); differentiable."""
    require("imscore", "preference", "imagereward")
    from imscore.imreward.model import ImageReward

    model: Any = ImageReward.from_pretrained(given).to(device).eval()
    return lambda images, prompts: model.score(images.to(device), prompts).reshape(-1), digest(model.state_dict())


def _vqascore(given: str, device: torch.device) -> tuple[Score, str]:
    """t2v-metrics' VQAScore (Lin et al. 2024), which reads pictures from files; not differentiable."""
    require("t2v_metrics", "preference", "vqascore")
    import t2v_metrics

    model: Any = t2v_metrics.VQAScore(model=given, device=str(device))
    weights = model.state_dict()
    own = digest(weights) if weights else hashlib.sha256(given.encode()).hexdigest()  # it may hold no module

    def score(images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        with TemporaryDirectory() as folder:
            files = [str(Path(folder) / f"{row}.png") for row in range(len(images))]
            for file, image in zip(files, images, strict=True):
                save_image(image, file)
            each = [model(images=[file], texts=[text]) for file, text in zip(files, prompts, strict=True)]
        return torch.cat([one.reshape(1) for one in each])

    return score, own


LOADERS: Final[dict[str, Callable[[str, torch.device], tuple[Score, str]]]] = {
    "pickscore": _pickscore,
    "hpsv2": _hpsv2,
    "imagereward": _imagereward,
    "vqascore": _vqascore,
}


def is_scorer(given: object) -> bool:
    """Whether a judge is named by one of LOADERS and its model, as in pickscore:FOLDER."""
    return isinstance(given, str | Path) and str(given).partition(":")[0] in LOADERS and ":" in str(given)


@final
class ScorerCourt:
    """A preference model that judges sets of pictures. Raises UsageError for a model or package that is not there."""

    def __init__(self, given: str, questions: Questions, device: torch.device) -> None:
        self.metric, _, model = given.partition(":")
        if not model:
            raise UsageError(f"{given!r} names no model: give its folder, as in {self.metric}:FOLDER", "no_model")
        self.score, self.fingerprint = LOADERS[self.metric](model, device)
        self.name, self.questions = f"{self.metric}:{Path(model).name}", questions

    @torch.no_grad()
    def look(self, pictures: Pictures) -> Answers:
        """Score each picture by its prompt."""
        found = []
        for rows in batches(torch.arange(len(pictures)), self.questions.batch_size, f"{self.name}: {pictures.name}"):
            prompts: Sequence[str] = [pictures.prompts[row] for row in rows.tolist()]
            found.append(self.score(pictures.images[rows], list(prompts)).float().cpu())
        return Answers(pictures, self.name, self.fingerprint, {self.metric: torch.cat(found)})
