"""MI-TUNE (Wang et al., ICLR 2025): fine-tune a diffusion model on its samples of highest mutual information."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast, get_args

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from robustclip.data.emoji_batches import DrawingsAndPairs
from robustclip.data.images import resize, save_image, titled_grid
from robustclip.data.pairs import draw_pair
from robustclip.diffusion.adapters import AdapterTrainer, AlignmentPool, add_adapter, merge_adapter, save_adapter
from robustclip.diffusion.fitting import free, save_model
from robustclip.diffusion.mutual_information import SKIPPED, Kappa
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.selection import Scorer, Selection, Selector, choose_all, load_rater
from robustclip.diffusion.stable import LatentDiffusion
from robustclip.errors import UsageError
from robustclip.flags import TableFlags, flat
from robustclip.runs.devices import pick_device
from robustclip.runs.distributed import is_main
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator
from robustclip.synthesis.items import load_prompts

Mode = Literal["faithful", "released", "fixed"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What the modes differ by; the defaults are the paper's."""

    by: Selector = "mi"  # Eq. 2, on the sampling trajectory
    kappa: Kappa = "exact"  # weights of Eq. 2's sum
    skip: int = 0  # steps of the schedule, from 0, that the sum leaves out
    dora: bool = True
    clip: float | None = 1.0  # norm of the gradient


VARIANTS: Final[dict[Mode, Variant]] = {
    "faithful": Variant(),
    # MI-TUNE's code.
    "released": Variant(
        kappa="released",  # without alpha_t
        skip=SKIPPED,
        dora=False,  # --use_dora is not passed on
        clip=None,  # it clips an exhausted iterator of parameters
    ),
    # Ours: the MMSE gap of the finished latent ranks the prompts of a given picture, where Eq. 2 does not.
    "fixed": Variant(by="gap"),
}
REAL: Final = 256
"""Real pictures for --real-share, encoded once."""
SHOWN, VALIDATED = 6, 12  # prompts

QUICK: Final = {"count": 2, "samples": 2, "sampling_steps": 2, "steps": 2, "batch_size": 4, "save_every": 1} | {
    "validate_every": lambda call: call["validate_every"] and 1
}


