"""Best-of-N init: each picture starts from its most similar candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import RunError, UsageError
from robustclip.inits.basic import Init

Score = Callable[[Float[Tensor, "p n 3 h w"]], Float[Tensor, "p n"]]
"""n candidates of each of p pictures -> how good they are, higher is better; the p pictures are always those of the
whole batch, in their order."""


def best_of(init: Init, n: int, score: Score, *, chunk: int = 256) -> Init:
    """A start that draws `n` candidates a picture from `init`, and keeps the one with the highest `score`.

    About `chunk` candidates (at least one a picture) are drawn and scored at a time, without gradients; only the best
    so far are kept. Candidates of a picture come from its generator one after the other, so that neither `chunk` nor
    the rest of the batch changes them. Among equals the first wins. To choose for many pictures among the same
    candidates, see Pool. Raises UsageError for n or chunk below 1, and scores of another shape; RunError for scores
    that are not numbers.
    """
    if n < 1 or chunk < 1:
        raise UsageError(f"the best of {n} candidates, {chunk} at a time: both need at least 1")

    @torch.no_grad()
    def start(
        height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
    ) -> Float[Tensor, "p 3 h w"]:
        pictures = len(generators)
        if not pictures:
            return init(height, width, generators, device)
        at_once = max(1, chunk // pictures)
        best = torch.empty(0)
        highest = torch.empty(0)
        for first in range(0, n, at_once):
            count = min(at_once, n - first)
            drawn = init(height, width, [one for one in generators for _ in range(count)], device)
            candidates = drawn.unflatten(0, (pictures, count))
            scores, place = checked(score(candidates), (pictures, count)).max(1)
            found = candidates[torch.arange(pictures, device=candidates.device), place.to(candidates.device)]
            if not first:
                best, highest = found, scores
                continue
            better = scores > highest
            highest = torch.where(better, scores, highest)
            best = torch.where(better.to(best.device)[:, None, None, None], found, best)
        return best

    return start


def checked(scores: Tensor, shape: tuple[int, int]) -> Float[Tensor, "p n"]:
    """The scores. Raises UsageError for another shape, and RunError where one is not a number: it would win or lose by
    chance."""
    if scores.shape != shape:
        raise UsageError(f"the score gave {tuple(scores.shape)} for {shape[0]} pictures of {shape[1]} candidates")
    if scores.isnan().any():
        raise RunError("the score of a candidate is not a number: try dtype float32, or another referee")
    return scores
