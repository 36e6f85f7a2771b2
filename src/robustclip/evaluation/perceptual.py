"""Two-alternative forced choice: how often a distance finds the nearer of two images, clean and under attack.

Triplets have a reference and two images, of which one is nearer. On embedded drawings both are the reference under one
corruption, at two strengths, and the weaker is nearer; NIGHTS (Fu et al. 2023) has people's votes. The attack moves the
reference within a norm ball so that the nearer image looks farther than the other (Croce et al. 2024 attack 2AFC too;
steps and starts here are those of the given PGD).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from robustclip.attacks.spec import AttackSpec, random_perturbation, size_of
from robustclip.data.embedded import EMBEDDED_DATA
from robustclip.data.examples import Examples, read_examples
from robustclip.data.images import load_image
from robustclip.data.pictures import Pictures, Stored, draw_subset
from robustclip.data.tables import read_table
from robustclip.errors import UsageError, require
from robustclip.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from robustclip.evaluation.intervals import Interval, rate
from robustclip.evaluation.named import Setting, control_of
from robustclip.evaluation.report import CLEAN, Findings, Measurement
from robustclip.losses.perceptual import Embed, PerceptualDistance, Triplets, mislead
from robustclip.referees.base import TwoTower
from robustclip.referees.registry import load_referee
from robustclip.referees.similarity import batches
from robustclip.referees.weights import load_strictly, read_weights
from robustclip.runs.devices import autocast, pick_device
from robustclip.runs.rng import each, generator
from robustclip.signatures import typed

BATCH: Final = 60
NIGHTS_SIDE: Final = 224
NIGHTS_TABLE: Final = "data.csv"
NIGHTS_COLUMNS: Final = ("votes", "split", "ref_path", "left_path", "right_path")
CHOICE: Final = 2  # the column of the votes for the right image, by its place, as DreamSim's and R-CLIP's code read it
UNANIMOUS: Final = 6  # votes, of which NIGHTS' evaluation takes no fewer
IMAGENET: Final = {"test_imagenet": "True", "test_no_imagenet": "False"}


@typed
def distance(
    a: Annotated[Path, "a picture"],
    b: Annotated[Path, "another picture, of any size"],
    *,
    referee: Annotated[str, "name, tag or folder of the referee that sees both"] = "emoji-robust",
    lpips: Annotated[
        Path | None, "torchvision's alexnet, vgg16 or squeezenet1_1 weights: print LPIPS by this network too"
    ] = None,
    device: str = "auto",
) -> dict[str, float | str]:
    """Perceptual distance of two pictures: 1 - cosine of their embeddings, from 0 (the same to the referee) to 2.

    Raises UsageError for files that are no pictures, for an unknown referee, and for a file that is no backbone of
    LPIPS, or pictures that LPIPS cannot compare.
    """
    beside: dict[str, float | str] = {}
    pictures = [load_image(path)[None] for path in (a, b)]
    if lpips is not None:
        network, compare = load_lpips(lpips)
        beside = {"lpips": compare(*pictures).item(), "lpips_network": network}
    seeing = load_referee(referee, device=str(pick_device(device)))
    with torch.no_grad():
        found = PerceptualDistance(seeing)(*(picture.to(seeing.device) for picture in pictures))
    return {"distance": found.item(), "referee": seeing.card.name, **beside}


def corruption_triplets(
    data: str = EMBEDDED_DATA + "unseen-styles",
    *,
    kinds: Sequence[str] = tuple(CORRUPTIONS),
    size: int | None = None,
    limit: int = 240,
    seed: int = 0,
) -> Triplets:
    """`limit` drawings, each under one of the `kinds` of corruption in turn, at two strengths drawn by the seed and the
    id; of a folder, pictures of `size`. Raises UsageError for an unknown kind, none, and data that is not there."""
    return triplets_of(read_examples(data, size=size, limit=limit, seed=seed), kinds, seed=seed)


def triplets_of(examples: Examples, kinds: Sequence[str] = tuple(CORRUPTIONS), *, seed: int = 0) -> Triplets:
    """The triplets of a set that has some (`Examples.choices`), else each image under corruptions, as
    `corruption_triplets`."""
    if examples.choices is not None:
        return Triplets(examples.name, examples.images, *examples.choices, examples.ids)
    if not kinds:
        raise UsageError(f"a triplet needs a kind of corruption: give some of {', '.join(CORRUPTIONS)}", "no_triplets")
    parts = []
    for place, (name, stream) in enumerate(zip(examples.ids, each(seed, "2afc", ids=examples.ids), strict=True)):
        weak, strong = sorted(STRENGTHS[i] for i in torch.randperm(len(STRENGTHS), generator=stream)[:2].tolist())
        image, kind = examples.images[torch.tensor([place])], kinds[place % len(kinds)]
        damaged = [corrupted(image, kind, strength, seed=seed, ids=[name]) for strength in (weak, strong)]
        parts.append((image, *damaged))
    reference, nearer, farther = (torch.cat(column) for column in zip(*parts, strict=True))
    return Triplets(f"corruptions of {examples.name}", reference, nearer, farther, examples.ids)


def read_nights(
    folder: Path, split: str = "test_no_imagenet", *, size: int = 224, limit: int | None = None, seed: int = 0
) -> Triplets:
    """NIGHTS' folder: data.csv, and the pictures that it names, decoded lazily and resized to a square of `size`.

    `split` is train, val, test, or a part of that, test_imagenet or test_no_imagenet; triplets of fewer than 6 votes
    are left out, as in the data of DreamSim. Raises UsageError for a missing table, column or picture, and for an empty
    split.
    """
    table = Path(folder) / NIGHTS_TABLE
    header, rows, _ = read_table(table, ",")
    missing = [name for name in NIGHTS_COLUMNS if name not in header]
    if missing or (split in IMAGENET and "is_imagenet" not in header):
        message = f"{table} is not NIGHTS' table: it has no column {', '.join(missing) or 'is_imagenet'}"
        raise UsageError(message, "not_nights", path=str(table))
    column = {name: header.index(name) for name in header}
    asked = "test" if split in IMAGENET else split
    chosen = [row for _, row in rows if row[column["split"]] == asked and _votes(row, column, table) >= UNANIMOUS]
    if split in IMAGENET:
        chosen = [row for row in chosen if row[column["is_imagenet"]].strip().capitalize() == IMAGENET[split]]
    if not chosen:
        raise UsageError(f"{table} has no triplet of the split {split!r} with {UNANIMOUS} votes", "empty_split")
    if limit is not None:
        chosen = [chosen[index] for index in draw_subset(range(len(chosen)), limit, seed)]
    votes = [_number(row[CHOICE], table) > 0.5 for row in chosen]
    sides = (
        [("left_path", "right_path")[right] for right in votes],
        [("right_path", "left_path")[right] for right in votes],
    )

    def pictures(names: list[str]) -> Pictures:
        paths = [Path(folder) / row[column[name]] for row, name in zip(chosen, names, strict=True)]
        lost = [path for path in paths if not path.is_file()]
        if lost:
            raise UsageError(f"{table} names {lost[0]}, which is not there", "not_nights", path=str(table))
        return Pictures([Stored(path) for path in paths], (size, size))

    reference, nearer, farther = (pictures(names) for names in (["ref_path"] * len(chosen), *sides))
    return Triplets(f"NIGHTS {split}", reference, nearer, farther, [row[0] for row in chosen])


def nights_examples(
    folder: str | Path, *, size: int | None = None, limit: int | None = None, seed: int = 0
) -> Examples:
    """NIGHTS' whole test split as evaluation data, by default of 224x224 pixels. Errors as `read_nights`."""
    side = size or NIGHTS_SIDE
    found = read_nights(Path(folder), "test", size=side, limit=limit, seed=seed)
    return Examples(
        Path(folder).as_posix(),
        found.reference,
        (side, side),
        found.ids,
        torch.empty(0, dtype=torch.long),
        [],
        [],
        reported=(f"{len(found):,} triplets of {found.name}",),
        choices=(found.nearer, found.farther),
    )


