"""Training metrics (similarities, probe accuracy clean and attacked, skipped steps), and saving of what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustclip.attacks.threat import ThreatModel
from robustclip.data.images import grid, show_gradients, to_pil
from robustclip.data.samples import Batch
from robustclip.errors import RunError, UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.folder import load_referee_folder, save_referee
from robustclip.robustification.adversarial import AdversarialGradients, in_parts
from robustclip.robustification.losses import clip
from robustclip.robustification.state import inference
from robustclip.runs import checkpoint, distributed
from robustclip.runs.folder import Run
from robustclip.runs.terminal import counted

Embed = Callable[[Tensor], Tensor]

STRONG_STEPS = 20


class Counts:
    """Base of dataclasses of numbers that belong to the training state."""

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


@dataclass
class OverfitAlarm(Counts):
    """Detects catastrophic overfitting (Wong et al. 2020): accuracy under the strong attack falls, and that under the
    weak one holds. `drop` is the distance from the best that counts as a fall (ours)."""

    drop: float = 0.1
    best_weak: float = 0.0
    best_strong: float = 0.0

    def observe(self, weak: float, strong: float) -> bool:
        self.best_weak, self.best_strong = max(weak, self.best_weak), max(strong, self.best_strong)
        return strong <= self.best_strong - self.drop and weak > self.best_weak - self.drop


@dataclass
class BadSteps(Counts):
    """Count skipped steps with non-finite loss or gradient; fails after `limit` in a row (ours)."""

    limit: int = 10
    in_a_row: int = 0
    total: int = 0

    def count(self, step: int, loss: float, batch: Batch, embed: Embed, tower: nn.Module, checkpoints: Path) -> str:
        """Count a skipped step and return its message, which names samples of all processes (a collective). Raises
        RunError at the limit."""
        self.in_a_row += 1
        self.total += 1
        with inference(tower):
            finite = embed(batch.images).isfinite().all(dim=1).tolist()
        own = [sample for sample, good in zip(batch.ids, finite, strict=True) if not good]
        blamed = [sample for each in distributed.listed(own) for sample in each]
        why = f"; not finite are the embeddings of {', '.join(blamed[:3])}" if blamed else ""
        reported = f"step {step} was skipped: its loss is {loss} or its gradient not finite{why}"
        if self.in_a_row < self.limit:
            return reported
        written = checkpoint.checkpoints(checkpoints)
        last = f"the last good checkpoint is {written[-1]}" if written else "no checkpoint had been written yet"
        message = f"{reported}, as were the {self.limit - 1} before: {last}; lower --lr, or use --dtype float32"
        raise RunError(message, "bad_steps", step=step, last=written[-1].name if written else None)


def probe_share(probe: Batch) -> Batch:
    """This process's rows of a probe. All processes have equally many: rows repeat where it cannot be split evenly."""
    place, size = distributed.place(), len(probe)
    each = -(-size // place.world_size)
    rows = [row % size for row in range(place.rank * each, (place.rank + 1) * each)]
    captions, ids = ([values[row] for row in rows] for values in (probe.captions, probe.ids))
    return Batch(probe.images[rows], captions, probe.positives[rows], ids)


@torch.no_grad()
def matching_accuracy(images: Tensor, texts: Tensor, ids: Tensor) -> float:
    """Share of the images (b,D) of all processes whose nearest text (b,D) of all has the same id (b,)."""
    nearest = (images @ distributed.everyone(texts).T).argmax(dim=1)
    return float(distributed.mean((distributed.everyone(ids)[nearest] == ids).float().mean()))


def probe_accuracies(
    embed: Embed,
    tower: nn.Module,
    texts: Tensor,
    probe: Batch,
    *,
    scale: float,
    threat: ThreatModel | None,
    attack_steps: int,
    accumulate: int,
    seed: int,
) -> dict[str, float]:
    """Matching accuracy on the shares of a probe: clean, and if a threat is given under `attack_steps` and
    `STRONG_STEPS` of PGD, in `accumulate` parts."""

    def accuracy(images: Tensor) -> float:
        with inference(tower):
            embeddings = in_parts(embed, accumulate)(images)
        return matching_accuracy(embeddings, texts, probe.positives)

    results = {"clean_accuracy": accuracy(probe.images)}
    if threat is not None:
        for name, steps in (("weak_accuracy", attack_steps), ("strong_accuracy", STRONG_STEPS)):
            attack = AdversarialGradients(
                tower, embed, clip(scale), threat, attack_steps=steps, accumulate=accumulate, seed=seed
            )
            results[name] = accuracy(attack.attacked(0, probe, texts, None))
    return results


SHOWN: Final = 8  # images of the probe whose gradients are drawn


def probe_gradients(embed: Embed, tower: nn.Module, texts: Tensor, probe: Batch) -> np.ndarray[Any, Any]:
    """Picture (H,W,3), uint8, of the first images of this process's share above the gradients of their cosine with
    their own caption: noise for an ordinary tower, outlines for a robust one."""
    images = probe.images[:SHOWN].clone().requires_grad_()
    with inference(tower), torch.enable_grad():
        cosine = (embed(images) * texts[:SHOWN]).sum()
        (gradients,) = torch.autograd.grad(cosine, images)
    return np.asarray(to_pil(grid(torch.cat([images.detach(), show_gradients(gradients)]), columns=len(images))))


def out_of_memory(run: Run, step: int, share: int, accumulate: int) -> RunError:
    """What a step took that a device's memory could not hold, and what needs less."""
    count, recipe = distributed.count(), run.record["recipe"]
    processes = f", of {share * count:,} in {count} processes" if count > 1 else ""
    again = f"--batch-size {share * count} --accumulate {2 * accumulate}"
    planned = f"robustclip plan {quote(recipe)} --gpu here --count {count} {again}"
    return RunError(
        f"step {step} ran out of memory with {share:,} pairs{processes}, in {counted(accumulate, 'part')}: "
        f"--accumulate {2 * accumulate} holds half as many at once, and leaves the gradients as they are; "
        f"`{planned}` says what fits",
        "out_of_memory",
        step=step,
        share=share,
        accumulate=accumulate,
        plan=planned,
    )


def similarities(embed: Embed, tower: nn.Module, clean: Tensor, adversarial: Tensor, texts: Tensor) -> dict[str, float]:
    """Mean cosine of matching pairs over all processes, clean and adversarial, in eval mode."""
    with inference(tower):
        pairs = {"clean_similarity": clean, "adversarial_similarity": adversarial}
        cosines = {name: (embed(images) * texts).sum(dim=1).mean() for name, images in pairs.items()}
    return {name: float(distributed.mean(cosine)) for name, cosine in cosines.items()}


def overfit(step: int, attack_steps: int, accuracies: dict[str, float]) -> str:
    """Message of the overfitting alarm."""
    return (
        f"step {step}: training overfits to its own attack: accuracy on the probe is {accuracies['weak_accuracy']:.1%} "
        f"under PGD-{attack_steps} and {accuracies['strong_accuracy']:.1%} under PGD-20; more --attack-steps or a "
        "smaller --lr would do, and an earlier checkpoint is better than this one"
    )


Which = Literal["best", "last"]

REFEREE = "referee"
"""Subfolder of a run for the trained referee."""

OF_THIS_MACHINE = ("out", "resume")
"""Arguments with local paths, which are left out of provenance."""


def save_trained(
    referee: TwoTower, run: Run, *, name: str, threat: ThreatModel | None, started_from: Card | None, samples: int
) -> dict[str, Any]:
    """Write the trained referee with its card, finish the run, and return its numbers. Claims are measured later, on
    the exported files.
    """
    provenance = {key: run.record[key] for key in ("recipe", "arguments", "versions", "commit", "started")}
    provenance["arguments"] = _portable(provenance["arguments"])
    if "resumed" in run.record:
        again = run.record["resumed"]
        provenance["resumed"] = [time | {"arguments": _portable(time["arguments"])} for time in again]
    provenance |= run.record.get("notes", {}) | {"samples": samples}
    provenance["started_from"] = started_from and {"name": started_from.name, "weights": started_from.weights}
    card = replace(referee.card, name=name, threat=threat, provenance=provenance, claims=[], weights={})
    if distributed.is_main():
        save_referee(referee, run.folder / REFEREE, card=card)
    numbers = {"samples": samples} | {key: value for line in run.metrics() for key, value in line.items()}
    run.finish(numbers)
    return numbers | {"run": str(run.folder)}


def referee_at(folder: Path, which: Which) -> TwoTower:
    """The referee of the finished run in `folder`: "last", or "best", the averaged weights of the checkpoint with the
    highest probe accuracy, without claims, which were not measured.

    Raises UsageError if the run has written no referee, or kept no best checkpoint; RunError for an unreadable file.
    """
    run = Run.open(folder)
    if not (folder / REFEREE / CARD_FILE).is_file():
        raise UsageError(
            f"{folder} contains no trained referee (the run is {run.status}): it is written at {folder / REFEREE} when "
            f"a run ends; let the run finish, or continue it ({run.resumption})",
            "no_trained_referee",
            status=run.status,
        )
    referee = load_referee_folder(folder / REFEREE)
    if which == "last":
        return referee
    path = checkpoint.best(run.checkpoints)
    if path is None:
        raise UsageError(
            f"{folder} kept no best checkpoint: none was measured (--evaluate-every), or runs clean removed it; "
            "use --checkpoint last",
            "no_best_checkpoint",
        )
    saved = checkpoint.load(path)
    try:
        referee.image_tower.load_state_dict(saved["ema"])
    except (KeyError, RuntimeError) as error:
        raise RunError(
            f"{path} does not hold the tower that {folder / REFEREE} describes", "does_not_fit", path=str(path)
        ) from error
    chosen = {"checkpoint": {"which": "best", "step": saved["step"], "accuracy": saved.get("best")}}
    referee.card = replace(referee.card, claims=[], weights={}, provenance=referee.card.provenance | chosen)
    return referee


def _portable(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in OF_THIS_MACHINE}
