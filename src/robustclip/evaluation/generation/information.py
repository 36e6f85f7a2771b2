"""Diffusion models as judges: point-wise mutual information of each picture with its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from robustclip.diffusion.mutual_information import MARK, METRIC, pointwise_mi
from robustclip.evaluation.generation.measure import Answers, Questions
from robustclip.evaluation.generation.pictures import Pictures
from robustclip.referees.similarity import batches

DRAWS: Final = 2
"""Of each of the 32 noise levels, ours: a set's interval is over its pictures, not over draws."""


def is_diffusion_judge(given: object) -> bool:
    """Whether a judge is named `mi:NAME` or `mi:FOLDER`, of a diffusion model."""
    return isinstance(given, str | Path) and str(given).startswith(MARK)


class InformationCourt:
    """A diffusion model that judges sets of pictures by the MMSE gap (`pointwise_mi`), in nats.

    Raises UsageError for a name and folder that hold no diffusion model.
    """

    def __init__(self, given: str, questions: Questions, device: torch.device) -> None:
        from robustclip.diffusion.pipelines import load_diffusion  # needs diffusers, which other judges do not

        name = given.removeprefix(MARK)
        self.model = load_diffusion(name, device, dtype=questions.dtype)
        self.name, self.questions = f"{MARK}{Path(name).name}", questions
        self.fingerprint = self.model.fingerprint

    @torch.no_grad()
    def look(self, pictures: Pictures) -> Answers:
        """Estimate each picture's information about its prompt; all see the same noise and noise levels."""
        from robustclip.diffusion.selection import whole_in_cells

        empty, found = self.model.embed_prompts([""]), []
        title = f"{self.name} looks at {pictures.name}"
        for rows in batches(torch.arange(len(pictures)), self.questions.batch_size, title):
            texts = self.model.embed_prompts([pictures.prompts[row] for row in rows.tolist()])
            latents = self.model.encode(whole_in_cells(self.model, pictures.images[rows]))
            found.append(pointwise_mi(self.model, latents, texts, empty, draws=DRAWS, seed=self.questions.seed))
        scores = {METRIC: torch.cat([one.nats for one in found]).float().cpu()}
        return Answers(pictures, self.name, self.fingerprint, scores)


def courts(given: Sequence[object], questions: Questions, device: torch.device) -> list[InformationCourt]:
    """The diffusion models among the judges."""
    return [InformationCourt(str(one), questions, device) for one in given if is_diffusion_judge(one)]
