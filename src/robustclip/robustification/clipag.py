"""CLIPAG's fine-tuning on web-scale image-text shards, as its recipes share it (CLIPAG §3 and App. A.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from robustclip.data.loader import Loader
from robustclip.data.sources import open_data, open_source
from robustclip.devices import forward_backward, pick_device, pick_dtype
from robustclip.referees.registry import load_referee
from robustclip.robustification.finish import save_trained
from robustclip.robustification.losses import clip, siglip
from robustclip.robustification.trainer import train
from robustclip.runs import Run
from robustclip.threat import Norm, ThreatModel

Mix = Literal["concatenated", "equal"]
"""The two readings of CLIPAG's data: "concatenated" is App. A.1 (SBU, CC3M and CC12M without resampling, LAION-400M
down-sampled), "equal" is §3 (each source drawn about equally often)."""

EMBEDDED = "emoji"


def fine_tune(
    *,
    recipe: str,
    arguments: Mapping[str, object],
    start: str,
    architecture: str | None,
    quick_gelu: bool | None,
    name: str,
    sources: list[str],
    mix: Mix,
    laion_share: float,
    norm: Norm,
    eps: float,
    attack_steps: int,
    clean_weight: float,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    warmup: int,
    ema: float,
    workers: int,
    channels_last: bool,
    compile: bool,
    evaluate_every: int,
    checkpoint_every: int,
    log_every: int,
    resume: Path | None,
    device: str,
    dtype: str,
    seed: int,
    out: Path | None,
) -> dict[str, Any]:
    """Fine-tune `start`'s image tower on `sources` (the last one is the one to reduce), and save it as `name`.

    The loss is the batch-contrastive one in attack and update, or SigLIP's where the referee has a logit bias. eps is
    in [0,1] pixel units at the referee's own image size. Every other argument is `train`'s.
    """
    target = pick_device(device)
    referee = load_referee(start, device=str(target), architecture=architecture, quick_gelu=quick_gelu)
    started_from = referee.card
    data = mixed(sources, mix, laion_share, batch_size, referee.image_size, seed, workers)
    threat = ThreatModel(norm, eps, referee.image_size)
    bias = referee.logit_bias
    objective = clip(referee.logit_scale) if bias is None else siglip(referee.logit_scale, bias)
    probe = next(mixed(sources, mix, laion_share, batch_size, referee.image_size, seed + 1, 0).batches())
    step = forward_backward(referee.image_tower, referee.preprocess(probe.images[:16].to(target)))
    run = Run.start(out, resume, recipe=recipe, arguments=arguments)
    with run:
        train(
            referee,
            data,
            run=run,
            objective=objective,
            threat=threat,
            attack_steps=attack_steps,
            clean_weight=clean_weight,
            steps=steps,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            ema=ema,
            dtype=pick_dtype(dtype, target, step),
            channels_last=channels_last,
            compile=compile,
            probe=probe,
            evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every,
            log_every=log_every,
            resume=resume is not None,
            seed=seed,
        )
        samples = steps * batch_size
        return save_trained(referee, run, name=name, threat=threat, started_from=started_from, samples=samples)


def mixed(
    sources: list[str], mix: Mix, laion_share: float, batch_size: int, size: tuple[int, int], seed: int, workers: int
) -> Loader:
    """The sources as one stream, by either reading of the paper; "concatenated" draws from each source in proportion
    to its size, the last one's times `laion_share`."""
    weights: str | list[float] = "equal"
    if mix == "concatenated":
        *whole, reduced = (open_source(source).size() for source in sources)
        weights = [*map(float, whole), reduced * laion_share]
    return open_data(sources, batch_size=batch_size, size=size, weights=weights, seed=seed, workers=workers)


def missing_sources(named: Mapping[str, str | None], quick: bool) -> Iterator[str]:
    """What a call lacks of the data, unless it is only tried out."""
    if not quick:
        for flag, value in named.items():
            if value is None:
                yield f"--{flag} is missing: shards, e.g. --{flag} '{flag}/{{00000..00331}}.tar' (or try --quick)"
