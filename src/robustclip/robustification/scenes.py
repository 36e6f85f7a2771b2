"""Training of scene readers on compositions, with targets from their masks and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from robustclip.data.composing import TEXTURES, Draw
from robustclip.data.compositions import CATEGORIES, Composition, compose, sprites
from robustclip.data.pairs import COLOURS
from robustclip.data.questions import contrasts, read_question
from robustclip.diffusion.fitting import Trainer
from robustclip.referees.scene_reader import GRID, KINDS, Cells, Named, SceneReader
from robustclip.runs.devices import autocast
from robustclip.runs.rng import generator

IGNORED: Final = -100
COVERED: Final = 0.15  # least share of a cell that a drawing covers for the cell to be labelled with it
NEAR: Final = 10.0  # weight of positive cells in the loss of middles
ATTRIBUTES: Final = ("colour", "size", "texture", "count")
"""Kinds of attributes of one object."""
JITTER: Final = 0.05  # standard deviation of the noise on box edges in training, as a share of the box's sides


@dataclass
class Targets:
    """Targets of B scenes with M drawings.

    By cell: drawn, middles, colours (b,g,g), IGNORED if unknown or next to a middle, and boxes (b,4,g,g) at middles.
    By drawing (m,): the row of its scene, its box (m,4) in shares of the side, noun and texture (IGNORED if none).
    """

    drawn: Tensor
    middles: Tensor
    colours: Tensor
    boxes: Tensor
    rows: list[int]
    around: Tensor
    nouns: Tensor
    textures: Tensor


def targets_of(scenes: Sequence[Composition], nouns: Sequence[str]) -> Targets:
    """A cell belongs to the drawing that covers most of it; a drawing's middle is its cell nearest to the box's
    centre."""
    columns = {noun: column for column, noun in enumerate(nouns)}
    grid = (len(scenes), GRID, GRID)
    drawn, middles, boxes = torch.zeros(grid), torch.zeros(grid), torch.zeros(len(scenes), 4, GRID, GRID)
    colours = torch.full(grid, IGNORED)
    rows: list[int] = []
    around, named, textures = [], [], []
    for row, scene in enumerate(scenes):
        side = scene.image.shape[-1]
        each = [(item, box) for item in scene.items for box in item.boxes]
        shares = F.adaptive_avg_pool2d(F.one_hot(scene.mask.long(), len(each) + 1).movedim(-1, 0).float(), GRID)[1:]
        covered, owner = shares.max(0)
        drawn[row] = (covered > COVERED).float()
        for number, (item, box) in enumerate(each):
            own = (owner == number) & (covered > COVERED)
            if item.colour:
                colours[row][own] = tuple(COLOURS).index(item.colour)
            down, right = _nearest(own if bool(own.any()) else shares[number] > 0, box, side)
            near = middles[row, max(0, down - 1) : down + 2, max(0, right - 1) : right + 2]
            near[near == 0] = IGNORED
            middles[row, down, right] = 1
            place = torch.tensor([down, right, down, right])
            boxes[row, :, down, right] = torch.tensor(box) / side - (place + 0.5) / GRID
            rows.append(row)
            around.append([edge / side for edge in box])
            named.append(columns[item.noun])
            textures.append(tuple(TEXTURES).index(item.texture) if item.texture else IGNORED)
    of_drawings = torch.tensor(around), torch.tensor(named), torch.tensor(textures)
    return Targets(drawn, middles, colours, boxes, rows, *of_drawings)


def _nearest(cells: Tensor, box: tuple[int, int, int, int], side: int) -> tuple[int, int]:
    """The cell nearest to the box's centre; of equally near ones, as of a ring, the top one. All cells count where none
    is given, for a thin drawing may have no opaque pixel."""
    places = (cells if bool(cells.any()) else torch.ones_like(cells)).nonzero()
    middle = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]) / side * GRID - 0.5
    away = (places - middle).norm(dim=1) + 0.1 * places[:, 0]
    down, right = places[int(away.argmin())].tolist()
    return down, right


def losses(cells: Cells, named: Named, targets: Targets) -> dict[str, Float[Tensor, ""]]:
    """Mean loss of each output."""
    known = targets.middles != IGNORED
    middles = F.binary_cross_entropy_with_logits(cells.middles, targets.middles.clamp(min=0), reduction="none")
    weights = known * torch.where(targets.middles == 1, NEAR, 1.0)
    at = targets.middles[:, None].expand_as(targets.boxes) == 1
    return {
        "drawn": F.binary_cross_entropy_with_logits(cells.drawn, targets.drawn),
        "middles": 2 * (middles * weights).sum() / weights.sum(),
        "colours": _entropy(cells.colours, targets.colours),
        "boxes": 10 * F.smooth_l1_loss(cells.boxes[at], targets.boxes[at], beta=0.05),
        "nouns": F.cross_entropy(named.nouns, targets.nouns, label_smoothing=0.05),
        "textures": _entropy(named.textures, targets.textures),
    }


def _entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if bool((targets == IGNORED).all()):
        return logits.sum() * 0
    return F.cross_entropy(logits, targets, ignore_index=IGNORED)


@dataclass
class SceneTrainer(Trainer):
    """Trains the head of a scene reader on compositions."""

    stateful = ("reader", "optimiser")
    shown = ("loss", "right")
    title = "training a scene reader"

    reader: SceneReader
    lr: float = field(default=2e-3, kw_only=True)

    def __post_init__(self) -> None:
        trained = [parameter for parameter in self.reader.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.05, betas=(0.9, 0.98))

    def step(
        self, images: Float[Tensor, "b 3 s s"], scenes: Sequence[Composition], stream: torch.Generator
    ) -> dict[str, float]:
        """One update on pictures in [0,1] of these scenes, with jittered boxes as crops; its metrics."""
        targets = targets_of(scenes, self.reader.nouns)
        sides = (targets.around[:, 2:] - targets.around[:, :2]).repeat(1, 2)
        jittered = targets.around + JITTER * sides * torch.randn(targets.around.shape, generator=stream)
        moved: dict[str, Any] = {k: v.to(images.device) for k, v in vars(targets).items() if isinstance(v, Tensor)}
        targets = replace(targets, **moved)
        with autocast(images.device, self.dtype):
            cells = self.reader.train()(images)
            named = self.reader.look(images, targets.rows, jittered.to(images.device))
        parts = losses(cells, named, targets)
        loss = torch.stack(list(parts.values())).sum()
        self.update(loss)
        self.done += 1
        right = (named.nouns.argmax(1) == targets.nouns).float().mean()
        return {"loss": loss.item(), "right": right.item(), **{name: value.item() for name, value in parts.items()}}


def calibrate(reader: SceneReader, split: str, *, seed: int, scenes: int) -> None:
    """Calibrate each kind's logits (Platt 1999) on questions about new scenes of a split: true, false, and attributes
    of absent objects."""
    logits: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    answers: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    reader.eval()
    for number in range(scenes * len(CATEGORIES)):
        scene = compose(number, split, seed=seed, size=64)
        draw = Draw(generator(seed, "calibration", number), sprites(split))
        present = {item.noun for item in scene.items}
        with torch.no_grad():
            content = reader.contents(scene.image[None].to(reader.device))[0]
            for pair in contrasts(scene, draw):
                parsed = [read_question(question.text) for question in pair]
                if parsed[0].kind in ATTRIBUTES:
                    absent = draw.one([noun for noun in reader.nouns if noun not in present])
                    parsed.append(parsed[0]._replace(things=[parsed[0].things[0]._replace(noun=absent)]))
                for place, one in enumerate(parsed):
                    logits[one.kind].append(reader.raw(content, one).cpu())
                    answers[one.kind].append(place == 0)
    for kind, values in logits.items():
        if values:
            row = KINDS.index(kind)
            reader.scales[row], reader.shifts[row] = platt(torch.stack(values), torch.tensor(answers[kind]))


def platt(logits: Float[Tensor, "n f"], answers: Bool[Tensor, " n"]) -> tuple[Float[Tensor, " f"], Float[Tensor, ""]]:
    """Scales (positive) and shift of maximal likelihood, with yes and no weighted equally."""
    fitted = torch.zeros(logits.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([fitted], max_iter=100, line_search_fn="strong_wolfe")
    targets = answers.float()
    weights = torch.where(answers, 0.5 / targets.mean().clamp(min=1e-6), 0.5 / (1 - targets.mean()).clamp(min=1e-6))

    def closure() -> Tensor:
        optimiser.zero_grad()
        content = logits @ fitted[:-1].exp() + fitted[-1]
        loss = F.binary_cross_entropy_with_logits(content, targets, weights)
        loss = loss + 1e-3 * fitted.square().sum()  # keeps scales finite if all answers are right
        loss.backward()
        return loss

    optimiser.step(closure)
    return fitted[:-1].detach().exp(), fitted[-1].detach()
