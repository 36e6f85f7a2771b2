"""Compare cheaper training attacks: robustness at equal samples, FLOPs and time relative to PGD-5 and PGD-2.

    python tools/half_the_cost.py --rows runs/robustness   # about an hour on two cores; resumes; prints the table

Each variant trains emoji-vanilla with the text bank under L2 eps 1.5, as the row text-bank of `reproduce robustness`
does, whose PGD-1, PGD-2 and PGD-5 are taken from there (`--rows`). The criterion is top-1 under autoattack-light.
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

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip import evaluate, load_referee
from robustclip.attacks.threat import ThreatModel
from robustclip.data.emoji_batches import EmojiBatches
from robustclip.data.samples import Batch
from robustclip.evaluation import intervals
from robustclip.evaluation.report import CLEAN, REPORT_FILE
from robustclip.planning.costs import counted
from robustclip.referees.base import TwoTower
from robustclip.referees.preprocess import Preprocess
from robustclip.robustification.adversarial import AdversarialGradients, Embed, WarmStarts
from robustclip.robustification.embedded import emoji_objective
from robustclip.robustification.monitor import REFEREE, save_trained
from robustclip.robustification.state import ready_to_train
from robustclip.robustification.trainer import train
from robustclip.runs import rng
from robustclip.runs.devices import autocast
from robustclip.runs.files import write_json
from robustclip.runs.folder import RECORD, Run

EPS, SIZE, BATCH, UPDATES = 1.5, 64, 128, 150
START, BEST = "emoji-vanilla", "PGD-5"
STRONG, WEAK = f"l2:{EPS}@autoattack-light", f"l2:{EPS}@20x3"
DTYPE: Final = torch.bfloat16


@dataclass(frozen=True)
class CheaperAttack(AdversarialGradients):
    """The attack takes its gradients from `cheaper`, which embeds the images in another way than the update does."""

    cheaper: Embed = field(kw_only=True)

    def attacked(self, step: int, batch: Batch, texts: Tensor, original: Tensor | None) -> Float[Tensor, "b 3 h w"]:
        settings = {name: getattr(self, name) for name in AdversarialGradients.__dataclass_fields__}
        return AdversarialGradients(**settings | {"embed": self.cheaper}).attacked(step, batch, texts, original)


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
    """A way to attack in training. `row` names the row of `reproduce robustness` that is this."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    by: Callable[[TwoTower], Callable[..., AdversarialGradients]] | None = None
    row: str | None = None
    updates: int = UPDATES
    replays: int = 1


def half_size(referee: TwoTower) -> Callable[..., AdversarialGradients]:
    """From pictures of half the side, at a quarter of the cost."""
    mean, std = (tuple(referee.preprocess.statistics[name]) for name in ("mean", "std"))
    shrink = Preprocess(SIZE // 2, mean=mean, std=std)

    def small(images: Tensor) -> Tensor:
        with autocast(images.device, DTYPE):
            embeddings: Tensor = referee.image_tower(shrink(images))
            return embeddings

    return partial(CheaperAttack, cheaper=small)


def by(gradients: type[AdversarialGradients]) -> Callable[[TwoTower], Callable[..., AdversarialGradients]]:
    """The same for every tower."""
    return lambda _: gradients


VARIANTS: Final = [
    Variant(BEST, {"attack_steps": 5}, row="pgd-5"),
    Variant("PGD-2", {"attack_steps": 2}, row="text-bank"),
    Variant("PGD-1, random start, step 1.25 eps", {"attack_steps": 1, "step_size": 1.25 * EPS}, row="pgd-1"),
    Variant("PGD-1, random start, step 0.75 eps", {"attack_steps": 1, "step_size": 0.75 * EPS}),
    Variant("PGD-2 on pictures of half the side", {"attack_steps": 2}, half_size),
    Variant("PGD-5 on pictures of half the side", {"attack_steps": 5}, half_size),
    Variant("PGD-1 from the sample's last attack", {"attack_steps": 1, "step_size": EPS, "warm_start": True}),
    Variant("free, 4 replays, twice the updates", {}, by(FreeGradients), updates=2 * UPDATES, replays=4),
]


def main(rows: list[Path], work: Path, limit: int) -> None:
    for variant in VARIANTS:
        if not reused(variant, rows):
            train_variant(variant, work / slug(variant.name))
    measured = {variant.name: measure(variant, rows, work, limit) for variant in VARIANTS}
    costs = cost(work / "cost.json")
    print(table(measured, costs))


def slug(name: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in name)


def reused(variant: Variant, rows: list[Path]) -> Path | None:
    """The finished run of a row that is this variant."""
    for folder in rows:
        run = folder / "rows" / (variant.row or "") / "seed-0" / "run"
        if variant.row and (run / REFEREE).is_dir():
            return run
    return None


def train_variant(variant: Variant, folder: Path) -> None:
    if (folder / RECORD).is_file() and Run.open(folder).status == "finished":
        return
    referee = load_referee(START, device="cpu")
    started_from = referee.card
    data = EmojiBatches("guide-styles", batch_size=BATCH, seed=0)
    run = Run.start(folder, None, recipe="emoji", arguments={"variant": variant.name, "seed": 0})
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
            **variant.settings,
        )
        threat = ThreatModel("l2", EPS, SIZE)
        samples = variant.updates * BATCH
        save_trained(referee, run, name="emoji-variant", threat=threat, started_from=started_from, samples=samples)


