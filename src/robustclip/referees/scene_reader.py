"""Scene reader: detect the drawings of a scene and answer yes/no questions about them, on an embedded CLIP's tower.

Centres, boxes and colours are predicted on a grid (CenterNet, Zhou et al. 2019); crops of the boxes are classified
(R-CNN, Girshick et al. 2014). Answers are computed from these probabilities, calibrated by kind of question (Platt
1999).
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
from robustclip.referees.weights import load_strictly, read_weights, write_weights
from robustclip.runs.files import atomic_write, is_file, read_json, sha256

FAMILY: Final = "scene-reader"
WEIGHTS, NOUNS = "model.safetensors", "nouns.json"
SIDE: Final = 128  # pixels that the tower sees
GRID: Final = 16  # cells of a side
STAGES: Final = (2, 3, 4)  # of the trunk: 16x16, 8x8 and 4x4 cells of a picture of 128 pixels
WIDTH, INNER = 160, 384
START_SCALE: Final = 20.0  # initial scale of the cosines with the nouns' texts
CROP: Final = 64  # side of a box's crop, the input size of the embedded towers
MARGIN: Final = 0.05  # around a box, as a share of its longer side
MOST: Final = 12  # maximal detections per picture
FAINT: Final = 0.02  # least score of a detection
KINDS: Final = ("thing", "shape", "colour", "size", "texture", "count", "spatial", "comparison", "background")
LARGE: Final = 0.345  # longer side from which a thing is large, between SMALL and LARGE of compositions
NEAR_COLOUR: Final = 0.05  # softness of background colours, in RGB
SOFT: Final = 0.03  # softness of spatial and size relations, as a share of the side


class Cells(NamedTuple):
    """Predictions on a grid of g x g cells: logits of a drawing, of a drawing's centre, and of colours, and the box
    (top, left, bottom, right relative to the cell's centre, in shares of the side)."""

    drawn: Float[Tensor, "b g g"]
    middles: Float[Tensor, "b g g"]
    colours: Float[Tensor, "b c g g"]
    boxes: Float[Tensor, "b 4 g g"]


class Named(NamedTuple):
    """Logits of box contents: nouns (m,n) and textures (m,t)."""

    nouns: Float[Tensor, "m n"]
    textures: Float[Tensor, "m t"]


@dataclass
class SceneContent:
    """Detections in one picture, M at most 12: objectness (`sure`), probabilities of noun, colour and texture, and box
    (top, left, bottom, right in shares of the side); and probabilities of the background."""

    sure: Float[Tensor, " m"]
    nouns: Float[Tensor, "m n"]
    colours: Float[Tensor, "m c"]
    textures: Float[Tensor, "m t"]
    boxes: Float[Tensor, "m 4"]
    background: Float[Tensor, " k"]


@final
class SceneReader(nn.Module):
    """A frozen convolutional image tower, and small heads on its last three stages.

    Raises UsageError for a tower without intermediate stages.
    """

    tower: Any
    scales: Tensor
    shifts: Tensor

    def __init__(self, tower: TwoTower, nouns: Sequence[str], card: Card) -> None:
        super().__init__()
        self.tower = tower.image_tower
        if not hasattr(getattr(self.tower, "trunk", None), "forward_intermediates"):
            raise UsageError("this tower has no intermediate stages: take a CLIP with a convolutional timm tower")
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
        self.similar = nn.Linear(texts.shape[1], len(nouns))  # initialised as the CLIP's zero-shot classifier
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
        """Grid predictions for pictures in [0,1] of any size."""
        _, stages = self._stages(self.preprocess(images))
        cells = torch.cat([F.interpolate(stage, size=(GRID, GRID), mode="nearest") for stage in stages], 1)
        states = self.into(self.norm(cells.movedim(1, -1)).movedim(-1, 1))
        for block in self.blocks:
            states = states + block(states)
        drawn, middles, colours, boxes = (head(states).float() for head in self.heads)
        return Cells(drawn[:, 0], middles[:, 0], colours, boxes)

    def look(self, images: Float[Tensor, "b 3 h w"], rows: Sequence[int], boxes: Float[Tensor, "m 4"]) -> Named:
        """Classify the contents of M boxes (top, left, bottom, right in shares) of the pictures in `rows`."""
        crops = cropped(self.preprocess(images)[list(rows)], boxes.to(images.device))
        final, stages = self._stages(crops)
        embedded_crops = F.normalize(self.tower.head(self.tower.trunk.forward_head(final)).float(), dim=-1)
        inner = self.inner(torch.cat([stage.mean((2, 3)) for stage in stages], 1).float())
        return Named((self.similar(embedded_crops) + self.names(inner)).float(), self.textures(inner).float())

    def _stages(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            return self.tower.trunk.forward_intermediates(pixels, indices=list(STAGES))

    def contents(self, images: Float[Tensor, "b 3 h w"]) -> list[SceneContent]:
        """Detections in each picture: local maxima of the centre score."""
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
            results.append(SceneContent(*own, around, background(images[row], empty[row])))
        return results

    @torch.no_grad()
    def detect(
        self, images: Float[Tensor, "b 3 h w"], labels: Sequence[str], *, threshold: float = 0.3
    ) -> list[list[Detection]]:
        """Detections of `labels` in each picture, by descending score. Raises UsageError for an unknown noun."""
        columns = [self._column(label) for label in labels]
        results = []
        for content in self.contents(images.to(self.device)):
            scores = content.sure[:, None] * content.nouns[:, columns]
            best, which = scores.max(1)
            order = [row for row in best.argsort(descending=True).tolist() if best[row] >= threshold]
            boxes = content.boxes[:, [1, 0, 3, 2]].tolist()
            results.append([Detection(labels[int(which[row])], float(best[row]), tuple(boxes[row])) for row in order])
        return results

    @torch.no_grad()
    def yes(self, images: Float[Tensor, "b 3 h w"], questions: Sequence[Sequence[str]]) -> list[Float[Tensor, " q"]]:
        """The probability of yes to each question about each picture.

        Raises UsageError for a question that is not worded as the compositions', or has an unknown noun.
        """
        results = []
        for content, texts in zip(self.contents(images.to(self.device)), questions, strict=True):
            results.append(self.sure(content, [read_question(text) for text in texts]).cpu())
        return results

    def sure(self, content: SceneContent, questions: Sequence[ParsedQuestion]) -> Float[Tensor, " q"]:
        """The calibrated probability of yes to each question about one picture."""
        if not questions:
            return torch.zeros(0)
        raw = torch.stack([self.raw(content, one) for one in questions])
        kinds = torch.tensor([KINDS.index(one.kind) for one in questions], dtype=torch.long, device=self.device)
        return ((self.scales[kinds] * raw).sum(1) + self.shifts[kinds]).sigmoid()

    def raw(self, content: SceneContent, question: ParsedQuestion) -> Float[Tensor, 2]:
        """Uncalibrated logits of the objects' presence, and of their attributes or relation (0 without any)."""
        if question.background is not None:
            there = content.background[tuple(BACKGROUNDS).index(question.background)]
            attributes = content.sure.new_tensor(0.5)
        elif question.relation is None:
            there, attributes = self._has(content, question.things[0])
        else:
            there, attributes = self._related(content, question)
        return torch.logit(torch.stack([there, attributes]).clamp(1e-6, 1 - 1e-6))

    def _has(self, content: SceneContent, thing: Thing) -> tuple[Tensor, Tensor]:
        """Probabilities that any drawing is of the noun, and that the most likely one has the attributes. For a count:
        that so many are of the noun, relative to the most likely one, with independent drawings."""
        nouns = content.nouns[:, self._column(thing.noun)]
        each = content.sure * nouns
        best = int(each.argmax())
        attributes = [each.new_ones(())]
        if thing.colour:
            attributes.append(content.colours[best, tuple(COLOURS).index(thing.colour)])
        if thing.texture:
            attributes.append(content.textures[best, tuple(TEXTURES).index(thing.texture)])
        if thing.size:
            sign = 1 if thing.size == "large" else -1
            attributes.append((sign * (_longer(content.boxes)[best] - LARGE) / SOFT).sigmoid())
        if thing.number > 1:
            numbers = each.new_zeros(max(MOST, thing.number) + 1)
            numbers[0] = 1
            for one in content.sure * (nouns / nouns[best]).clamp(max=1):
                numbers = numbers * (1 - one) + torch.cat([numbers.new_zeros(1), numbers[:-1]]) * one
            attributes.append(numbers[thing.number])
        return 1 - (1 - each).prod(), torch.stack(attributes).prod() if len(attributes) > 1 else each.new_tensor(0.5)

    def _related(self, content: SceneContent, question: ParsedQuestion) -> tuple[Tensor, Tensor]:
        """Probabilities that both objects are present, and that their relation holds between their joint boxes."""
        sides, there = [], content.sure.new_ones(())
        for thing in question.things:
            each = content.sure * content.nouns[:, self._column(thing.noun)]
            there = there * (1 - (1 - each).prod())
            own = content.boxes[each >= min(0.5, float(each.max()))]
            sides.append(torch.cat([own[:, :2].amin(0), own[:, 2:].amax(0)]))
        return there, _holds(str(question.relation), sides[0], sides[1])

    def _column(self, noun: str) -> int:
        if noun not in self.nouns:
            raise UsageError(f"{noun[:60]!r} is not among the {len(self.nouns)} nouns of {self.card.name}")
        return self.nouns.index(noun)


def background(image: Float[Tensor, "3 h w"], empty: Float[Tensor, "g g"]) -> Float[Tensor, " k"]:
    """Probabilities of BACKGROUNDS by the mean colour of the empty cells."""
    cells = F.interpolate(image[None], size=empty.shape, mode="area")[0]
    weights = empty.pow(4)
    mean = (cells * weights).sum((1, 2)) / weights.sum().clamp(min=1e-6)
    colours = torch.tensor(list(BACKGROUNDS.values()), device=image.device)
    return (-((colours - mean).norm(dim=1) / NEAR_COLOUR).square()).softmax(0)


def cropped(images: Float[Tensor, "m 3 h w"], boxes: Float[Tensor, "m 4"]) -> Float[Tensor, "m 3 c c"]:
    """Square crops around boxes, resized to 64 pixels, with border padding."""
    half = (0.5 + MARGIN) * _longer(boxes).clamp(min=0.02)
    down, right = (boxes[:, :2] + boxes[:, 2:]).mT / 2
    zero = torch.zeros_like(half)
    # grid_sample's coordinates are in [-1, 1].
    across = torch.stack([2 * half, zero, 2 * right - 1], 1)
    along = torch.stack([zero, 2 * half, 2 * down - 1], 1)
    grid = F.affine_grid(torch.stack([across, along], 1), [len(images), 3, CROP, CROP], align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def _holds(relation: str, box: Float[Tensor, " 4"], other: Float[Tensor, " 4"]) -> Tensor:
    """Soft truth value, 0 to 1, of a relation between two boxes (top, left, bottom, right)."""
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
    """The centre of each cell (top, left), twice."""
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


def is_scene_reader(name_or_folder: str | Path) -> bool:
    """Whether a name or folder is a scene reader's."""
    folder = _folder_of(name_or_folder)
    return is_file(folder / CARD_FILE) and Card.load(folder).family == FAMILY


def load_scene_reader(name_or_folder: str | Path, device: str | torch.device = "cpu") -> SceneReader:
    """A scene reader by its embedded name or from a folder, frozen, in eval mode.

    Raises UsageError for a name or folder that is not a scene reader's, and RunError for damaged weights.
    """
    folder = _folder_of(name_or_folder)
    if not is_scene_reader(name_or_folder):
        raise UsageError(
            f"there is no scene reader {str(name_or_folder)[:200]!r}: give a folder, or a name "
            f"({', '.join(scene_reader_names())}){embedded.hint(name_or_folder)}"
        )
    card = Card.load(folder)
    tower = load_referee(str(card.architecture.get("tower")))
    if fingerprint(tower) != card.architecture.get("fingerprint"):
        raise UsageError(f"{folder} was trained on another {card.architecture.get('tower')!r} than the one here")
    refuse_other_files(folder, card)
    nouns = read_json(folder / NOUNS)
    if not (isinstance(nouns, list) and all(isinstance(noun, str) for noun in nouns)):
        raise UsageError(f"{folder / NOUNS} is not a list of nouns: give a whole folder")
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


def _is_own(name: str) -> bool:
    return not name.startswith(("tower.", "preprocess."))


def _folder_of(name_or_folder: str | Path) -> Path:
    return embedded.folders("scene_readers", CARD_FILE).get(str(name_or_folder), Path(name_or_folder))
