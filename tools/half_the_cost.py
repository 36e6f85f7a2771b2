"""Compare cheaper training attacks: robustness at equal samples, FLOPs and time relative to PGD-5.

    python tools/half_the_cost.py                    # trains, measures, prints the table; resumes; an hour of one core
    python tools/half_the_cost.py --only warm free   # other rows; PGD-5 is always there
    python tools/half_the_cost.py --only warm-long --base pgd-2-long   # differences to another row

Each row trains emoji-vanilla with the text bank under L2 eps 1.5, for 8 epochs of the same subset of the drawings. The
criterion is top-1 under PGD-20 on drawings of unseen styles, minus that of PGD-5, paired by image and seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robustclip import load_referee
from robustclip.attacks import AttackSpec, attacking
from robustclip.attacks.threat import ThreatModel
from robustclip.data.emoji import load_labels
from robustclip.data.emoji_batches import EmojiBatches
from robustclip.data.examples import read_examples
from robustclip.data.samples import Batch
from robustclip.evaluation import intervals
from robustclip.evaluation.attacked import classify_under_attack
from robustclip.evaluation.report import CLEAN
from robustclip.evaluation.zeroshot import Candidates, Predictions, predictions
from robustclip.planning.costs import counted
from robustclip.referees.base import TwoTower
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.similarity import all_cosines, class_embeddings, resolve_templates
from robustclip.robustification.adversarial import AdversarialGradients, Embed, WarmStarts
from robustclip.robustification.embedded import emoji_objective
from robustclip.robustification.monitor import REFEREE, save_trained
from robustclip.robustification.state import ready_to_train
from robustclip.robustification.trainer import train
from robustclip.runs import rng
from robustclip.runs.devices import autocast
from robustclip.runs.files import write_json
from robustclip.runs.folder import RECORD, Run

EPS, SIZE, BATCH, UPDATES, SAMPLES = 1.5, 64, 64, 96, 768
EPOCH: Final = SAMPLES // BATCH
START, SPLIT = "emoji-vanilla", "guide-styles"
WEAK, STRONG = f"l2:{EPS}@20", f"l2:{EPS}@autoattack-light"
DTYPE: Final = torch.bfloat16


@dataclass(frozen=True)
class OtherAttack(AdversarialGradients):
    """Gradients with another attack than the settings say."""

    def attacked(self, step: int, batch: Batch, texts: Tensor, original: Tensor | None) -> Float[Tensor, "b 3 h w"]:
        settings = {name: getattr(self, name) for name in AdversarialGradients.__dataclass_fields__}
        return AdversarialGradients(**settings | self.changes(step)).attacked(step, batch, texts, original)

    def changes(self, step: int) -> dict[str, Any]:
        """Settings of this update's attack that differ."""
        raise NotImplementedError


@dataclass(frozen=True)
class CheaperTower(OtherAttack):
    """The attack takes its gradients from `cheaper`, which embeds the images in another way than the update does."""

    cheaper: Embed = field(kw_only=True)

    def changes(self, step: int) -> dict[str, Any]:
        return {"embed": self.cheaper}


class Restarts(OtherAttack):
    """Warm starts that are forgotten every 3 epochs."""

    def changes(self, step: int) -> dict[str, Any]:
        if self.warm is not None and step % (3 * EPOCH) == 0:
            self.warm.ends.clear()
        return {}


class FullInTen(OtherAttack):
    """Every tenth update has a PGD-5 with its own step size, from the same warm start."""

    def changes(self, step: int) -> dict[str, Any]:
        return {"attack_steps": 5, "step_size": None} if step % 10 == 9 else {}


class Decaying(OtherAttack):
    """The step size falls linearly to a quarter."""

    def changes(self, step: int) -> dict[str, Any]:
        assert self.step_size is not None
        return {"step_size": self.step_size * (1 - 0.75 * step / UPDATES)}


@dataclass(frozen=True)
class FreeGradients(AdversarialGradients):
    """Free adversarial training (Shafahi et al. 2019, Alg. 1): every batch comes `replays` times, and one backward pass
    gives both the weights' gradient and the perturbation's next step. It starts at random with each batch (theirs goes
    on from the batch before)."""

    replays: int = 4
    held: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, step: int, batch: Batch, texts: Tensor) -> tuple[Tensor, Tensor]:
        assert self.threat is not None
        if step % self.replays == 0 or "delta" not in self.held:
            self.held["delta"] = self.threat.random_start(
                batch.images, rng.each(self.seed, "attack", step, ids=batch.ids)
            )
        leaf = (batch.images + self.held["delta"]).clamp(0, 1).requires_grad_()
        losses = self.objective(self.embed(leaf), texts, batch.positives)
        losses.mean().backward()
        assert leaf.grad is not None
        moved = leaf.detach() + self.threat.eps * self.threat.steepest(leaf.grad) - batch.images
        self.held["delta"] = self.threat.project(moved).detach()
        return leaf.detach(), losses.mean().detach()