def _votes(row: list[str], column: dict[str, int], table: Path) -> float:
    return _number(row[column["votes"]], table)


def _number(text: str, table: Path) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{table}: {text[:50]!r} is not a number of votes", "not_nights", path=str(table)) from error


def two_afc(
    embed: Embed,
    triplets: Triplets,
    attack: AttackSpec | None = None,
    *,
    control: bool = False,
    device: str | torch.device = "cpu",
    seed: int = 0,
    batch_size: int = BATCH,
    title: str = "",
) -> tuple[Interval, Bool[NDArray[np.bool_], " n"]]:
    """The share of triplets whose nearer image is found, with Wilson's interval, and the answers one by one.

    `embed` maps images to embeddings, unit ones for `PerceptualDistance(referee).embed`; flattened pixels make the
    pixels' distance. Ties count as wrong. `attack` is PGD on the reference, `control` noise of its norm and eps in its
    place. Raises UsageError for an attack on classifiers.
    """
    hits, apart = [], PerceptualDistance.between
    for rows in batches(torch.arange(len(triplets)), batch_size, title or f"2AFC, {attack or CLEAN}"):
        moved, near, far = (one[rows].to(device) for one in (triplets.reference, triplets.nearer, triplets.farther))
        with torch.no_grad():
            nearer, farther = embed(near), embed(far)
        if attack is not None and control:
            moved = random_perturbation(moved, attack.threat(size_of(moved)), seed=seed, indices=rows)
        elif attack is not None:
            attack.check_pgd("a distance")
            moved = mislead(
                embed,
                moved,
                nearer,
                farther,
                attack.threat(size_of(moved)),
                steps=attack.steps,
                step_size=attack.step_size,
                restarts=attack.restarts,
                generator=generator(seed, "2afc attack", int(rows[0])),
            )
        with torch.no_grad():
            found = embed(moved)
            hits.append((apart(found, nearer) < apart(found, farther)).cpu().numpy())
    answers = np.concatenate(hits)
    return rate(answers), answers


