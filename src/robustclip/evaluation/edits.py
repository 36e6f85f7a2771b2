"""Accuracy of texts under character edits (`attacks.text`): does an edited text still find its own image first?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.attacks.text import charmer, random_edits
from robustclip.evaluation.report import CLEAN, CONTROL, Findings, Measurement
from robustclip.evaluation.retrieval import Gallery
from robustclip.evaluation.setting import Setting, prompts_of
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches
from robustclip.runs.devices import autocast
from robustclip.runs.rng import each

DISTANCES: Final = (1, 2)
PLACES: Final = 20  # LEAF's, in evaluation
TEXTS: Final = 4  # attacked at a time, each with about 2,000 candidates
METRIC: Final = "text to image recall@1"


def edits(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Recall@1 from texts (labels, or first captions, each once) to images: clean, under 1 and 2 random edits, and
    under Charmer's attack by 1 and 2, which maximises the best wrong image's cosine minus the best right one's.

    The search computes in the setting's dtype; what is measured is computed in float32. Without LEAF's constraint on
    words. A text that is found under 2 edits was found under 1: one that is not is attacked no further.
    """
    examples = setting.examples
    gallery = Gallery.of([[text] for text in prompts_of(examples)])
    texts, matches = gallery.captions, gallery.matches.T
    images = _embedded(referee, setting)
    found = Findings()

    def margins(shown: list[str], rows: Sequence[int], dtype: torch.dtype = torch.float32) -> Float[Tensor, " n"]:
        with autocast(referee.device, dtype):
            embeddings = referee.embed_texts(shown)
        return _margins(embeddings.float().cpu() @ images.T, matches[list(rows)])

    def note(attack: str, shown: list[str]) -> None:
        scores = margins(shown, range(len(shown)))
        found.measurements.append(Measurement(METRIC, attack, (scores < 0).numpy()))
        found.predictions += [
            {"attack": attack, "id": text, "text": now, "margin": -score}
            for text, now, score in zip(texts, shown, scores.tolist(), strict=True)
        ]

    note(CLEAN, texts)
    streams = each(setting.seed, "random edits", ids=texts)
    chance, attacked = list(texts), list(texts)
    for distance in DISTANCES:
        chance = random_edits(chance, streams)
        note(f"{CONTROL}edits:{distance}", chance)
    for distance in DISTANCES:
        before = list(attacked)
        for places in (1, PLACES):  # the best place first: where it is enough, the others cannot change the answer
            still = (margins(attacked, range(len(texts))) < 0).nonzero()[:, 0]
            for batch in batches(still, TEXTS, f"{title} edits:{distance}"):
                rows = batch.tolist()

                def score(shown: list[str], owners: list[int], rows: list[int] = rows) -> Float[Tensor, " n"]:
                    return margins(shown, [rows[owner] for owner in owners], setting.dtype)

                moved = charmer([before[row] for row in rows], score, places=places)
                for row, text in zip(rows, moved, strict=True):
                    attacked[row] = text
        note(f"edits:{distance}", attacked)
    return found


def _margins(cosines: Float[Tensor, "n i"], own: Bool[Tensor, "n i"]) -> Float[Tensor, " n"]:
    """The best wrong image's cosine minus the best right one's; below 0 where a right image comes first."""
    return cosines.masked_fill(own, -torch.inf).amax(1) - cosines.masked_fill(~own, -torch.inf).amax(1)


@torch.no_grad()
def _embedded(referee: TwoTower, setting: Setting) -> Float[Tensor, "i d"]:
    images, found = setting.examples.images, []
    with attacking(referee):
        for batch in batches(torch.arange(len(images)), setting.batch_size):
            with autocast(referee.device, setting.dtype):
                seen = referee.embed_images(images[batch].to(referee.device), normalize=False)
            found.append(torch.nn.functional.normalize(seen.float(), dim=-1).cpu())
    return torch.cat(found)