def measure(variant: Variant, rows: list[Path], work: Path, limit: int) -> dict[str, list[bool]]:
    """Which images the variant gets right: clean, under PGD and under the strong attack."""
    folder = work / slug(variant.name)
    kept = folder / "hits.json"
    if not kept.is_file():
        run = reused(variant, rows) or folder
        if variant.row and (answers := answered(run.parent, limit)) is not None:
            write_json(kept, answers)
            return answers
        common: dict[str, Any] = {"data": "emoji/unseen-styles", "labels": "present", "limit": limit, "batch_size": 50}
        report = evaluate([str(run / REFEREE)], attack=[WEAK, STRONG], **common)
        hits = {
            attack: [a["rank"] == 0 for a in report.predictions if a["attack"] == attack]
            for attack in ("clean", WEAK, STRONG)
        }
        write_json(kept, hits)
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def answered(row: Path, limit: int) -> dict[str, list[bool]] | None:
    """What `reproduce robustness` measured of a row, where it asked the same."""
    files = {WEAK: row / "weak", STRONG: row / "strong"}
    if not all((folder / REPORT_FILE).is_file() for folder in files.values()):
        return None
    if any(json.loads((folder / REPORT_FILE).read_text())["setting"]["images"] != limit for folder in files.values()):
        return None
    hits: dict[str, list[bool]] = {}
    for attack, folder in files.items():
        lines = map(json.loads, (folder / "predictions.jsonl").read_text(encoding="utf-8").strip().split("\n"))
        found = [(line["attack"], line["rank"] == 0) for line in lines]
        hits |= {name: [hit for of, hit in found if of == name] for name in (CLEAN, attack)}
    return hits


def cost(kept: Path) -> dict[str, dict[str, float]]:
    """FLOPs and median seconds of an update, variants side by side in one run of 5 rounds."""
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    steps = {variant.name: update_of(variant) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(6):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    found = {
        variant.name: {
            "flops": counted(steps[variant.name]) * variant.updates / UPDATES,
            "seconds": median(seconds[variant.name][1:]) * variant.updates / UPDATES,
        }
        for variant in VARIANTS
    }
    write_json(kept, found)
    return found


def update_of(variant: Variant) -> Callable[[], object]:
    """The gradients of one update on 64 drawings, ready to be called."""
    referee = load_referee(START, device="cpu")
    data = EmojiBatches("guide-styles", batch_size=64, seed=0)
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


HEAD: Final = """
| attack | FLOPs / PGD-5 | FLOPs / PGD-2 | time / PGD-5 | clean | PGD-20x3 | autoattack-light | minus PGD-5 |
|---|---|---|---|---|---|---|---|"""


def table(measured: dict[str, dict[str, list[bool]]], costs: dict[str, dict[str, float]]) -> str:
    """The table in Markdown."""
    lines = [HEAD]
    for variant in VARIANTS:
        hits, price = measured[variant.name], costs[variant.name]
        pairs = [("flops", BEST), ("flops", "PGD-2"), ("seconds", BEST)]
        cells = [f"{price[kind] / costs[of][kind]:.2f}" for kind, of in pairs]
        for attack in (CLEAN, WEAK, STRONG):
            found = intervals.rate(hits[attack])
            cells.append(f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})")
        less = intervals.difference(hits[STRONG], measured[BEST][STRONG], seed=0)
        apart = f"{100 * less.value:+.1f} ({100 * less.low:+.1f} to {100 * less.high:+.1f})"
        cells.append("" if variant.name == BEST else apart)
        lines.append(f"| {variant.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, action="append", default=[], help="folders of `reproduce robustness`")
    parser.add_argument("--work", type=Path, default=Path("runs/half-the-cost"))
    parser.add_argument("--limit", type=int, default=100, help="images (default: %(default)s)")
    given = parser.parse_args()
    main(given.rows, given.work, given.limit)