def forced_choice(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """2AFC accuracy of the referee's distance (`triplets_of`): clean, under noise of each attack's norm and eps, and
    under PGD on the distance."""
    triplets, found = triplets_of(setting.examples, seed=setting.seed), Findings()

    def embed(images: Tensor) -> Tensor:
        with autocast(referee.device, setting.dtype):
            return referee.embed_images(images).float()

    runs: dict[str, tuple[AttackSpec | None, bool]] = {CLEAN: (None, False)}
    runs |= {control_of(spec): (spec, True) for spec in setting.attacks}
    runs |= {str(spec): (spec, False) for spec in setting.attacks}
    for name, (spec, control) in runs.items():
        _, answers = two_afc(
            embed,
            triplets,
            spec,
            control=control,
            device=referee.device,
            seed=setting.seed,
            batch_size=setting.batch_size,
            title=f"{title} {name}",
        )
        found.measurements.append(Measurement("2AFC", name, answers))
        found.add_predictions(attack=name, id=triplets.ids, right=answers.tolist())
    return found


DECIDING: Final = {"squeeze": "features.3.squeeze.weight", "vgg": "features.28.weight", "alex": "features.10.weight"}
"""A tensor of each of torchvision's squeezenet1_1, vgg16 and alexnet that those before it lack."""
SMALLEST: Final = {"squeeze": 17, "vgg": 16, "alex": 31}  # side in pixels that leaves its last layer one


def network_of(names: Iterable[str]) -> str | None:
    """LPIPS's name of the backbone that has these tensors; None for another network."""
    there = set(names)
    return next((network for network, name in DECIDING.items() if name in there), None)


def load_lpips(path: Path) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    """LPIPS's name of the backbone in a file (alex, vgg or squeeze), and the distance of images (B,3,H,W) in [0,1].

    The file is torchvision's state dict of alexnet, vgg16 or squeezenet1_1 (ImageNet weights), which all layers of the
    backbone must come from. Raises UsageError for another network and, of the distance, for images of two sizes or too
    small.
    """
    require("torchmetrics", "evaluation", "LPIPS")
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # the public class would download its backbone

    weights = {name: value for name, value in read_weights(path).items() if not name.startswith("classifier.")}
    network: Any = network_of(weights)
    if network is None:
        message = f"{path} is no backbone of LPIPS: give torchvision's state dict of alexnet, vgg16 or squeezenet1_1"
        raise UsageError(message, "not_a_backbone", path=str(path))
    metric: Any = _NoTrainLpips(net=network, pnet_rand=True)
    # torchmetrics' slice1.0.weight or slices.0.0.weight is torchvision's features.0.weight
    skipped = 2 if network == "squeeze" else 1
    names = {"features." + name.split(".", skipped)[-1]: name for name in metric.net.state_dict()}
    load_strictly(metric.net, {names.get(name, name): value for name, value in weights.items()}, source=str(path))

    def distance(images: Tensor, others: Tensor) -> Tensor:
        sides = images.shape[-2:], others.shape[-2:]
        if sides[0] != sides[1]:
            raise UsageError(
                f"LPIPS compares pictures of one size, these are {tuple(sides[0])} and {tuple(sides[1])}: resize one",
                "unequal_sizes",
            )
        if min(sides[0]) < SMALLEST[network]:
            raise UsageError(
                f"LPIPS by {network} takes pictures of at least {SMALLEST[network]} pixels a side, not {min(sides[0])}",
                "too_small",
            )
        with torch.no_grad():
            return metric(images, others, normalize=True).flatten()

    return network, distance
