"""Accuracy of image-text matching (pair readers) and of yes/no question answering (scene readers), on scenes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.attacks.gradient import pgd
from robustclip.attacks.threat import ThreatModel
from robustclip.data.composing import Draw
from robustclip.data.compositions import CATEGORIES, SIZE, compose, sprites
from robustclip.data.pairs import Pair, PairBatches
from robustclip.data.questions import contrasts
from robustclip.evaluation.intervals import rate
from robustclip.referees.base import PairReader
from robustclip.referees.scene_reader import SceneReader
from robustclip.runs.rng import generator

AMONG = 40  # candidate captions of the retrieval


def measure_pair_reader(
    reader: PairReader,
    split: str,
    *,
    n: int = 400,
    seed: int = 1,
    captioned: int = 6,
    threat: ThreatModel | None = None,
    attack_steps: int = 20,
) -> dict[str, Any]:
    """Rates (value, low, high, n) with 95% intervals (Wilson) over `n` scenes of two objects of `split`:

    retrieval, the own caption first among 40 by the contrastive score (chance 2.5%); matching, the own caption above
    another's, and swap, above itself with colours exchanged (chance 50%), by the matching logit; and generated captions
    of the first `captioned` scenes. With `threat`, all rates also on images that PGD moved inside it to raise the
    matching loss of their own captions ("retrieval attacked", ...).
    """
    right: dict[str, list[bool]] = {}
    captions: list[str] = []
    data = PairBatches(split, AMONG, seed)
    for k in range(-(-n // AMONG)):
        batch = data.batch(k)
        images, own = batch.images.to(reader.device), [str(pair) for pair in batch.pairs]
        for name, found in _answers(reader, images, batch.pairs).items():
            right.setdefault(name, []).extend(found)
        if threat is not None:
            losses = partial(reader.pair_losses, texts=own, captioning=0)
            moved = pgd(images, losses, threat, steps=attack_steps, generator=generator(seed, "attack", k))
            for name, found in _answers(reader, moved, batch.pairs).items():
                right.setdefault(f"{name} attacked", []).extend(found)
        if k == 0 and reader.can_caption:
            generated = reader.caption(images[:captioned])
            captions = [f"{text} -> {other}" for text, other in zip(own, generated, strict=False)]
    return {**{name: vars(rate(one)) for name, one in right.items()}, "captions": captions}


@torch.no_grad()
def _answers(reader: PairReader, images: Float[Tensor, "b 3 h w"], pairs: Sequence[Pair]) -> dict[str, list[bool]]:
    own = [str(pair) for pair in pairs]
    nearest = reader.contrastive(images, own).argmax(1).tolist()
    score = _margin(reader, images, own)
    others = _margin(reader, images, [*own[1:], own[0]])
    differ = [row for row, pair in enumerate(pairs) if _swaps(pair)]
    swapped = _margin(reader, images[differ], [str(pairs[row].swapped()) for row in differ])
    return {
        "retrieval": [own[row] == own[place] for row, place in enumerate(nearest)],
        "matching": (score > others).tolist(),
        "swap": (score[differ] > swapped).tolist(),
    }


def _margin(reader: PairReader, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    logits = reader.matching_logits(images, texts)
    return logits[:, 1] - logits[:, 0]


def _swaps(pair: Pair) -> bool:
    return pair.first.colour != pair.second.colour


SEED = 7  # differs from the seeds of training scenes


def measure_answers(reader: SceneReader, split: str, *, n: int = 200) -> dict[str, Any]:
    """Balanced accuracies (value, low, high, n) of answers about `n` scenes of each category: by the scene's category
    ("categories"), by the kind of question ("kinds"), and of all.

    Each true claim is paired with a false one (`contrasts`); intervals are Wilson's, over questions. "yes" is the
    sensitivity (accuracy on true claims), "brier" the mean squared error of the probability.
    """
    by_category: dict[str, list[bool]] = {}
    by_kind: dict[str, list[bool]] = {}
    errors, yes = [], []
    for number in range(n * len(CATEGORIES)):
        scene = compose(number, split, seed=SEED, size=SIZE)
        draw = Draw(generator(SEED, "questions of the measurement", number), sprites(split))
        questions = [one for pair in contrasts(scene, draw) for one in pair]
        probabilities = reader.yes(scene.image[None], [[one.text for one in questions]])[0]
        truth = torch.tensor([True, False]).repeat(len(questions) // 2)
        right = ((probabilities > 0.5) == truth).tolist()
        by_category.setdefault(scene.category, []).extend(right)
        for question, hit in zip(questions, right, strict=True):
            by_kind.setdefault(question.kind, []).append(hit)
        errors += (probabilities - truth.float()).square().tolist()
        yes += right[::2]
    return {
        "categories": {name: vars(rate(hits)) for name, hits in by_category.items()},
        "kinds": {name: vars(rate(hits)) for name, hits in sorted(by_kind.items())},
        "all": vars(rate([hit for hits in by_category.values() for hit in hits])),
        "yes": vars(rate(yes)),
        "brier": sum(errors) / len(errors),
    }
