"""The referees of a report, and their heat maps of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.attacks.spec import AttackSpec
from robustclip.errors import UsageError
from robustclip.evaluation.judges import Judge
from robustclip.explanation.attacks import Objective
from robustclip.explanation.gradients import show_gradients
from robustclip.explanation.looks import NOISY, Looks, look, numbers
from robustclip.explanation.maps import Mapper, Method, Target
from robustclip.pages.inputs import Pair


@dataclass(frozen=True)
class Task:
    """What every referee is asked: the attack, if any, what it is after, and whether input gradients are shown."""

    spec: AttackSpec | None
    objective: Objective
    gradients: bool
    seed: int


@dataclass(frozen=True)
class Seen:
    """What a referee saw in a batch: its looks, what can be counted of them, and gradients as pictures, by version."""

    looks: Looks
    numbers: dict[str, dict[str, Float[Tensor, " b"]]]
    gradients: dict[str, Float[Tensor, "b 3 H W"]] = field(default_factory=dict)


class Viewer:
    """A referee of the report, and what draws its maps; None where it can't be mapped so, and `why` says it."""

    def __init__(
        self,
        judge: Judge,
        method: Method,
        layer: str | None,
        target: Target | None = None,
        *,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.judge = judge
        self.name = judge.name
        self.mapper: Mapper | None = None
        self.why = ""
        self.places: dict[str, int] = {}
        try:
            self.mapper = Mapper(judge.referee, method, layer, dtype=dtype, seed=seed, target=target)
        except UsageError as error:
            self.why = str(error)

    def read(self, texts: Sequence[str], asked: Sequence[str] = ()) -> None:
        """Embed all texts there will be, each once; a softmax runs over `asked`, those that are looked for."""
        if self.mapper is None:
            return
        self.places = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        self.embeddings = self.judge.referee.embed_texts(list(self.places))
        self.among = self.embeddings[[self.places[text] for text in dict.fromkeys(asked)]]

    def see(self, pairs: Sequence[Pair], images: Float[Tensor, "b 3 H W"], task: Task) -> Seen | None:
        """What it sees in a batch of pairs, whose images are stacked; None without maps."""
        mapper = self.mapper
        if mapper is None:
            return None
        texts, others = (
            self.embeddings[[self.places[text] for text in these]]
            for these in ([pair.text for pair in pairs], [pair.other or pair.text for pair in pairs])
        )
        ids = [f"{pair.id}, {pair.text}" for pair in pairs]
        with attacking(mapper.referee):
            looks = look(
                mapper,
                images,
                texts,
                others,
                ids=ids,
                among=self.among,
                spec=task.spec,
                objective=task.objective,
                seed=task.seed,
            )
            shown: dict[str, Tensor] = {}
            if task.gradients:
                shown = {
                    version: show_gradients(mapper.gradients(one.images.to(mapper.referee.device), texts, ids)).cpu()
                    for version, one in looks.items()
                    if version != NOISY
                }
        return Seen(looks, numbers(looks, boxes_of(pairs)), shown)


def boxes_of(pairs: Sequence[Pair]) -> Int[Tensor, "b 4"] | None:
    """The boxes of what the texts name, where all are known."""
    boxes = [pair.box for pair in pairs if pair.box is not None]
    return torch.tensor(boxes) if len(boxes) == len(pairs) else None


def by_size(pairs: Sequence[Pair], batch_size: int) -> list[list[int]]:
    """Places of pairs that make a batch: of one size, and with boxes all or none."""
    alike: dict[object, list[int]] = {}
    for index, pair in enumerate(pairs):
        alike.setdefault((pair.size, pair.box is None), []).append(index)
    return [
        places[start : start + batch_size] for places in alike.values() for start in range(0, len(places), batch_size)
    ]
