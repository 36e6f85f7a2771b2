"""Accuracy of image-text matching: scenes of two coloured things, their captions and wrong ones."""

from __future__ import annotations

from typing import Any

import torch

from robustclip.data.pairs import Pair, PairBatches
from robustclip.evaluation.intervals import rate
from robustclip.referees.base import PairReader

AMONG = 40  # captions that a scene's own is found among


@torch.no_grad()
def measure_pair_reader(
    reader: PairReader, split: str, *, n: int = 400, seed: int = 1, said: int = 6
) -> dict[str, Any]:
    """Rates (value, low, high, n) with 95% intervals (Wilson) over `n` scenes of drawings of `split`:

    retrieval, a scene's caption first among 40 by contrast (chance 2.5%); matching, its caption before another's, and
    swap, before itself with colours exchanged (chance 50%), by the matching logit; and the `said` first captions.
    """
    right: dict[str, list[bool]] = {"retrieval": [], "matching": [], "swap": []}
    captions: list[str] = []
    data = PairBatches(split, AMONG, seed)
    for k in range(-(-n // AMONG)):
        batch = data.batch(k)
        images, own = batch.images.to(reader.device), [str(pair) for pair in batch.pairs]
        found = reader.contrastive(images, own).argmax(1).tolist()
        right["retrieval"] += [own[row] == own[place] for row, place in enumerate(found)]
        score = _margin(reader, images, own)
        right["matching"] += (score > _margin(reader, images, [*own[1:], own[0]])).tolist()
        differ = [row for row, pair in enumerate(batch.pairs) if _swaps(pair)]
        other = _margin(reader, images[differ], [str(batch.pairs[row].swapped()) for row in differ])
        right["swap"] += (score[differ] > other).tolist()
        if k == 0 and reader.can_caption:
            captions = [f"{text} -> {found}" for text, found in zip(own, reader.caption(images[:said]), strict=False)]
    return {**{name: vars(rate(one)) for name, one in right.items()}, "captions": captions}


def _margin(reader: PairReader, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    logits = reader.matching_logits(images, texts)
    return logits[:, 1] - logits[:, 0]


def _swaps(pair: Pair) -> bool:
    return pair.first.colour != pair.second.colour
