"""The referees of a report, and their heat maps of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.attacks.spec import AttackSpec
from robustclip.diffusion.mutual_information import METRIC
from robustclip.errors import UsageError
from robustclip.evaluation.named import NamedReferee
from robustclip.evaluation.report import CLEAN, Measurement, Row
from robustclip.evaluation.setting import control_of
from robustclip.explanation import looks
from robustclip.explanation.gradients import show_gradients
from robustclip.explanation.looks import NOISY, Looks, Objective, look, numbers
from robustclip.explanation.maps import Mapper, Method, Target
from robustclip.pages.inputs import Pair
from robustclip.pages.report import Better, Case, Line, Number, View


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
    """A referee of the report with its mapper; None if it cannot be mapped, with the reason in `why`."""

    def __init__(
        self,
        judge: NamedReferee,
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


BETTER: Final[dict[str, Better]] = {
    looks.POINTING: "higher",
    looks.ENERGY: "higher",
    looks.CORRELATION: "higher",
    looks.OVERLAP: "higher",
    looks.SHIFT: "lower",
}
MEANING: Final = {
    looks.POINTING: "how often the brightest pixel of a map lies in the box of what the text names",
    looks.ENERGY: "the share of a map that lies in that box",
    looks.CORRELATION: "Spearman's, between the pixels of a referee's map before and after; 1 is the same order",
    looks.OVERLAP: "of the brightest fifth of both maps, intersection over union",
    looks.SHIFT: "how far the map's centre of mass moved, as a share of the image's diagonal",
    METRIC: "of image and text to a diffusion model, in nats: how much less its denoiser errs with the text",
    looks.SCORE: "cosine of image and text; referees have scales of their own, so only changes can be compared",
}


@dataclass(frozen=True)
class Outcomes:
    """All numbers of all pairs: by referee, version and metric, (N,) float; NaN where there is none."""

    values: dict[tuple[str, str, str], NDArray[np.float64]] = field(default_factory=dict)

    def add(self, name: str, places: Sequence[int], seen: Seen, count: int) -> None:
        """What one referee saw at these places of `count`."""
        for version, found in seen.numbers.items():
            for metric, values in found.items():
                row = self.values.setdefault((name, version, metric), np.full(count, np.nan))
                row[list(places)] = values.double().numpy()

    def measurements(self, spec: AttackSpec | None) -> dict[str, list[Measurement]]:
        """For the table, by referee: without pairs for which the metric has no meaning; hits as bool."""
        attacks = {looks.CLEAN: CLEAN}
        if spec is not None:
            attacks |= {looks.ATTACKED: str(spec), looks.NOISY: control_of(spec)}
        found: dict[str, list[Measurement]] = {}
        for (name, version, metric), values in self.values.items():
            kept: NDArray[Any] = values
            if metric == looks.POINTING:
                kept = values[np.isfinite(values)] > 0
            if kept.size and (kept.dtype == bool or np.isfinite(kept).any()):
                found.setdefault(name, []).append(Measurement(metric, attacks[version], kept))
        return found

    def of(self, name: str, place: int) -> dict[str, dict[str, float | None]]:
        """One referee's numbers of one pair, by version, as plain values."""
        found: dict[str, dict[str, float | None]] = {}
        for (other, version, metric), values in self.values.items():
            if other == name:
                value = float(values[place])
                found.setdefault(version, {})[metric] = value if np.isfinite(value) else None
        return found


def case_of(
    pair: Pair,
    image: Float[Tensor, "3 H W"],
    row: int,
    viewers: Sequence[Viewer],
    seen: Mapping[str, Seen | None],
) -> Case:
    """The report's case of a pair and its image, which is at `row` of what the viewers saw."""
    views = [_view(viewer, seen[viewer.name], row) for viewer in viewers]
    noisy = next(
        (one.looks[looks.NOISY].images[row] for one in seen.values() if one and looks.NOISY in one.looks), None
    )
    return Case(pair.id, image, pair.text, views, pair.other, pair.box, noisy)


def _view(viewer: Viewer, seen: Seen | None, row: int) -> View:
    if seen is None or viewer.mapper is None:
        return View(viewer.name, None, why=viewer.why)
    clean = seen.looks[looks.CLEAN]
    attacked, noisy = seen.looks.get(looks.ATTACKED), seen.looks.get(looks.NOISY)

    def heat(one: looks.Look | None) -> Float[Tensor, "H W"] | None:
        return None if one is None or bool(one.heat.empty[row]) else one.heat.maps[row]

    def score(one: looks.Look | None) -> float | None:
        return None if one is None else float(one.scores[row])

    def gradient(version: str) -> Float[Tensor, "3 H W"] | None:
        return seen.gradients[version][row] if version in seen.gradients else None

    after = seen.numbers.get(looks.ATTACKED, {})
    told: dict[str, float | bool | None] = {
        metric: float(after[metric][row])
        for metric in (looks.CORRELATION, looks.OVERLAP, looks.SHIFT)
        if metric in after
    }
    if looks.POINTING in seen.numbers[looks.CLEAN]:
        told[looks.POINTING] = bool(seen.numbers[looks.CLEAN][looks.POINTING][row])
        if after:
            told[f"{looks.POINTING}, attacked"] = bool(after[looks.POINTING][row])
    empty = any(bool(one.heat.empty[row]) for one in seen.looks.values())
    return View(
        viewer.name,
        score(clean),
        map=heat(clean),
        gradient=gradient(looks.CLEAN),
        attacked=None if attacked is None else attacked.images[row],
        attacked_score=score(attacked),
        attacked_map=heat(attacked),
        attacked_gradient=gradient(looks.ATTACKED),
        noisy_score=score(noisy),
        noisy_map=heat(noisy),
        numbers=told,
        why=viewer.mapper.why_empty() if empty else "",
    )


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """The table's lines: values by metric and images, with all referees."""
    found: dict[tuple[str, str], dict[str, Number]] = {}
    for row in rows:
        if row.kind == "value":
            found.setdefault((row.metric, row.attack), {})[row.referee] = Number(row.value, row.low, row.high, row.n)
    return [
        Line(metric, attack, of, BETTER.get(metric, ""), "percent" if metric == looks.POINTING else "number")
        for (metric, attack), of in found.items()
    ]
