"""Find the drawings of a scene and answer yes/no questions about them, through the image tower of an embedded CLIP.

A grid of cells says where a drawing has its middle, its box and its colour (CenterNet, Zhou et al. 2019); what the box
holds, brought to the tower's own size, is named (R-CNN, Girshick et al. 2014). A question is answered from the
probabilities of these, calibrated by its kind (Platt 1999).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.data import embedded
from robustclip.data.composing import TEXTURES
from robustclip.data.compositions import BACKGROUNDS
from robustclip.data.pairs import COLOURS
from robustclip.data.questions import ParsedQuestion, Thing, read_question
from robustclip.errors import UsageError
from robustclip.referees.base import Detection, TwoTower
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.folder import refuse_other_files
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.registry import load_referee
from robustclip.referees.smoothed import fingerprint
from robustclip.referees.weights import digest, load_strictly, read_weights, write_weights
from robustclip.runs.files import atomic_write, is_file, read_json, sha256

FAMILY: Final = "scene-reader"
WEIGHTS, NOUNS = "model.safetensors", "nouns.json"
SIDE: Final = 128  # pixels that the tower sees
GRID: Final = 16  # cells of a side
STAGES: Final = (2, 3, 4)  # of the trunk: 16x16, 8x8 and 4x4 cells of a picture of 128 pixels
WIDTH, INNER = 160, 384
START_SCALE: Final = 20.0  # of the cosines with the nouns' texts, at first
CROP: Final = 64  # pixels of what a box holds, as the embedded towers see drawings
MARGIN: Final = 0.05  # of a box's longer side, around it
MOST: Final = 12  # drawings found in a picture
FAINT: Final = 0.02  # how sure one has to be a drawing to be named
KINDS: Final = ("thing", "shape", "colour", "size", "texture", "count", "spatial", "comparison", "background")
LARGE: Final = 0.345  # longer side from which a thing is large, between SMALL and LARGE of compositions
NEAR_COLOUR: Final = 0.05  # of backgrounds in RGB, over which one passes into another
SOFT: Final = 0.03  # share of the side over which a place or size passes from one to the other


class Cells(NamedTuple):
    """What a grid of g x g cells says: logits of a drawing's being there, of its middle's, and of colours, and top,
    left, bottom, right of the box from the cell's middle, in shares of the side."""

    drawn: Float[Tensor, "b g g"]
    middles: Float[Tensor, "b g g"]
    colours: Float[Tensor, "b c g g"]
    boxes: Float[Tensor, "b 4 g g"]


class Named(NamedTuple):
    """Logits of what boxes hold: nouns (m,n) and textures (m,t)."""

    nouns: Float[Tensor, "m n"]
    textures: Float[Tensor, "m t"]


@dataclass
class Found:
    """The drawings found in one picture, M at most 12: how sure each is one, probabilities of its noun, colour and
    texture, its box as top, left, bottom, right in shares of the side; and probabilities of the background."""

    sure: Float[Tensor, " m"]
    nouns: Float[Tensor, "m n"]
    colours: Float[Tensor, "m c"]
    textures: Float[Tensor, "m t"]
    boxes: Float[Tensor, "m 4"]
    background: Float[Tensor, " k"]


