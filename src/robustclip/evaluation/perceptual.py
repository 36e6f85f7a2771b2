"""Two-alternative forced choice: how often a distance finds the nearer of two images, clean and under attack.

Triplets have a reference and two images, of which one is nearer. On embedded drawings both are the reference under one
corruption, at two strengths, and the weaker is nearer; NIGHTS (Fu et al. 2023) has people's votes. The attack moves the
reference within a norm ball so that the nearer image looks farther than the other (Croce et al. 2024 attack 2AFC too;
steps and starts here are those of the given PGD).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from robustclip.attacks.gradient import pgd
from robustclip.attacks.spec import AttackSpec, random_perturbation, size_of
from robustclip.data.embedded import EMBEDDED_DATA
from robustclip.data.examples import read_examples
from robustclip.data.images import load_image, resize
from robustclip.data.pictures import draw_subset
from robustclip.data.tables import read_table
from robustclip.errors import UsageError
from robustclip.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from robustclip.evaluation.intervals import Interval, rate
from robustclip.losses.perceptual import PerceptualDistance
from robustclip.referees.registry import load_referee
from robustclip.referees.similarity import batches
from robustclip.runs.devices import pick_device
from robustclip.runs.rng import each, generator
from robustclip.signatures import typed

BATCH: Final = 60
NIGHTS_TABLE: Final = "data.csv"
NIGHTS_COLUMNS: Final = ("votes", "split", "ref_path", "left_path", "right_path")
CHOICE: Final = 2  # the column of the votes for the right image, by its place, as DreamSim's and R-CLIP's code read it
UNANIMOUS: Final = 6  # votes, of which NIGHTS' evaluation takes no fewer
IMAGENET: Final = {"test_imagenet": "True", "test_no_imagenet": "False"}
Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Triplets:
    """N references and, for each, the nearer and the farther image: (N,3,H,W) in [0,1] on the CPU."""

    name: str
    reference: Float[Tensor, "n 3 h w"]
    nearer: Float[Tensor, "n 3 h w"]
    farther: Float[Tensor, "n 3 h w"]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)


@typed
def distance(
    a: Annotated[Path, "a picture"],
    b: Annotated[Path, "another picture, of any size"],
    *,
    referee: Annotated[str, "name, tag or folder of the referee that sees both"] = "emoji-robust",
    device: str = "auto",
) -> dict[str, float | str]:
    """Perceptual distance of two pictures: 1 - cosine of their embeddings, from 0 (the same to the referee) to 2.

    Raises UsageError for files that are no pictures and for an unknown referee.
    """
    pictures = [load_image(path)[None] for path in (a, b)]
    seeing = load_referee(referee, device=str(pick_device(device)))
    with torch.no_grad():
        found = PerceptualDistance(seeing)(*(picture.to(seeing.device) for picture in pictures))
    return {"distance": found.item(), "referee": seeing.card.name}


def corruption_triplets(data: str = EMBEDDED_DATA + "unseen-styles", *, limit: int = 240, seed: int = 0) -> Triplets:
    """`limit` drawings, each under one kind of `CORRUPTIONS` in turn, at two strengths drawn by the seed and the id."""
    examples = read_examples(data, limit=limit, seed=seed)
    kinds, parts = list(CORRUPTIONS), []
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
    """NIGHTS' folder: data.csv, and the pictures that it names, resized to a square of `size`.

    `split` is train, val, test_imagenet or test_no_imagenet; triplets of fewer than 6 votes are left out, as in the
    evaluation of DreamSim. Raises UsageError for a missing table, column or picture, and for an empty split.
    """
    table = Path(folder) / NIGHTS_TABLE
    header, rows, _ = read_table(table, ",")
    missing = [name for name in NIGHTS_COLUMNS if name not in header]
    if missing or (split in IMAGENET and "is_imagenet" not in header):
        raise UsageError(
            f"{table} is not NIGHTS' table: it has no column {', '.join(missing) or 'is_imagenet'}",
            "not_nights",
            path=str(table),
        )
    column = {name: header.index(name) for name in header}
    asked = "test" if split in IMAGENET else split
    chosen = [row for _, row in rows if row[column["split"]] == asked and _votes(row, column, table) >= UNANIMOUS]
    if split in IMAGENET:
        chosen = [row for row in chosen if row[column["is_imagenet"]].strip().capitalize() == IMAGENET[split]]
    if not chosen:
        raise UsageError(f"{table} has no triplet of the split {split!r} with {UNANIMOUS} votes", "empty_split")
    if limit is not None:
        chosen = [chosen[index] for index in draw_subset(range(len(chosen)), limit, seed)]
    parts = []
    for row in chosen:
        images = [_picture(folder, row[column[name]], size) for name in ("ref_path", "left_path", "right_path")]
        right = _number(row[CHOICE], table) > 0.5
        parts.append((images[0], images[2], images[1]) if right else tuple(images))
    reference, nearer, farther = (torch.stack(one) for one in zip(*parts, strict=True))
    return Triplets(f"NIGHTS {split}", reference, nearer, farther, [row[0] for row in chosen])


def _picture(folder: Path, name: str, size: int) -> Float[Tensor, "3 h w"]:
    return resize(load_image(Path(folder) / name)[None], size)[0].clamp(0, 1)


def _votes(row: list[str], column: dict[str, int], table: Path) -> float:
    return _number(row[column["votes"]], table)


def _number(text: str, table: Path) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{table}: {text[:50]!r} is no number of votes", "not_nights", path=str(table)) from error


def two_afc(
    embed: Embed,
    triplets: Triplets,
    attack: AttackSpec | None = None,
    *,
    control: bool = False,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> tuple[Interval, Bool[NDArray[np.bool_], " n"]]:
    """The share of triplets whose nearer image is found, with Wilson's interval, and the answers one by one.

    `embed` maps images to embeddings, unit ones for `PerceptualDistance(referee).embed`; flattened pixels make the
    pixels' distance. Ties count as wrong. `attack` is PGD on the reference, `control` noise of its norm and eps in its
    place. Raises UsageError for an attack on classifiers.
    """
    hits = []
    for rows in batches(torch.arange(len(triplets)), BATCH, f"2AFC, {attack or 'clean'}"):
        moved, near, far = (one[rows].to(device) for one in (triplets.reference, triplets.nearer, triplets.farther))
        with torch.no_grad():
            nearer, farther = embed(near), embed(far)
        if attack is not None and control:
            moved = random_perturbation(moved, attack.threat(size_of(moved)), seed=seed, indices=rows)
        elif attack is not None:
            moved = _moved(embed, moved, nearer, farther, attack, generator(seed, "2afc attack", int(rows[0])))
        with torch.no_grad():
            found = embed(moved)
            hits.append((_apart(found, nearer) < _apart(found, farther)).cpu().numpy())
    answers = np.concatenate(hits)
    return rate(answers), answers


def _moved(
    embed: Embed,
    images: Float[Tensor, "b 3 h w"],
    nearer: Tensor,
    farther: Tensor,
    attack: AttackSpec,
    stream: torch.Generator,
) -> Float[Tensor, "b 3 h w"]:
    """References that look as far from the nearer image, and as near to the farther, as the attack can make them."""
    attack.check_pgd("a distance")

    def margin(moved: Tensor) -> Tensor:
        found = embed(moved)
        return _apart(found, nearer) - _apart(found, farther)

    return pgd(
        images,
        margin,
        attack.threat(size_of(images)),
        steps=attack.steps,
        step_size=attack.step_size,
        restarts=attack.restarts,
        generator=stream,
    )


def _apart(one: Tensor, other: Tensor) -> Float[Tensor, " b"]:
    return PerceptualDistance.between(one, other)
