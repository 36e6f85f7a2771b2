"""Retrieval: recall@k from images to captions, and from captions to images, also of texts under character edits
(`attacks.text`).

Captions are deduplicated by text: if two images share a caption, it matches both. A query is a hit at k if any of its
matches is among the first k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks.gradient import attacking
from robustclip.attacks.spec import AttackSpec, run_attack
from robustclip.attacks.text import charmer, random_edits
from robustclip.data.pictures import Images
from robustclip.errors import UsageError
from robustclip.evaluation.named import Setting, prompts_of
from robustclip.evaluation.report import CLEAN, CONTROL, Findings, Measurement
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches, cosines, embed_images
from robustclip.runs.devices import autocast
from robustclip.runs.rng import each

DEPTHS = (1, 5, 10)

Objective = Callable[[Tensor, Tensor], Tensor]
"""(logits (B,T), matches (B,T)) -> the losses (B,) that an attack maximises."""


@dataclass(frozen=True)
class Gallery:
    """The distinct captions of a set, and their matches (N,T) with images."""

    captions: list[str]
    matches: Bool[Tensor, "n t"]

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]]) -> Gallery:
        """From each image's list of captions. Raises UsageError naming an image without captions."""
        place: dict[str, int] = {}
        for index, own in enumerate(captions):
            if not own:
                raise UsageError(
                    f"image {index} has no caption: retrieval needs one for each image", "no_caption", image=index
                )
            for caption in own:
                place.setdefault(caption, len(place))
        matches = torch.zeros(len(captions), len(place), dtype=torch.bool)
        for index, own in enumerate(captions):
            matches[index, [place[caption] for caption in own]] = True
        return cls(list(place), matches)


@dataclass(frozen=True)
class Recall:
    """The rank (0: first) of the best match, for each image among captions and each caption among images."""

    image_to_text: Int[Tensor, " n"]
    text_to_image: Int[Tensor, " t"]


def recall(scores: Float[Tensor, "n t"], matches: Bool[Tensor, "n t"]) -> Recall:
    """Ranks in both directions from a matrix of similarities, images as rows."""
    return Recall(best_ranks(scores, matches), best_ranks(scores.T, matches.T))


def best_ranks(scores: Float[Tensor, "q a"], matches: Bool[Tensor, "q a"]) -> Int[Tensor, " q"]:
    """Number of wrong candidates that score at least as high as the best match; ties and NaN count as errors."""
    best = scores.masked_fill(~matches, -torch.inf).amax(1, keepdim=True)
    return (~(scores < best) & ~matches).sum(1)


def retrieve_under_attack(
    referee: TwoTower,
    images: Images,
    gallery: Gallery,
    texts: Float[Tensor, "t d"],
    spec: AttackSpec,
    *,
    clean: Float[Tensor, "n t"],
    batch_size: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> Recall:
    """Recall in each direction under an attack of its own; `clean` are the cosines of the clean images.

    Both are PGD on images, on -log of the match's softmax probability; captions are not attacked.

        image to text   the probability of the image's captions among all captions
        text to image   the probability of the attacked image among it and the clean images that do not match the
                        caption; the loss is the mean over its captions

    From captions to images, all images of the gallery are attacked ones. Ranks are the worst over the restarts. Raises
    UsageError for attacks other than PGD, which need the logits of a classifier.
    """
    spec.check_pgd("retrieval under attack")
    wrong = (referee.logit_scale * clean).masked_fill(gallery.matches, -torch.inf).logsumexp(0).to(texts.device)
    found: list[tuple[Tensor, Tensor]] = []
    for restart in range(spec.restarts):
        start = title and f"{title}, start {restart + 1} of {spec.restarts}"

        def scores(objective: Objective, way: str, *key: int, restart: int = restart, start: str = start) -> Tensor:
            rows = []
            for batch in batches(torch.arange(len(images)), batch_size, start and f"{start}, {way}"):
                own = gallery.matches[batch].to(texts.device)

                def loss(pixels: Tensor, own: Tensor = own) -> Tensor:
                    return objective(referee.logit_scale * cosines(referee, pixels, texts, dtype), own)

                keys = (seed, restart, int(batch[0]), *key)
                moved = run_attack(referee, images[batch].to(texts.device), loss, spec, key=keys)
                with torch.no_grad():
                    rows.append(cosines(referee, moved, texts, dtype).cpu())
            return torch.cat(rows)

        by_images = scores(_to_captions, "image to text")
        by_texts = scores(partial(_to_images, wrong=wrong), "text to image", 1)
        found.append((best_ranks(by_images, gallery.matches), best_ranks(by_texts.T, gallery.matches.T)))
    return Recall(*(torch.stack(ranks).amax(0) for ranks in zip(*found, strict=True)))


def _to_captions(logits: Float[Tensor, "b t"], own: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """-log of the softmax probability of an image's captions."""
    return logits.logsumexp(1) - logits.masked_fill(~own, -torch.inf).logsumexp(1)


def _to_images(
    logits: Float[Tensor, "b t"], own: Bool[Tensor, "b t"], wrong: Float[Tensor, " t"]
) -> Float[Tensor, " b"]:
    """-log of the softmax probability of the image among itself and clean images that do not match, whose log-sums are
    `wrong`; mean over its captions."""
    # log(exp(own) + exp(wrong)) - own; 0 if no image is wrong, since the log-sum is -inf.
    return (F.softplus(wrong - logits) * own).sum(1) / own.sum(1)


EDIT_DISTANCES: Final = (1, 2)
EDIT_PLACES: Final = 20  # LEAF's, in evaluation
TEXTS_AT_ONCE: Final = 4  # attacked at a time, each with about 2,000 candidates
EDITS_METRIC: Final = "text to image recall@1"


def edits(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Recall@1 from texts (labels, or first captions, each once) to images: clean, under 1 and 2 random edits, and
    under Charmer's attack by 1 and 2, which maximises the best wrong image's cosine minus the best right one's.

    The search computes in the setting's dtype; what is measured is computed in float32. Without LEAF's constraint on
    words. A text that is found under 2 edits was found under 1: one that is not is attacked no further.
    """
    examples = setting.examples
    gallery = Gallery.of([[text] for text in prompts_of(examples)])
    texts, matches = gallery.captions, gallery.matches.T
    with attacking(referee):
        images = embed_images(referee, examples.images, batch_size=setting.batch_size, dtype=setting.dtype)
    found = Findings()

    def margins(shown: list[str], rows: Sequence[int], dtype: torch.dtype = torch.float32) -> Float[Tensor, " n"]:
        with autocast(referee.device, dtype):
            embeddings = referee.embed_texts(shown)
        return _margins(embeddings.float().cpu() @ images.T, matches[list(rows)])

    def note(attack: str, shown: list[str]) -> None:
        scores = margins(shown, range(len(shown)))
        found.measurements.append(Measurement(EDITS_METRIC, attack, (scores < 0).numpy()))
        found.add_predictions(attack=attack, id=texts, text=shown, margin=(-scores).tolist())

    note(CLEAN, texts)
    streams = each(setting.seed, "random edits", ids=texts)
    chance, attacked = list(texts), list(texts)
    for distance in EDIT_DISTANCES:
        chance = random_edits(chance, streams)
        note(f"{CONTROL}edits:{distance}", chance)
    for distance in EDIT_DISTANCES:
        before = list(attacked)
        for places in (1, EDIT_PLACES):  # the best place first: where it is enough, the others cannot change the answer
            still = (margins(attacked, range(len(texts))) < 0).nonzero()[:, 0]
            for batch in batches(still, TEXTS_AT_ONCE, f"{title} edits:{distance}"):
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
