"""DOODL's evaluations besides prompts: held-out classes, exemplar drawings, and aesthetics of given drawings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from robustclip.data.emoji import LabelledImages, embedded_prompts, emoji_drawing, label_index, load_emoji
from robustclip.data.images import resize, save_image
from robustclip.evaluation.generation.embeddings import cosine, embed, embed_texts
from robustclip.evaluation.generation.measure import frechet_distance
from robustclip.evaluation.generation.results import Column
from robustclip.evaluation.named import NamedReferee
from robustclip.referees.base import TwoTower
from robustclip.referees.registry import load_referee
from robustclip.runs.rng import generator
from robustclip.views import Views
from robustclip.views.policies import RandomSquares

PLAIN: Final = "plain sampling"
SCALE: Final = 300.0  # of one-step guidance by similarity, chosen on prompts outside the tables
SHADED, FLAT = ("noto", "fluent-emoji"), ("fluent-emoji-flat",)  # of the guides' styles
ColumnValues = dict[Column, Any]
Measure = Callable[[str, Tensor, Mapping[Column, Any]], ColumnValues]
"""(row, its pictures, the base row's columns) -> its own columns."""


@dataclass
class Part:
    """Rows of one kind. calls: arguments of `synthesize doodl`, whose pictures together make up a row; cells: each
    row's changes to all calls ("recipe" selects another recipe); fixed: rows that are not painted; pairs: rows to
    compare, in addition to each with the base."""

    base: str
    prompts: list[str]
    calls: list[dict[str, Any]]
    cells: dict[str, dict[str, Any]]
    measure: Measure
    fixed: dict[str, Tensor] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class World:
    """Settings shared by the parts."""

    robust: str
    control: str
    clips: list[NamedReferee]
    readers: dict[str, Any]
    count: int
    given: int
    seeds: list[int]
    steps: int
    chain_steps: int
    rcp_steps: int
    folder: Path
    device: torch.device

    @property
    def samples(self) -> int:
        """N of best-of-N at the number of denoiser evaluations of DOODL."""
        return 2 * self.steps + 1

    def shown(self, texts: Sequence[str]) -> list[str]:
        """The prompt of each picture."""
        return [text for text in texts for _ in self.seeds]

    def guide(self, name: str) -> TwoTower:
        """A guide by name, in eval mode."""
        return load_referee(name, device=str(self.device)).eval()


def vocabulary(world: World, texts: list[str]) -> Part:
    """Classes held out from the diffusion model, guided by a classifier fitted on their drawings in the guides'
    styles."""
    del texts
    drawings, names = held_back(world.count)
    styles = {*SHADED, *FLAT, "noto-v1", "emojione", "fxemoji"}
    ours = [style in styles for style in drawings.styles]
    theirs = [row for row, one in enumerate(ours) if not one]
    folder = world.folder / "classifier"
    if not folder.is_dir():
        fit_classifier(drawings.subset([row for row, one in enumerate(ours) if one]), names, folder, world.robust)
    prompts = world.shown(names)
    embedded = {judge.name: embed(judge.referee, drawings.images) for judge in world.clips}

    def measure(cell: str, images: Tensor, base: Mapping[Column, Any]) -> ColumnValues:
        """recognised: accuracy of nearest-class-mean classification, with means of drawings in styles that the
        classifier was not fitted on; distance: Fréchet distance of the class's pictures to all of its drawings."""
        del cell, base
        columns: ColumnValues = {}
        labels = torch.tensor([names.index(prompt) for prompt in prompts])
        for judge in world.clips:
            own, real = embed(judge.referee, images), embedded[judge.name]
            means = torch.stack([real[theirs][drawings.labels[theirs] == one].mean(0) for one in range(len(names))])
            columns[Column("recognised", judge.name)] = ((own @ means.T).argmax(1) == labels).numpy()
            if len(world.seeds) > 1:
                apart = [
                    frechet_distance(own[labels == one], real[drawings.labels == one]) for one in range(len(names))
                ]
                columns[Column("distance", judge.name)] = [apart[label] for label in labels.tolist()]
        return columns

    calls = [{"prompt": [name], "classifier": str(folder), "class_name": name} for name in names]
    cells: dict[str, dict[str, Any]] = {
        PLAIN: {"method": "plain"},
        "DOODL": {},
        "best of N": {"method": "best-of", "crops": 0, "candidates": world.samples},
        "one-step guidance": {"method": "one-step", "one_step_scale": SCALE / 20},
    }
    return Part(PLAIN, prompts, calls, cells, measure, pairs=[("DOODL", "best of N"), ("DOODL", "one-step guidance")])


def exemplars(world: World, texts: list[str]) -> Part:
    """Guidance by one exemplar drawing each, in a style that no guide was trained on."""
    del texts
    names = [one.prompt for one in embedded_prompts() if one.kind == "name"][: world.count]
    files = [world.folder / "given" / f"{number:02d}.png" for number in range(len(names))]
    drawings_of_names = torch.stack([emoji_drawing(name) for name in names])
    files[0].parent.mkdir(exist_ok=True)
    for file, image in zip(files, drawings_of_names, strict=True):
        save_image(image, file)
    prompts = world.shown(names)
    targets = drawings_of_names.repeat_interleave(len(world.seeds), 0)
    guide = world.guide(world.robust)

    def measure(cell: str, images: Tensor, base: Mapping[Column, Any]) -> ColumnValues:
        """Similarity to the exemplar, and whether the own prompt is the nearest of all prompts."""
        del cell, base
        columns: ColumnValues = {Column("exemplar", world.robust): image_cosine(guide, images, targets)}
        for judge in world.clips:
            columns[Column("exemplar", judge.name)] = image_cosine(judge.referee, images, targets)
            rows = embed(judge.referee, images) @ embed_texts(judge.referee, names).of(names).T
            labels = torch.tensor([names.index(prompt) for prompt in prompts])
            columns[Column("prompt", judge.name)] = (rows.argmax(1) == labels).numpy()
        return columns

    calls = [{"prompt": [name], "exemplar": [str(file)]} for name, file in zip(names, files, strict=True)]
    cells: dict[str, dict[str, Any]] = {
        PLAIN: {"method": "plain"},
        "DOODL": {},
        "best of N": {"method": "best-of", "crops": 0, "candidates": world.samples},
        "one-step guidance": {"method": "one-step", "one_step_scale": SCALE},
    }
    pairs = [("DOODL", "best of N"), ("DOODL", "one-step guidance")]
    return Part(PLAIN, prompts, calls, cells, measure, fixed={"the exemplars": targets}, pairs=pairs)


def aesthetics(world: World, texts: list[str]) -> Part:
    """Given drawings changed to shaded (up) and flat (down). Heads of guide and judges are fitted on different
    concepts."""
    del texts
    pool = load_emoji("guide-styles")
    heads = {world.robust: fit_head(world.guide(world.robust), pool, part=0)}
    heads |= {judge.name: fit_head(judge.referee, pool, part=1) for judge in world.clips}
    file = world.folder / "head.safetensors"
    save_file({name: value.contiguous() for name, value in heads[world.robust].items()}, file)
    held = load_emoji("heldout-concepts")
    halves = [[row for row, one in enumerate(held.styles) if one == style] for style in ("fluent-emoji-flat", "noto")]
    rows = [halves[number % 2][number] for number in range(min(world.given, len(halves[0])))]
    originals = held.images[rows]
    (world.folder / "given").mkdir(exist_ok=True)
    calls = []
    for number, image in enumerate(originals):
        place = world.folder / "given" / f"{number:02d}.png"
        save_image(image, place)
        calls.append({"prompt": ["a drawing"], "model_prompt": "", "guidance": 1.0, "init": str(place), "seeds": [0]})
    towers = {judge.name: judge.referee for judge in world.clips}
    towers[world.robust] = world.guide(world.robust)
    unchanged = "encoded and sampled, unchanged"

    def measure(cell: str, images: Tensor, base: Mapping[Column, Any]) -> ColumnValues:
        """wins: whether the judge's score moved in the aimed direction, compared with the base."""
        columns: ColumnValues = {
            Column("score", name): (embed(towers[name], images) @ head["weight"][0] + head["bias"]).numpy()
            for name, head in heads.items()
        }
        same = resize(originals, (images.shape[-2], images.shape[-1]))
        columns[Column("RMS to the given")] = (images - same).square().mean((1, 2, 3)).sqrt().numpy()
        for judge in world.clips:
            columns[Column("given", judge.name)] = image_cosine(judge.referee, images, originals)
            if cell.startswith(("up", "down")):
                moved = columns[Column("score", judge.name)] - base[Column("score", judge.name)]
                columns[Column("wins", judge.name)] = moved > 0 if cell.startswith("up") else moved < 0
        return columns

    cells: dict[str, dict[str, Any]] = {unchanged: {"aesthetics": [str(file)], "steps": 0}}
    for aim in ("up", "down"):
        guided = {"aesthetics": [str(file)], "aim": aim}
        cells[f"{aim}, DOODL"] = guided
        cells[f"{aim}, one-step guidance"] = guided | {"method": "one-step", "one_step_scale": SCALE / 20}
    titles = [f"{held.label_names[int(held.labels[row])]}, {held.styles[row]}" for row in rows]
    return Part(unchanged, titles, calls, cells, measure, fixed={"given": originals})


def prompt_cosine(judge: Any, images: Tensor, prompts: Sequence[str]) -> Any:
    """Cosine of each picture and its prompt."""
    return cosine(embed(judge, images), embed_texts(judge, prompts).of(prompts)).numpy()


def image_cosine(judge: Any, images: Tensor, others: Tensor) -> Any:
    """Cosine of each picture and another."""
    return cosine(embed(judge, images), embed(judge, others)).numpy()


def held_back(count: int) -> tuple[LabelledImages, list[str]]:
    """Drawings of `count` held-out concepts, labelled 0, 1, ..., and their names."""
    _, places = label_index()
    chosen = [one for one in embedded_prompts() if one.kind == "held-out name"][:count]
    numbers = {places[str(one.concept)]: number for number, one in enumerate(chosen)}
    drawings = load_emoji("heldout-concepts")
    kept = drawings.subset([row for row, label in enumerate(drawings.labels.tolist()) if label in numbers])
    labels = torch.tensor([numbers[label] for label in kept.labels.tolist()])
    names = [one.prompt for one in chosen]
    return LabelledImages(labels, names, kept.captions, kept.ids, kept.styles, images=kept.images), names


def linear(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Logistic regression: weights (C,D) and biases (C,)."""
    mean, std = features.mean(0), features.std() + 1e-6
    scaled = (features - mean) / std
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    descent = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        descent.zero_grad()
        loss = torch.nn.functional.cross_entropy(scaled @ weight.T + bias, labels) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    descent.step(closure)
    weight, bias = weight.detach() / std, bias.detach()
    return weight, bias - weight @ mean


def fit_classifier(drawings: LabelledImages, names: list[str], folder: Path, referee: str) -> None:
    """A last layer on the referee's frozen trunk, fitted on crops of drawings, in the layout of timm."""
    tower = load_referee(referee).eval()
    trunk: Any = tower.image_tower.trunk
    model: Any = timm.create_model("resnet10t", num_classes=len(names))
    weights = {key: value for key, value in trunk.state_dict().items() if not key.startswith("fc.")}
    model.load_state_dict(weights, strict=False)
    model.eval()
    look = Views(16, (RandomSquares((64, 64), 0.3, 32, averaged=True),))
    views = look(drawings.images, [generator(row, "crops") for row in range(len(drawings))]).flatten(0, 1)
    config = tower.preprocess.config()
    with torch.no_grad():
        features = torch.cat([pooled(model, tower.preprocess(part)) for part in views.split(256)])
        weight, bias = linear(features, drawings.labels.repeat_interleave(16), len(names))
        model.fc.weight.copy_(weight)
        model.fc.bias.copy_(bias)
    model.pretrained_cfg = model.pretrained_cfg | {
        "input_size": (3, 64, 64),
        "mean": config["mean"],
        "std": config["std"],
    }
    timm.models.save_for_hf(model, str(folder), {"label_names": names}, safe_serialization=True)


def pooled(model: Any, pixels: Tensor) -> Tensor:
    """Pooled features of a timm model, before its last layer."""
    return model.forward_head(model.forward_features(pixels), pre_logits=True)


def fit_head(tower: Any, pool: LabelledImages, part: int) -> dict[str, Tensor]:
    """A linear head on unit embeddings: shaded above 0, flat below, from every second concept."""
    rows = [
        row
        for row, (style, label) in enumerate(zip(pool.styles, pool.labels.tolist(), strict=True))
        if style in SHADED + FLAT and label % 2 == part
    ]
    labels = torch.tensor([int(pool.styles[row] in SHADED) for row in rows])
    weight, bias = linear(embed(tower, pool.images[rows]), labels, 2)
    return {"weight": weight[1:] - weight[:1], "bias": bias[1:] - bias[:1]}