@final
class SceneReader(nn.Module):
    """A frozen convolutional image tower, and small heads on its last three stages.

    Raises UsageError for a tower whose stages can't be looked at.
    """

    tower: Any
    scales: Tensor
    shifts: Tensor

    def __init__(self, tower: TwoTower, nouns: Sequence[str], card: Card) -> None:
        super().__init__()
        self.tower = tower.image_tower
        if not hasattr(getattr(self.tower, "trunk", None), "forward_intermediates"):
            raise UsageError("this tower has no stages to look at: take a CLIP on a convolutional tower of timm")
        self.tower.eval().requires_grad_(False)
        self.nouns, self.card = list(nouns), card
        self.preprocess = Preprocess.from_config({**tower.preprocess.config(), "size": [SIDE, SIDE]})
        channels = sum(self.tower.trunk.feature_info[stage]["num_chs"] for stage in STAGES)
        self.norm = nn.LayerNorm(channels)
        self.into = nn.Conv2d(channels, WIDTH, 1)
        self.blocks = nn.ModuleList(_Block(WIDTH) for _ in range(2))
        heads = [nn.Conv2d(WIDTH, size, 1) for size in (1, 1, len(COLOURS), 4)]
        for head in heads:
            nn.init.normal_(head.weight, std=0.01)
        self.heads = nn.ModuleList(heads)
        texts = tower.embed_texts(self.nouns).detach()
        self.similar = nn.Linear(texts.shape[1], len(nouns))  # begins as the CLIP's own zero-shot answer
        with torch.no_grad():
            self.similar.weight.copy_(START_SCALE * texts)
        self.inner = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, INNER), nn.GELU())
        self.names, self.textures = nn.Linear(INNER, len(nouns)), nn.Linear(INNER, len(TEXTURES))
        self.register_buffer("scales", torch.ones(len(KINDS), 2))
        self.register_buffer("shifts", torch.zeros(len(KINDS)))

    @property
    def device(self) -> torch.device:
        return self.preprocess.mean.device

    def train(self, mode: bool = True) -> SceneReader:
        """The tower stays in eval mode."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Cells:
        """Look over pictures in [0,1] of any size."""
        _, stages = self._stages(self.preprocess(images))
        cells = torch.cat([F.interpolate(stage, size=(GRID, GRID), mode="nearest") for stage in stages], 1)
        states = self.into(self.norm(cells.movedim(1, -1)).movedim(-1, 1))
        for block in self.blocks:
            states = states + block(states)
        drawn, middles, colours, boxes = (head(states).float() for head in self.heads)
        return Cells(drawn[:, 0], middles[:, 0], colours, boxes)

    def look(self, images: Float[Tensor, "b 3 h w"], rows: Sequence[int], boxes: Float[Tensor, "m 4"]) -> Named:
        """Name what M boxes (top, left, bottom, right in shares) hold, each of the picture in its row."""
        crops = cropped(self.preprocess(images)[list(rows)], boxes.to(images.device))
        final, stages = self._stages(crops)
        embedded_crops = F.normalize(self.tower.head(self.tower.trunk.forward_head(final)).float(), dim=-1)
        inner = self.inner(torch.cat([stage.mean((2, 3)) for stage in stages], 1).float())
        return Named((self.similar(embedded_crops) + self.names(inner)).float(), self.textures(inner).float())

    def _stages(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            return self.tower.trunk.forward_intermediates(pixels, indices=list(STAGES))

    def found(self, images: Float[Tensor, "b 3 h w"]) -> list[Found]:
        """The drawings of each picture: cells that are more a middle than their eight neighbours."""
        cells = self(images)
        sure = cells.middles.sigmoid()
        peaks = (sure * (F.max_pool2d(sure[:, None], 3, 1, 1)[:, 0] == sure)).flatten(1)
        scores, at = peaks.topk(MOST)
        boxes = (cells.boxes + _middles(cells.boxes)).flatten(2)
        empty = 1 - cells.drawn.sigmoid()
        colours = cells.colours.softmax(1).flatten(2)
        results = []
        for row in range(len(images)):
            kept = at[row][scores[row] >= FAINT] if bool((scores[row] >= FAINT).any()) else at[row][:1]
            around = boxes[row][:, kept].T
            named = self.look(images, [row] * len(kept), around)
            own = peaks[row][kept], named.nouns.softmax(1), colours[row][:, kept].T, named.textures.softmax(1)
            results.append(Found(*own, around, background(images[row], empty[row])))
        return results

    @torch.no_grad()
    def detect(
        self, images: Float[Tensor, "b 3 h w"], labels: Sequence[str], *, threshold: float = 0.3
    ) -> list[list[Detection]]:
        """What of `labels` is found in each picture, the surest first. Raises UsageError for a noun it doesn't know."""
        columns = [self._column(label) for label in labels]
        results = []
        for found in self.found(images.to(self.device)):
            scores = found.sure[:, None] * found.nouns[:, columns]
            best, which = scores.max(1)
            order = [row for row in best.argsort(descending=True).tolist() if best[row] >= threshold]
            boxes = found.boxes[:, [1, 0, 3, 2]].tolist()
            results.append([Detection(labels[int(which[row])], float(best[row]), tuple(boxes[row])) for row in order])
        return results

    @torch.no_grad()
    def yes(self, images: Float[Tensor, "b 3 h w"], questions: Sequence[Sequence[str]]) -> list[Float[Tensor, " q"]]:
        """The probability of yes to each question about each picture.

        Raises UsageError for a question that is not worded as the compositions' are, or has a noun it does not know.
        """
        results = []
        for found, texts in zip(self.found(images.to(self.device)), questions, strict=True):
            asked = [read_question(text) for text in texts]
            results.append(self.sure(found, asked).cpu())
        return results

    def sure(self, found: Found, asked: Sequence[ParsedQuestion]) -> Float[Tensor, " q"]:
        """The calibrated probability of yes to each question about one picture."""
        if not asked:
            return torch.zeros(0)
        raw = torch.stack([self.raw(found, one) for one in asked])
        kinds = torch.tensor([KINDS.index(one.kind) for one in asked], dtype=torch.long, device=self.device)
        return ((self.scales[kinds] * raw).sum(1) + self.shifts[kinds]).sigmoid()

    def raw(self, found: Found, asked: ParsedQuestion) -> Float[Tensor, 2]:
        """The uncalibrated logits of the things' being there, and of what is said of them (0 where nothing is)."""
        if asked.background is not None:
            there, said = found.background[tuple(BACKGROUNDS).index(asked.background)], found.sure.new_tensor(0.5)
        elif asked.relation is None:
            there, said = self._has(found, asked.things[0])
        else:
            there, said = self._related(found, asked)
        return torch.logit(torch.stack([there, said]).clamp(1e-6, 1 - 1e-6))

    def _has(self, found: Found, thing: Thing) -> tuple[Tensor, Tensor]:
        """Some drawing is of the noun; and the one that is most likely so has what is said of it. For a number: so many
        are as likely of the noun as that one (the drawings taken for independent)."""
        nouns = found.nouns[:, self._column(thing.noun)]
        each = found.sure * nouns
        best = int(each.argmax())
        said = [each.new_ones(())]
        if thing.colour:
            said.append(found.colours[best, tuple(COLOURS).index(thing.colour)])
        if thing.texture:
            said.append(found.textures[best, tuple(TEXTURES).index(thing.texture)])
        if thing.size:
            sign = 1 if thing.size == "large" else -1
            said.append((sign * (_longer(found.boxes)[best] - LARGE) / SOFT).sigmoid())
        if thing.number > 1:
            numbers = each.new_zeros(max(MOST, thing.number) + 1)
            numbers[0] = 1
            for one in found.sure * (nouns / nouns[best]).clamp(max=1):
                numbers = numbers * (1 - one) + torch.cat([numbers.new_zeros(1), numbers[:-1]]) * one
            said.append(numbers[thing.number])
        return 1 - (1 - each).prod(), torch.stack(said).prod() if len(said) > 1 else each.new_tensor(0.5)

    def _related(self, found: Found, asked: ParsedQuestion) -> tuple[Tensor, Tensor]:
        """Both things are there; and their relation holds, of the boxes around all that are likely each."""
        sides, there = [], found.sure.new_ones(())
        for thing in asked.things:
            each = found.sure * found.nouns[:, self._column(thing.noun)]
            there = there * (1 - (1 - each).prod())
            own = found.boxes[each >= min(0.5, float(each.max()))]
            sides.append(torch.cat([own[:, :2].amin(0), own[:, 2:].amax(0)]))
        return there, _holds(str(asked.relation), sides[0], sides[1])

    def _column(self, noun: str) -> int:
        if noun not in self.nouns:
            raise UsageError(f"{self.card.name} knows {len(self.nouns)} nouns, and {noun[:60]!r} is none of them")
        return self.nouns.index(noun)


