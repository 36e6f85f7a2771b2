"""A recipe for tests: the toy on embedded emoji, in a second. `robustclip robustify tests/toy_recipe.py`."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from robustclip import distributed
from robustclip.data.emoji_batches import EmojiBatches
from robustclip.devices import pick_device
from robustclip.referees.toy import toy_referee
from robustclip.robustification.adversarial import AttackNegatives
from robustclip.robustification.embedded import emoji_probe
from robustclip.robustification.finish import save_trained
from robustclip.robustification.losses import clip
from robustclip.robustification.trainer import train
from robustclip.runs import ResumeFrom, Run, RunFolder
from robustclip.threat import ThreatModel


def recipe(
    *,
    steps: PositiveInt = 20,
    batch_size: PositiveInt = 32,
    accumulate: PositiveInt = 1,
    attack_negatives: AttackNegatives = "gathered",
    evaluate_every: NonNegativeInt = 10,
    checkpoint_every: PositiveInt = 5,
    keep: PositiveInt = 2,
    resume: ResumeFrom | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Train the toy."""
    arguments = dict(locals())
    referee = toy_referee(64).to(pick_device(device))
    data = EmojiBatches("judge-heldback", batch_size=batch_size, seed=seed, place=distributed.place())
    threat = ThreatModel("l2", 1.0, 64)
    with Run.start(out, resume, recipe="toy-recipe", arguments=arguments) as run:
        train(
            referee,
            data,
            run=run,
            objective=clip(10.0),
            threat=threat,
            steps=steps,
            lr=1e-2,
            weight_decay=0.0,
            warmup=2,
            accumulate=accumulate,
            attack_negatives=attack_negatives,
            dtype=dtype,
            probe=emoji_probe(data, 32),
            evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every,
            keep=keep,
            log_every=1,
            resume=resume is not None,
            seed=seed,
        )
        return save_trained(referee, run, name="toy", threat=threat, started_from=None, samples=steps * batch_size)