@dataclass
class Replayed:
    """Each batch `replays` times in a row."""

    data: EmojiBatches
    replays: int

    def __post_init__(self) -> None:
        self.faults, self.describe = self.data.faults, self.data.describe

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        for number, batch in enumerate(self.data.batches(start // self.replays), start // self.replays):
            for again in range(self.replays):
                if number * self.replays + again >= start:
                    yield batch


@dataclass(frozen=True)
class Variant:
    """A way to attack in training; `full` of ten updates have PGD-5 instead."""

    key: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    by: Callable[[TwoTower], Callable[..., AdversarialGradients]] | None = None
    updates: int = UPDATES
    replays: int = 1
    default: bool = True
    full: int = 0


def half_size(referee: TwoTower) -> Callable[..., AdversarialGradients]:
    """From pictures of half the side, at a quarter of the cost."""
    mean, std = (tuple(referee.preprocess.statistics[name]) for name in ("mean", "std"))
    shrink = Preprocess(SIZE // 2, mean=mean, std=std)

    def small(images: Tensor) -> Tensor:
        with autocast(images.device, DTYPE):
            embeddings: Tensor = referee.image_tower(shrink(images))
            return embeddings

    return partial(CheaperTower, cheaper=small)


def by(gradients: type[AdversarialGradients]) -> Callable[[TwoTower], Callable[..., AdversarialGradients]]:
    """The same for every tower."""
    return lambda _: gradients


ONE: Final = {"attack_steps": 1, "step_size": EPS}
WARM: Final = ONE | {"warm_start": True}
BEST: Final = Variant("pgd-5", "PGD-5", {"attack_steps": 5})
VARIANTS: Final = [
    BEST,
    Variant("pgd-2", "PGD-2", {"attack_steps": 2}),
    Variant("warm", "PGD-1 from the sample's last attack", WARM),
    Variant("restarts", "the same, fresh random starts every 3 epochs", WARM, by(Restarts)),
    Variant("full", "the same, PGD-5 in one of ten updates", WARM, by(FullInTen), full=1),
    Variant("decay", "the same, step from eps to eps / 4", WARM, by(Decaying)),
    Variant("warm-long", "PGD-1 from the sample's last attack, 250 updates", WARM, updates=250),
    Variant("pgd-2-long", "PGD-2, 178 updates", {"attack_steps": 2}, updates=178, default=False),
    Variant("free", "free, 4 replays, twice the updates", {}, by(FreeGradients), 2 * UPDATES, 4, default=False),
    Variant("random-1.25", "PGD-1, random start, step 1.25 eps", ONE | {"step_size": 1.25 * EPS}, default=False),
    Variant("random-0.75", "PGD-1, random start, step 0.75 eps", ONE | {"step_size": 0.75 * EPS}, default=False),
    Variant("half-2", "PGD-2 on pictures of half the side", {"attack_steps": 2}, half_size, default=False),
    Variant("half-5", "PGD-5 on pictures of half the side", {"attack_steps": 5}, half_size, default=False),
]


def main(variants: list[Variant], base: Variant, seeds: list[int], work: Path, limit: int, strong: int) -> None:
    for seed in seeds:  # a table of fewer seeds first
        for variant in variants:
            folder = work / variant.key / f"seed-{seed}"
            train_variant(variant, seed, folder)
            measure(folder, WEAK, limit)
    if strong:
        for seed in seeds:
            for variant in variants:
                measure(work / variant.key / f"seed-{seed}", STRONG, strong)
    print(table(variants, base, seeds, work, limit, strong))


def training_data(seed: int, batch_size: int = BATCH) -> EmojiBatches:
    """Batches of `SAMPLES` drawings, which the seed draws."""
    order = torch.randperm(len(load_labels(SPLIT)), generator=rng.generator(seed, "half the cost"))
    return EmojiBatches(SPLIT, batch_size=batch_size, seed=seed, rows=order[:SAMPLES].tolist())


def train_variant(variant: Variant, seed: int, folder: Path) -> None:
    if (folder / RECORD).is_file() and Run.open(folder).status == "finished":
        return
    referee = load_referee(START, device="cpu")
    started_from = referee.card
    data = training_data(seed)
    run = Run.start(folder, None, recipe="emoji", arguments={"variant": variant.name, "seed": seed})
    with run:
        train(
            referee,
            Replayed(data, variant.replays),
            run=run,
            objective=emoji_objective("text-bank", referee, data),
            threat=ThreatModel("l2", EPS, SIZE),
            gradients_by=AdversarialGradients if variant.by is None else variant.by(referee),
            steps=variant.updates,
            lr=1e-3,
            weight_decay=0.05,
            warmup=variant.updates // 8,
            ema=0.98,
            dtype=DTYPE,
            checkpoint_every=10_000,
            log_every=40,
            seed=seed,
            **variant.settings,
        )
        threat = ThreatModel("l2", EPS, SIZE)
        samples = variant.updates * BATCH
        save_trained(referee, run, name="emoji-variant", threat=threat, started_from=started_from, samples=samples)


def measure(folder: Path, attack: str, limit: int) -> dict[str, list[bool]]:
    """Which images a trained model gets right, clean and under the attack (only those right on clean are attacked)."""
    kept = folder / f"{attack.replace(':', '-')}-{limit}.json"
    if not kept.is_file():
        referee = load_referee(str(folder / REFEREE), device="cpu")
        examples = read_examples("emoji/unseen-styles", limit=limit)
        among = Candidates.among(examples.label_names, examples.labels, present_only=True)
        with attacking(referee):
            classes = class_embeddings(referee, among.names, resolve_templates("plain"))
            cosines = all_cosines(referee, examples.images, classes, batch_size=50, dtype=DTYPE, title=str(folder))
            clean = predictions(cosines, among.targets)
            attacked = classify_under_attack(
                referee,
                examples.images,
                among.targets,
                classes,
                AttackSpec.parse(attack),
                clean=Predictions(clean.top, clean.ranks.where(clean.ranks == 0, len(among.names))),
                batch_size=50,
                seed=0,
                ids=examples.ids,
                dtype=DTYPE,
                title=str(folder),
            )
        write_json(kept, {CLEAN: clean.hits(1), attack: attacked.hits(1)})
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def cost(kept: Path, variants: list[Variant]) -> dict[str, dict[str, float]]:
    """FLOPs and median seconds of an update, variants side by side in one run of 5 rounds."""
    found = dict(json.loads(kept.read_text(encoding="utf-8"))) if kept.is_file() else {}
    if all(variant.key in found for variant in variants):
        return found
    steps = {variant.key: update_of(variant) for variant in variants}
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(6):
        for key, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[key].append(time.perf_counter() - began)
    found = {}
    for variant in variants:
        price = {"flops": float(counted(steps[variant.key])), "seconds": median(seconds[variant.key][1:])}
        full = found.get(BEST.key, price)
        share = variant.full / 10
        found[variant.key] = {
            kind: ((1 - share) * price[kind] + share * full[kind]) * variant.updates / UPDATES for kind in price
        }
    write_json(kept, found)
    return found


def update_of(variant: Variant) -> Callable[[], object]:
    """The gradients of one update on a batch, ready to be called."""
    referee = load_referee(START, device="cpu")
    data = training_data(0)
    ready_to_train(
        referee.image_tower, frozen_statistics=False, grad_checkpointing=False, accumulate=1, channels_last=True
    )
    batch = data.batch(0)
    batch = replace(batch, images=batch.images.to(memory_format=torch.channels_last))

    def embed(images: Tensor) -> Tensor:
        with autocast(images.device, DTYPE):
            embeddings: Tensor = referee.image_tower(referee.preprocess(images))
            return embeddings

    settings = {name: value for name, value in variant.settings.items() if name != "warm_start"}
    if "warm_start" in variant.settings:
        settings["warm"] = WarmStarts()
    made = AdversarialGradients if variant.by is None else variant.by(referee)
    gradients = made(
        tower=referee.image_tower,
        embed=embed,
        objective=emoji_objective("text-bank", referee, data),
        threat=ThreatModel("l2", EPS, SIZE),
        **settings,
    )
    return partial(gradients, 0, batch, torch.empty(0))


def table(variants: list[Variant], base: Variant, seeds: list[int], work: Path, limit: int, strong: int) -> str:
    """The table in Markdown: means over seeds, and differences to `base`, with 95% intervals over images and seeds."""

    def hits(variant: Variant, attack: str, images: int, of: str) -> np.ndarray[Any, Any]:
        rows = [measure(work / variant.key / f"seed-{seed}", attack, images)[of] for seed in seeds]
        return np.asarray(rows, dtype=np.float64)

    costs = cost(work / "cost.json", variants)
    asked = [(WEAK, limit, CLEAN), (WEAK, limit, WEAK), *([(STRONG, strong, STRONG)] if strong else [])]
    head = ["attack", "FLOPs / PGD-5", "time / PGD-5", *(name for *_, name in asked)]
    head += [f"{name} minus {base.name}'s" for *_, name in asked]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for variant in variants:
        cells = [f"{costs[variant.key][kind] / costs[BEST.key][kind]:.2f}" for kind in ("flops", "seconds")]
        cells += [intervals.percent(intervals.over_seeds(hits(variant, *one))) for one in asked]
        less = [hits(variant, *one) - hits(base, *one) for one in asked]
        cells += ["" if variant is base else intervals.percent(intervals.over_seeds(one), sign="+") for one in less]
        lines.append(f"| {variant.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/half-the-cost"))
    parser.add_argument("--seeds", default="0,1,2", help="of training and data, two or more (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=1000, help="images (default: %(default)s)")
    parser.add_argument("--strong", type=int, default=0, help="images under autoattack-light (default: none)")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[one.key for one in VARIANTS], help="rows, by key")
    parser.add_argument(
        "--base", default=BEST.key, choices=[one.key for one in VARIANTS], help="that others differ from"
    )
    given = parser.parse_args()
    chosen = {BEST.key, given.base, *(given.only or [one.key for one in VARIANTS if one.default])}
    wanted = [one for one in VARIANTS if one.key in chosen]
    base = next(one for one in VARIANTS if one.key == given.base)
    main(wanted, base, [int(seed) for seed in given.seeds.split(",")], given.work, given.limit, given.strong)
