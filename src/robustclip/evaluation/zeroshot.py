"""Zero-shot classification: nearest class text embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.runs.rng import generator

SHOWN = 5  # predictions kept per image, and the largest k of top-k


@dataclass(frozen=True)
class Candidates:
    """Distinct candidate labels, and each image's target (index into `names`)."""

    names: list[str]
    targets: Int[Tensor, " n"]

    @classmethod
    def among(
        cls,
        label_names: Sequence[str],
        labels: Int[Tensor, " n"],
        *,
        present_only: bool = False,
        count: int | None = None,
        seed: int = 0,
    ) -> Candidates:
        """All label names; with `present_only` those of the images; or `count` of them: those of the images, and others
        drawn by the seed.

        Labels with the same name (ImageNet has two) are merged. Raises UsageError for a count below the number of names
        that images have, or above the number of all names.
        """
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(label_names):
            message = f"labels run from {int(labels.min())} to {int(labels.max())}: {len(label_names)} have names"
            raise UsageError(message, "too_few_names", labels=int(labels.max()) + 1, names=len(label_names))
        used = labels.unique().tolist() if present_only else range(len(label_names))
        names = list(dict.fromkeys(label_names[label] for label in used))
        if count is not None:
            names = _drawn(names, {label_names[label] for label in labels.unique().tolist()}, count, seed)
        place = {name: index for index, name in enumerate(names)}
        targets = torch.tensor([place[label_names[label]] for label in labels.tolist()], dtype=torch.long)
        return cls(names, targets)


@dataclass(frozen=True)
class Predictions:
    """Predictions per image: the nearest candidates, and the rank of the target (0: first)."""

    top: Int[Tensor, "n k"]
    ranks: Int[Tensor, " n"]

    def hits(self, k: int) -> list[bool]:
        """Whether the target is in the top k, for each image."""
        return [bool(hit) for hit in self.ranks < k]


def _drawn(names: list[str], needed: set[str], count: int, seed: int) -> list[str]:
    """`count` of the names, including all of `needed`, in the order of `names`."""
    if not len(needed) <= count <= len(names):
        what, fix = (
            (f"the images have {len(needed)} labels", f"labels={len(needed)} or more, 'all', or fewer images (limit)")
            if count < len(needed)
            else (f"the set has {len(names)} labels", f"labels={len(names)} or fewer, or 'all'")
        )
        raise UsageError(
            f"{what}, not {count}: give {fix}",
            "too_few_labels" if count < len(needed) else "too_many_labels",
            labels=count,
            least=len(needed),
            most=len(names),
        )
    order = torch.randperm(len(names), generator=generator(seed, "labels")).tolist()
    others = [index for index in order if names[index] not in needed]
    chosen = needed | {names[index] for index in others[: count - len(needed)]}
    return [name for name in names if name in chosen]


def ranks(scores: Float[Tensor, "b c"], targets: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Number of other candidates that score at least as high as the target; ties and NaN count as errors."""
    right = scores.gather(1, targets[:, None])
    return (~(scores < right)).sum(1) - 1


def predictions(scores: Float[Tensor, "n c"], targets: Int[Tensor, " n"]) -> Predictions:
    """Top predictions and the rank of the target."""
    return Predictions(scores.topk(min(SHOWN, scores.shape[1]), dim=1).indices, ranks(scores, targets))
