"""Heat maps of a batch, by the referees of a report and by a diffusion model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.attacks.spec import AttackSpec
from robustclip.data.images import show_gradients
from robustclip.diffusion.mutual_information import MARK, METRIC, pointwise_mi
from robustclip.errors import UsageError
from robustclip.evaluation.generation.scorers import DRAWS
from robustclip.evaluation.intervals import Interval
from robustclip.evaluation.named import NamedReferee, control_of
from robustclip.evaluation.report import CLEAN, CONTROL, Measurement, Row
from robustclip.explanation import looks
from robustclip.explanation.looks import NOISY, Looks, Objective, look, numbers
from robustclip.explanation.maps import Mapper, Method, Target, energy_in_box, pointing_hit
from robustclip.pages.inputs import Pair
from robustclip.pages.report import About, Better, Case, Line, Version, View


@dataclass(frozen=True)
class Task:
    """Settings of all referees: the attack, if any, its objective, and whether to show input gradients."""

    spec: AttackSpec | None
    objective: Objective
    gradients: bool
    seed: int


@dataclass(frozen=True)
class Seen:
    """A referee's results on a batch by version: looks, numbers, and gradients as pictures."""

    looks: Looks
    numbers: dict[str, dict[str, Float[Tensor, " b"]]]
    gradients: dict[str, Float[Tensor, "b 3 H W"]] = field(default_factory=dict)


