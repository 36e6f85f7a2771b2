"""Measure the embedded VQGAN's reconstructions. Writes its card and docs/vqgan.png.

    python tools/assets/measure_vqgan.py                          # a minute on one core
    python tools/assets/measure_vqgan.py --run runs/...           # and puts what the run saw on the card

Drawings of judge-heldback are in the styles that the generator was trained on, or in unseen ones; held-out concepts are
unseen in every style. Recognition is a judge's choice among 10 names, the own one and 9 drawn from the set's others, of
the original and of its reconstruction, with the same names. A drawing averaged over the squares that codes stand for,
and enlarged again, is measured beside it: as many places, each with its colour in full.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip import load_referee
from robustclip.data.embedded import path
from robustclip.data.emoji import LabelledImages, load_emoji, load_labels
from robustclip.data.images import save_image, titled_grid
from robustclip.diffusion.fitting import WEIGHTS
from robustclip.diffusion.vqgan import CARD, VQGAN, load_vqgan
from robustclip.evaluation.generation.embeddings import embed, embed_texts, r_precision
from robustclip.evaluation.intervals import difference, rate
from robustclip.runs.files import sha256, write_json
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator

SHEET = Path(__file__).parents[2] / "docs" / "vqgan.png"
JUDGES = ["emoji-judge", "emoji-judge-disjoint"]
NAMES = 10
COLUMNS = 8  # of the sheet
LICENCE = (
    "Trained on drawings of Noto Emoji and Firefox OS Emoji (Apache-2.0), Fluent Emoji (MIT) and Emoji One "
    "(CC-BY-4.0); NOTICE names their makers. No drawing of OpenMoji or Twemoji is in it."
)
BATCH = 64


def main(folder: Path, sheet: Path, run: Path | None) -> None:
    model = load_vqgan(folder)
    sets = drawings()
    made = {name: reconstructed(model, images) for name, (images, _, _) in sets.items()}
    measured = []
    for name, (images, names, ids) in sets.items():
        pictures, codes = made[name]
        blurred = blur(images, model.factor)
        numbers = {"data": name, "n": len(images), **quality(images, pictures), **use(codes, len(model.codebook))}
        numbers |= {"of_blur": quality(images, blurred)}
        measured.append(numbers | {"recognised": recognised(images, pictures, blurred, names, ids)})
        print(json.dumps(measured[-1], indent=2))
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    card["weights_sha256"] = sha256(folder / WEIGHTS)
    if run is not None:
        card["provenance"] = provenance(run)
    write_json(folder / CARD, card | {"licence": LICENCE, "measured": measured})
    save_image(picture(sets, {name: pictures for name, (pictures, _) in made.items()}), sheet)


Drawings = tuple[Tensor, list[str], list[str]]
"""Images (N,3,64,64), and of each its name and id."""


def drawings() -> dict[str, Drawings]:
    """Sets by what the generator has seen of them."""
    seen = set(load_labels("guide-styles").ids)
    held_back = load_emoji("judge-heldback")
    return {
        "judge-heldback, styles of its training": part(held_back, [one in seen for one in held_back.ids]),
        "judge-heldback, unseen styles": part(held_back, [one not in seen for one in held_back.ids]),
        "heldout-concepts": part(load_emoji("heldout-concepts")),
    }


def part(split: LabelledImages, chosen: Sequence[bool] | None = None) -> Drawings:
    rows = [row for row in range(len(split.ids)) if chosen is None or chosen[row]]
    names = [split.label_names[split.labels[row]] for row in rows]
    return split.images[rows], names, [split.ids[row] for row in rows]


@torch.no_grad()
def reconstructed(model: VQGAN, images: Tensor) -> tuple[Tensor, Tensor]:
    """(the pictures that come back, in [0,1]; the index of each code that was used)."""
    pictures, used = [], []
    for batch in images.split(BATCH):
        codes = model.quantise(model.encode(batch))
        used.append(torch.cdist(codes.movedim(1, 3).flatten(0, 2), model.codebook).argmin(1))
        pictures.append(model.decode(codes).clamp(0, 1))
    return torch.cat(pictures), torch.cat(used)


def blur(images: Tensor, factor: int) -> Tensor:
    """Averages over squares of `factor` pixels, enlarged again."""
    size = images.shape[-2:]
    return F.interpolate(F.avg_pool2d(images, factor), size, mode="bicubic", align_corners=False).clamp(0, 1)


def provenance(run: Path) -> dict[str, Any]:
    """What the run's record says of versions, data and time."""
    record = Run.open(run).record
    return {name: record[name] for name in ("versions", "commit", "started", "ended")} | record["notes"]


def quality(images: Tensor, pictures: Tensor) -> dict[str, float]:
    """Mean PSNR in decibels and mean absolute difference, of pixels in [0,1]."""
    error = (pictures - images).square().flatten(1).mean(1)
    return {"psnr": float((-10 * error.log10()).mean()), "l1": float((pictures - images).abs().mean())}


def use(codes: Tensor, count: int) -> dict[str, float]:
    """How many codes were used, and as how many of even use they count: exp of the entropy."""
    shares = torch.bincount(codes, minlength=count).double() / len(codes)
    return {"codes": int((shares > 0).sum()), "perplexity": float(torch.special.entr(shares).sum().exp())}


def recognised(
    images: Tensor, pictures: Tensor, blurred: Tensor, names: list[str], ids: list[str]
) -> list[dict[str, Any]]:
    """Each judge's share of right names, of originals and reconstructions, with 95% intervals: Wilson's, and of the
    difference the paired bootstrap's."""
    found = []
    for name in JUDGES:
        judge = load_referee(name)
        texts = embed_texts(judge, names)
        before, after, rival = (
            r_precision(embed(judge, one), names, texts, ids=ids, candidates=NAMES, seed=0).hits
            for one in (images, pictures, blurred)
        )
        shares = {"originals": rate(before), "reconstructions": rate(after), "blurred": rate(rival)}
        shares["change"] = difference(after, before, seed=0)
        found.append({"judge": name, "names": NAMES, **{key: asdict(value) for key, value in shares.items()}})
    return found


def picture(sets: dict[str, Drawings], made: dict[str, Tensor]) -> Tensor:
    """Originals above their reconstructions, drawn by the seed, not chosen."""
    rows, images = [], []
    titles = ["seen style", "unseen style", "unseen concept"]
    for title, (name, (originals, _, _)) in zip(titles, sets.items(), strict=True):
        drawn = torch.randperm(len(originals), generator=generator(0, f"sheet of {name}"))[:COLUMNS]
        rows += [title, "from its codes"]
        images += [originals[drawn], made[name][drawn]]
    return titled_grid(rows, [""] * COLUMNS, torch.cat(images))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=path("generators", "emoji-vqgan"))
    parser.add_argument("--sheet", type=Path, default=SHEET)
    parser.add_argument("--run", type=Path)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.sheet, arguments.run)