def background(image: Float[Tensor, "3 h w"], empty: Float[Tensor, "g g"]) -> Float[Tensor, " k"]:
    """Probabilities of BACKGROUNDS: how near the mean colour of the empty cells is to each."""
    cells = F.interpolate(image[None], size=empty.shape, mode="area")[0]
    weights = empty.pow(4)
    mean = (cells * weights).sum((1, 2)) / weights.sum().clamp(min=1e-6)
    colours = torch.tensor(list(BACKGROUNDS.values()), device=image.device)
    return (-((colours - mean).norm(dim=1) / NEAR_COLOUR).square()).softmax(0)


def cropped(images: Float[Tensor, "m 3 h w"], boxes: Float[Tensor, "m 4"]) -> Float[Tensor, "m 3 c c"]:
    """The square around each box, brought to 64 pixels; beyond the picture its rim is repeated."""
    half = (0.5 + MARGIN) * _longer(boxes).clamp(min=0.02)
    down, right = (boxes[:, :2] + boxes[:, 2:]).mT / 2
    zero = torch.zeros_like(half)
    # Coordinates of grid_sample run from -1 to 1.
    across = torch.stack([2 * half, zero, 2 * right - 1], 1)
    along = torch.stack([zero, 2 * half, 2 * down - 1], 1)
    grid = F.affine_grid(torch.stack([across, along], 1), [len(images), 3, CROP, CROP], align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def _holds(relation: str, box: Float[Tensor, " 4"], other: Float[Tensor, " 4"]) -> Tensor:
    """How much a relation of two boxes (top, left, bottom, right) holds, 0 to 1."""
    down, right = ((other[i] + other[i + 2] - box[i] - box[i + 2]) / 2 for i in (0, 1))
    if relation in ("left", "right", "above", "below"):
        along, across = (right, down) if relation in ("left", "right") else (down, right)
        along = along if relation in ("left", "above") else -along
        return (along / SOFT).sigmoid() * ((along.abs() - across.abs()) / SOFT).sigmoid()
    longer, shorter = _longer(box[None])[0], _longer(other[None])[0]
    if relation == "inside":
        sizes = torch.minimum(box[2:], other[2:]) - torch.maximum(box[:2], other[:2])
        share = sizes.clamp(min=0).prod() / (box[2:] - box[:2]).clamp(min=1e-3).prod()
        return ((share - 0.7) / 0.1).sigmoid() * ((shorter - longer) / SOFT).sigmoid()
    return ((longer - shorter) * (1 if relation == "bigger" else -1) / SOFT).sigmoid()


def _longer(boxes: Float[Tensor, "m 4"]) -> Float[Tensor, " m"]:
    return (boxes[:, 2:] - boxes[:, :2]).amax(1)


def _middles(like: Tensor) -> Float[Tensor, "4 g g"]:
    """The place of each cell's middle, twice."""
    line = (torch.arange(GRID, device=like.device) + 0.5) / GRID
    down, right = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([down, right, down, right])


class _Block(nn.Module):
    """ConvNeXt's block with a 5x5 depthwise convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, states: Float[Tensor, "b w g g"]) -> Float[Tensor, "b w g g"]:
        inner = self.norm(self.depthwise(states).movedim(1, -1))
        return self.down(F.gelu(self.up(inner))).movedim(-1, 1)


def scene_reader_names() -> list[str]:
    """The scene readers that come with the package."""
    return list(embedded.folders("scene_readers", CARD_FILE))


def is_scene_reader(given: str | Path) -> bool:
    """Whether a name or folder is a scene reader's."""
    folder = _folder_of(given)
    return is_file(folder / CARD_FILE) and Card.load(folder).family == FAMILY


def load_scene_reader(given: str | Path, device: str | torch.device = "cpu") -> SceneReader:
    """A scene reader by its embedded name or from a folder, frozen, in eval mode.

    Raises UsageError for a name and folder that is none, and RunError for damaged weights.
    """
    folder = _folder_of(given)
    if not is_scene_reader(given):
        raise UsageError(
            f"there is no scene reader {str(given)[:200]!r}: give a folder, or a name "
            f"({', '.join(scene_reader_names())}){embedded.hint(given)}"
        )
    card = Card.load(folder)
    tower = load_referee(str(card.architecture.get("tower")))
    if fingerprint(tower) != card.architecture.get("fingerprint"):
        raise UsageError(f"{folder} was trained on another {card.architecture.get('tower')!r} than the one here")
    refuse_other_files(folder, card)
    nouns = read_json(folder / NOUNS)
    if not (isinstance(nouns, list) and all(isinstance(noun, str) for noun in nouns)):
        raise UsageError(f"{folder / NOUNS} is no list of nouns: give a whole folder")
    reader = SceneReader(tower, nouns, card)
    own = {name: value.float() for name, value in read_weights(folder / WEIGHTS).items()}
    own |= {name: value for name, value in reader.state_dict().items() if not _is_own(name)}
    load_strictly(reader, own, source=str(folder / WEIGHTS), hint="Give a whole folder, or train it again")
    return reader.to(device).eval().requires_grad_(False)


def save_scene_reader(reader: SceneReader, folder: Path, tower: str, *, provenance: dict[str, Any]) -> Card:
    """Write card, nouns and weights in half precision; of the image tower only its name and fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS, {k: v for k, v in reader.state_dict().items() if _is_own(k)}, half=True)
    with atomic_write(folder / NOUNS, "w") as file:
        json.dump(reader.nouns, file)
    card = Card(
        name=reader.card.name,
        family=FAMILY,
        architecture={"tower": tower, "fingerprint": fingerprint(load_referee(tower))},
        preprocess=reader.preprocess.config(),
        logit_scale=1.0,
        weights={name: sha256(folder / name) for name in (WEIGHTS, NOUNS)},
        provenance=provenance,
    )
    card.save(folder, usage=USAGE.format(name=card.name))
    return card


USAGE: Final = """from robustclip.referees.scene_reader import load_scene_reader

reader = load_scene_reader("{name}")  # or the path of this folder
reader.yes(images, [["a blue butterfly?", "three fish?"]] * len(images))"""


def reader_fingerprint(reader: SceneReader) -> str:
    """A sha256 of all its weights."""
    return digest(reader.state_dict())


def _is_own(name: str) -> bool:
    return not name.startswith(("tower.", "preprocess."))


def _folder_of(given: str | Path) -> Path:
    return embedded.folders("scene_readers", CARD_FILE).get(str(given), Path(given))