def recipe(
    *,
    model: Annotated[str, "diffusion model: a name, or a diffusers pipeline folder"] = "emoji-diffusion",
    prompts: Annotated[
        Path | None, "a file of prompts; default: pairs of coloured objects, none of the 60 evaluation prompts"
    ] = None,
    count: Annotated[PositiveInt, "number of prompts if no file is given"] = 64,
    mode: Mode = "fixed",
    by: Annotated[
        str | None, "selection score: mi, gap, random, mi:MODEL, or a referee or pair reader; default: the mode's"
    ] = None,
    samples: Annotated[PositiveInt, "samples per prompt (M)"] = 50,
    keep: Annotated[PositiveInt, "samples kept per prompt (k)"] = 1,
    rounds: Annotated[PositiveInt, "rounds, each on samples of the previous round's model"] = 1,
    sampling_steps: PositiveInt = 100,
    guidance: PositiveFloat = 7.5,
    steps: Annotated[PositiveInt, "training steps per round"] = 300,
    batch_size: PositiveInt = 400,
    at_once: Annotated[PositiveInt, "batch elements per denoiser pass"] = 8,
    rank: PositiveInt = 32,
    lr: PositiveFloat = 1e-4,
    real_share: Annotated[
        float, Field(ge=0, lt=1), "share of real captioned pictures of the embedded world in a batch"
    ] = 0.0,
    size: Annotated[PositiveInt, "height and width of samples"] = 64,
    pool: Annotated[Path | None, "folder that stores all samples of the first round, to share between runs"] = None,
    save_every: PositiveInt = 50,
    dora: Annotated[bool | None, "DoRA, or LoRA with --no-dora; default: the mode's"] = None,
    validate_every: Annotated[PositiveInt | None, "steps between validations"] = None,
    stop_by: Annotated[str | None, "referee that selects the best validation step; do not use it as a judge"] = None,
    adapt_text: Annotated[bool, "also adapt the text tower, whose states are then computed in each step"] = False,
    merge: Annotated[bool, "also save the denoiser with the adapter merged"] = False,
    common: TableFlags = TableFlags(),
) -> dict[str, Any]:
    """Fine-tune a diffusion model on the best of its own samples, chosen by point-wise mutual information.

    robustclip align mi-tune --model FOLDER --prompts FILE

    Each round samples every prompt M times by DDPM, keeps the k samples with the most information about it, and trains
    adapters on the denoiser's attention projections on them by the denoising loss. Counts, rank and
    rates are the paper's (Stable Diffusion 2.1-base: 700 prompts, 50 samples of 100 steps, 300 steps of 400, about a
    day and 8 hours on one A100). Writes adapter/, which diffusers' load_lora_weights reads, with a card, and pictures
    of the same noise before and after. --validate-every samples other prompts during training (the first ones of a
    file); --stop-by keeps the step whose pictures score highest by that referee.

    Deviations: in later rounds the adapter is trained on, with a new optimiser (the paper does not say); texts are
    not dropped. --mode released follows MI-TUNE's code where it differs from the paper.
    """
    arguments = flat(locals())
    ddim, seed = 2 if common.quick else 50, common.seed
    variant, device = VARIANTS[mode], pick_device(common.device)
    tuned = load_diffusion(model, device, dtype=common.dtype)
    texts = training_pairs(count, seed) if prompts is None else [named.prompt.wanted for named in load_prompts(prompts)]
    selection = Selection(
        by=selector(by or variant.by, device),
        samples=samples,
        keep=keep,
        steps=sampling_steps,
        guidance=guidance,
        kappa=variant.kappa,
        skip=variant.skip,
        size=(size, size),
        seed=seed,
        pool=pool,
    )
    stopper = None if stop_by is None else load_rater(stop_by, device)
    real = real_pictures(tuned, 8 if common.quick else REAL, size, seed) if real_share else None
    fresh = training_pairs(VALIDATED, seed, "validation prompts") if prompts is None else texts[:VALIDATED]
    shown = fresh[:SHOWN]
    show = partial(sampled, tuned, size=size, guidance=guidance, seed=seed, steps=ddim)
    before = show(shown)
    add_adapter(tuned, rank=rank, alpha=rank, dora=variant.dora if dora is None else dora, text=adapt_text, seed=seed)
    trainer = AdapterTrainer(tuned, steps=steps, lr=lr, clip=variant.clip, at_once=at_once)
    run = Run.start(common.out, common.resume, recipe="mi-tune", arguments=arguments, verb="align")
    kept = {name: value for name, value in arguments.items() if name not in ("out", "resume", "device", "pool")}
    card: dict[str, Any] = {"recipe": "align/mi-tune", "arguments": kept}
    numbers: dict[str, float] = {}
    with run:
        trainer.resume(run, device)
        for round_ in range(1 + max(trainer.done - 1, 0) // steps, rounds + 1):
            folder = run.folder / "rounds" / str(round_)
            title = f"round {round_}: {samples} samples a prompt"
            chosen = choose_all(selection, tuned, texts, folder, round_, title)
            own = torch.cat(chosen).to(device), [text for text in texts for _ in range(keep)]
            learned = AlignmentPool(own, real, real_share)
            trainer.begin(round_, steps)

            def step(k: int, learned: AlignmentPool = learned) -> dict[str, float]:
                stream = generator(seed, "alignment", k)
                metrics = trainer.step(*learned.batch(batch_size, stream), stream)
                if validate_every is not None and trainer.done % validate_every == 0:
                    images = show(fresh)
                    if is_main():
                        sheet = titled_grid([f"step {trainer.done}"], fresh, images)
                        save_image(sheet, run.folder / "validation" / f"{trainer.done:06d}.png")
                    if stopper is not None:
                        pairs = zip(images.split(1), fresh, strict=True)
                        metrics["validation"] = float(torch.cat([stopper(*pair) for pair in pairs]).mean())
                        trainer.judge(metrics["validation"])
                return metrics

            numbers = trainer.fit(step, run, images=batch_size, save_every=save_every)
            card["steps"] = trainer.take_best()
            if round_ < rounds and is_main() and not (folder / "adapter").exists():
                save_adapter(tuned, folder / "adapter", card)
        pictures = titled_grid(["before", "after"], shown, torch.cat([before, show(shown)]))
        folder = free(run.folder / "adapter")
        if is_main():
            save_image(pictures, run.folder / "pictures.png")
            save_adapter(tuned, folder, card)
        if merge:
            merge_adapter(tuned)
            if is_main():
                save_model(tuned.unet, free(run.folder / "unet"))
        run.finish(numbers)
    return {"out": str(run.folder), "adapter": str(folder), "prompts": len(texts), **numbers}


def faults(
    *,
    samples: int,
    keep: int,
    steps: int,
    validate_every: int | None,
    stop_by: str | None,
    adapt_text: bool,
    merge: bool,
) -> Iterator[UsageError]:
    """Faults of combinations of arguments."""
    if keep > samples:
        message = f"--keep {keep} of --samples {samples}: give --keep up to --samples"
        yield UsageError(message, "out_of_range", argument="keep", given=keep)
    if adapt_text and merge:
        yield UsageError(
            "--merge writes only the denoiser, and --adapt-text also adapts the text tower: leave one of them out",
            "clash",
        )
    if stop_by is not None and validate_every is None:
        yield UsageError("--stop-by needs validations: give e.g. --validate-every 10", "no_validation")
    if validate_every is not None and validate_every > steps:
        message = f"--validate-every {validate_every} of --steps {steps}: there would be no validation"
        yield UsageError(message, "no_validation", validate_every=validate_every, steps=steps)


def training_pairs(count: int, seed: int, purpose: str = "alignment prompts") -> list[str]:
    """Prompts of two coloured things, disjoint from the evaluation prompts."""
    return [str(draw_pair(generator(seed, purpose, number))) for number in range(count)]


def selector(by: str, device: torch.device) -> Selector | Scorer:
    """A selector by the diffusion model itself, or a referee's score, by name."""
    return cast("Selector", by) if by in get_args(Selector) else load_rater(by, device)


def sampled(
    model: LatentDiffusion, texts: Sequence[str], *, size: int, guidance: float, seed: int, steps: int
) -> torch.Tensor:
    """Sample a model by DDIM from noise that depends on seed and text only."""
    streams = [generator(seed, f"shown {text}") for text in texts]
    return model.sample(list(texts), size=(size, size), steps=steps, guidance=guidance, generators=streams).cpu()


@torch.no_grad()
def real_pictures(model: LatentDiffusion, count: int, size: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Latents of pictures of the embedded generator's training set, with their captions."""
    images, captions = DrawingsAndPairs("guide-styles", count, seed, single=0.0).batch(0)
    return model.encode(resize(images, size).to(model.device)), captions
