"""Best-of-N selection: generate several pictures per item, keep the highest scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.synthesis.items import MOST_PICTURES, Item
from robustclip.synthesis.painted import Paint, Painted, Watch

Choose = Callable[[Float[Tensor, "p 3 h w"], Sequence[Item]], Float[Tensor, " p"]]
"""(pictures, their items) -> scores, higher is better."""


def best_of(paint: Paint, count: int, choose: Choose, steps: int) -> Paint:
    """Best-of-N: generate `count` pictures per item, of `steps` each, and keep the best. The first is the picture
    of a single run; all scores are stored in the file.
    """

    def painted(items: Sequence[Item], watch: Watch) -> Painted:
        best, scores = None, []
        for number in range(count):
            drawn = [replace(item, repeat=item.repeat + number * MOST_PICTURES) for item in items]
            candidate = paint(drawn, _Later(watch, number * steps))
            scores.append(choose(candidate.images.detach(), items).float().cpu())
            best = (
                candidate if best is None else _merged(best, candidate, scores[-1] > torch.stack(scores[:-1]).amax(0))
            )
        assert best is not None
        table = torch.stack(scores, 1)
        best.facts = [{"candidate": int(row.argmax()), "scores": row.tolist()} for row in table]
        return best

    return painted


@dataclass(frozen=True)
class _Later:
    """A watch whose steps follow those of earlier candidates."""

    watch: Watch
    before: int

    def __call__(self, step: int, images: Float[Tensor, "p 3 h w"], numbers: Mapping[str, Float[Tensor, " p"]]) -> None:
        self.watch(self.before + step, images, numbers)

    def announce(self, loss: str) -> None:
        if not self.before:
            self.watch.announce(loss)


def _merged(old: Painted, new: Painted, better: Tensor) -> Painted:
    """Replace the pictures that are better in `new`."""

    def of(first: Tensor, second: Tensor, at: int) -> Tensor:
        shape = [1] * at + [-1] + [1] * (first.ndim - at - 1)
        return torch.where(better.to(first.device).view(shape), second, first)

    chosen = better.tolist()
    return Painted(
        of(old.images, new.images, 0),
        of(old.similarity, new.similarity, 0),
        {name: of(values, new.trace[name], 1) for name, values in old.trace.items()},
        None if old.frames is None or new.frames is None else of(old.frames, new.frames, 1),
        old.steps_of_frames,
        {
            ending: [pair[won] for pair, won in zip(zip(texts, new.texts[ending], strict=True), chosen, strict=True)]
            for ending, texts in old.texts.items()
        },
    )