class Viewer:
    """A referee of the report with its mapper; None if it cannot be mapped, with the reason in `why`."""

    def __init__(
        self,
        named: NamedReferee,
        method: Method,
        layer: str | None,
        target: Target | None = None,
        *,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.named = named
        self.name = named.name
        self.mapper: Mapper | None = None
        self.why = ""
        self.places: dict[str, int] = {}
        try:
            self.mapper = Mapper(named.referee, method, layer, dtype=dtype, seed=seed, target=target)
        except UsageError as error:
            self.why = str(error)

    def read(self, texts: Sequence[str], among: Sequence[str] = ()) -> None:
        """Embed all texts of the call, each once; a softmax runs over the texts `among`."""
        if self.mapper is None:
            return
        self.places = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        self.embeddings = self.named.referee.embed_texts(list(self.places))
        self.among = self.embeddings[[self.places[text] for text in dict.fromkeys(among)]]

    def see(self, pairs: Sequence[Pair], images: Float[Tensor, "b 3 H W"], task: Task) -> Seen | None:
        """Results on a batch of pairs with these images; None without maps."""
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


class InformationViewer:
    """Maps of mutual information by a diffusion model: each latent cell's share of the MMSE gap (`pointwise_mi`).

    Shares are summed over channels, clamped at 0 as in GradCAM, and scaled to a maximum of 1. Not attacked. Raises
    UsageError for a name or folder without a diffusion model.
    """

    def __init__(self, model: str, device: torch.device, *, dtype: torch.dtype, seed: int) -> None:
        from robustclip.diffusion.pipelines import load_diffusion  # needs diffusers

        name = model.removeprefix(MARK)
        self.model = load_diffusion(name, device, dtype=dtype)
        self.name, self.seed = f"{MARK}{Path(name).name}", seed

    def about(self) -> About:
        """Its entry in the report's footer."""
        layer = f"latent cells of {self.model.factor}x{self.model.factor} pixels"
        return About(self.name, METRIC, layer, self.model.fingerprint)

    @torch.no_grad()
    def see(self, pairs: Sequence[Pair], images: Float[Tensor, "b 3 H W"]) -> tuple[Seen, list[View]]:
        """(results on a batch of clean images, each one's view)."""
        from robustclip.diffusion.selection import whole_in_cells

        latents = self.model.encode(whole_in_cells(self.model, images))
        texts, empty = self.model.embed_prompts([pair.text for pair in pairs]), self.model.embed_prompts([""])
        information = pointwise_mi(self.model, latents, texts, empty, draws=DRAWS, seed=self.seed)
        cells = information.maps.sum(1, keepdim=True).clamp(min=0)
        size = (images.shape[-2], images.shape[-1])
        maps = torch.nn.functional.interpolate(cells, size, mode="bilinear", align_corners=False)[:, 0].float().cpu()
        greatest = maps.amax((1, 2), keepdim=True)
        maps = maps / torch.where(greatest > 0, greatest, 1)
        nats, errors = information.nats.float().cpu(), information.standard_error.float().cpu()
        measured = {METRIC: nats}
        if (boxes := boxes_of(pairs)) is not None:
            measured |= {looks.POINTING: pointing_hit(maps, boxes).float(), looks.ENERGY: energy_in_box(maps, boxes)}
        views = [
            View(
                self.name,
                {looks.CLEAN: Version(float(nats[row]), maps[row] if greatest[row] > 0 else None)},
                numbers={"standard error": float(errors[row])}
                | ({looks.POINTING: bool(measured[looks.POINTING][row])} if boxes is not None else {}),
                why="" if greatest[row] > 0 else "zero everywhere: no cell speaks for the text",
            )
            for row in range(len(pairs))
        ]
        return Seen({}, {looks.CLEAN: measured}), views


def boxes_of(pairs: Sequence[Pair]) -> Int[Tensor, "b 4"] | None:
    """The boxes of the pairs' objects, if all are known."""
    boxes = [pair.box for pair in pairs if pair.box is not None]
    return torch.tensor(boxes) if len(boxes) == len(pairs) else None


def by_size(pairs: Sequence[Pair], batch_size: int) -> list[list[int]]:
    """Indices of the pairs of each batch: of one size, and all or none with boxes."""
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
    """Numbers of all pairs by referee, version and metric: (N,) float, NaN if missing."""

    values: dict[tuple[str, str, str], NDArray[np.float64]] = field(default_factory=dict)

    def add(self, name: str, places: Sequence[int], seen: Seen, count: int) -> None:
        """Add one referee's results on the pairs `places` out of `count`."""
        for version, by_metric in seen.numbers.items():
            for metric, values in by_metric.items():
                row = self.values.setdefault((name, version, metric), np.full(count, np.nan))
                row[list(places)] = values.double().numpy()

    def measurements(self, spec: AttackSpec | None) -> dict[str, list[Measurement]]:
        """Measurements by referee, for the table: without undefined values, hits as bool."""
        attacks = {looks.CLEAN: CLEAN}
        if spec is not None:
            attacks |= {looks.ATTACKED: str(spec), looks.NOISY: control_of(spec)}
        measured: dict[str, list[Measurement]] = {}
        for (name, version, metric), values in self.values.items():
            kept: NDArray[Any] = values
            if metric == looks.POINTING:
                kept = values[np.isfinite(values)] > 0
            if kept.size and (kept.dtype == bool or np.isfinite(kept).any()):
                measured.setdefault(name, []).append(Measurement(metric, attacks[version], kept))
        return measured

    def of(self, name: str, place: int) -> dict[str, dict[str, float | None]]:
        """One referee's numbers of one pair, by version, as plain values."""
        numbers: dict[str, dict[str, float | None]] = {}
        for (other, version, metric), values in self.values.items():
            if other == name:
                value = float(values[place])
                numbers.setdefault(version, {})[metric] = value if np.isfinite(value) else None
        return numbers


def case_of(
    pair: Pair,
    image: Float[Tensor, "3 H W"],
    row: int,
    viewers: Sequence[Viewer],
    seen: Mapping[str, Seen | None],
) -> Case:
    """The report's case of a pair and its image, at `row` of the viewers' batch."""
    views = [_view(viewer, seen[viewer.name], row) for viewer in viewers]
    noisy = next(
        (one.looks[looks.NOISY].images[row] for one in seen.values() if one and looks.NOISY in one.looks), None
    )
    return Case(pair.id, image, pair.text, views, pair.other, pair.box, noisy)


def _view(viewer: Viewer, seen: Seen | None, row: int) -> View:
    if seen is None or viewer.mapper is None:
        return View(viewer.name, why=viewer.why)
    versions = {
        name: Version(
            float(one.scores[row]),
            map=None if bool(one.heat.empty[row]) else one.heat.maps[row],
            gradient=seen.gradients[name][row] if name in seen.gradients else None,
            image=one.images[row] if name == looks.ATTACKED else None,
        )
        for name, one in seen.looks.items()
    }
    after = seen.numbers.get(looks.ATTACKED, {})
    values_: dict[str, float | bool | None] = {
        metric: float(after[metric][row])
        for metric in (looks.CORRELATION, looks.OVERLAP, looks.SHIFT)
        if metric in after
    }
    if looks.POINTING in seen.numbers[looks.CLEAN]:
        values_[looks.POINTING] = bool(seen.numbers[looks.CLEAN][looks.POINTING][row])
        if after:
            values_[f"{looks.POINTING}, attacked"] = bool(after[looks.POINTING][row])
    empty = any(bool(one.heat.empty[row]) for one in seen.looks.values())
    return View(viewer.name, versions, values_, viewer.mapper.why_empty() if empty else "")


def headline(lines: Sequence[Line]) -> str:
    """The main finding in words, of the referees with the highest and the lowest value: how much maps change under
    the attack; without one, how often they point into the boxes, or without boxes the cosines; "" without these."""
    attacked = [line for line in lines if line.images != CLEAN and not line.images.startswith(CONTROL)]
    clean = [line for line in lines if line.images == CLEAN]
    choices = (
        (attacked, looks.CORRELATION, "Under {}, the rank correlation of maps with those of the clean images is"),
        (clean, looks.POINTING, "On {} images, maps are largest inside the box in"),
        (clean, looks.SCORE, "On {} images, the mean cosine of image and text is"),
    )
    found = [(line, words) for rows, metric, words in choices for line in rows if line.metric == metric]
    if not found:
        return ""
    line, words = found[0]

    def rated(name: str) -> str:
        number = line.numbers[name]
        value, low, high = (
            f"{one:.1%}" if line.unit == "percent" else f"{one:.2f}" for one in (number.value, number.low, number.high)
        )
        return f"{value} ({low} to {high}, n = {number.n}) for {name}"

    ranked = sorted(line.numbers, key=lambda name: -line.numbers[name].value)
    opening = words.format(line.images)
    if len(ranked) == 1:
        return f"{opening} {rated(ranked[0])}."
    overlap = line.numbers[ranked[0]].low <= line.numbers[ranked[-1]].high
    compared = overlap and line.metric != looks.SCORE  # cosines of two referees are not of one scale
    return f"{opening} {rated(ranked[0])} and {rated(ranked[-1])}{'; the intervals overlap' if compared else ''}."


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Lines of the table: values of all referees by metric and attack."""
    lines: dict[tuple[str, str], dict[str, Interval]] = {}
    for row in rows:
        if row.kind == "value":
            lines.setdefault((row.metric, row.attack), {})[row.referee] = Interval(row.value, row.low, row.high, row.n)
    return [
        Line(metric, attack, of, BETTER.get(metric, ""), "percent" if metric == looks.POINTING else "number")
        for (metric, attack), of in lines.items()
    ]
