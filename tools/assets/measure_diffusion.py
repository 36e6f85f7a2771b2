"""Measure the embedded diffusion model. Writes its card and docs/diffusion.webp.

    python tools/assets/measure_diffusion.py                             # some minutes on one core
    python tools/assets/measure_diffusion.py --run runs/... [runs/...]   # puts learning curves on the card, in a row
    python tools/assets/measure_diffusion.py --earlier FOLDER            # and measures an earlier stage beside it

Reconstruction is of pairs in styles that the autoencoder was trained on, and in unseen ones, beside averages over its
cells, enlarged again. Its own pictures are of the 60 compositional prompts, two of each, by DDIM at several guidances;
judges who guide nothing find them as in `reproduce inversion`. How strong a text conditions shows in the error of the
noise with a picture's caption, with its colours exchanged, with another's, and with none, all with the same noise: mean
over scenes whose things both have colours, and over noise levels, with each one's difference to the own caption's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from measure_vqgan import blur, quality
from torch import Tensor

from robustclip.data.embedded import path
from robustclip.data.images import save_image, titled_grid
from robustclip.data.pairs import PairBatches, compose_pair, compositional_prompts
from robustclip.diffusion.pipelines import CARD, load_diffusion
from robustclip.diffusion.stable import Conditioning, LatentDiffusion
from robustclip.evaluation import intervals
from robustclip.evaluation.generation.compositional import judge_pairs
from robustclip.referees.pair_readers import load_pair_reader
from robustclip.runs.files import read_json, write_json
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator

LICENCE: Final = (
    "Trained on drawings of Noto Emoji, Firefox OS Emoji and IconPark (Apache-2.0), Fluent Emoji, Flat Color Icons and "
    "Meteocons (MIT), Emoji One and Streamline (CC-BY-4.0) and Game-icons.net (CC-BY-3.0); NOTICE names their makers. "
    "No drawing of OpenMoji or Twemoji is in it."
)
SHEET: Final = Path(__file__).parents[2] / "docs" / "diffusion.webp"
JUDGES: Final = ["emoji-blip2-judge", "emoji-blip2-judge-disjoint"]
GUIDANCES: Final = (1.0, 3.0, 5.0, 7.5)
SEEDS: Final = 2  # pictures of each prompt
SPLITS: Final = ("guide-styles", "unseen-styles")
TIMES: Final = (100, 300, 500, 700, 900)  # of 1000 steps of the schedule
RATES: Final = ("right", "attributes", "both")
RESAMPLES: Final = 2_000
SHARES: Final = 10  # of a training, whose mean errors are its learning curve
SCENES: Final = 200
COLOURED: Final = 320  # scenes of two colours, on which the error of the noise is measured
COLUMNS: Final = 8  # of the sheet


def main(folder: Path, runs: Sequence[Path], earlier: Path | None, sheet: Path, judges: Sequence[str]) -> None:
    model = load_diffusion(folder)
    pictures = {guidance: samples(model, guidance) for guidance in GUIDANCES}
    measured: dict[str, Any] = {
        "reconstruction": [reconstruction(model, split) for split in SPLITS],
        "own pictures": found_in(pictures, judges),
        "composed pictures": found_in({split: scenes(split) for split in SPLITS}, judges, "split"),
        "error of the noise": errors(model),
    }
    if runs:
        measured["learning curve"] = [curve(run) for run in runs]
    if earlier is not None:
        before = load_diffusion(earlier)
        measured["earlier"] = {
            "steps": read_json(earlier / CARD)["steps"],
            "own pictures": found_in({guidance: samples(before, guidance) for guidance in GUIDANCES}, judges),
            "error of the noise": errors(before),
        }
    print(json.dumps(measured, indent=2))
    card = read_json(folder / CARD)
    write_json(folder / CARD, card | {"licence": LICENCE, "measured": measured})
    save_image(picture(model, pictures), sheet)


@torch.no_grad()
def reconstruction(model: LatentDiffusion, split: str) -> dict[str, Any]:
    """Mean PSNR and absolute difference of scenes that the autoencoder has not seen as such."""
    images = PairBatches(split, SCENES, seed=1).batch(0).images
    back = model.decode(model.encode(images)).clamp(0, 1)
    return {
        "split": split,
        "n": SCENES,
        **quality(images, back),
        "of_blur": quality(images, blur(images, model.factor)),
    }


def samples(model: LatentDiffusion, guidance: float) -> Tensor:
    """SEEDS pictures of each compositional prompt, all prompts by the first seed first."""
    return torch.cat([_samples(model, guidance, seed) for seed in range(SEEDS)])


def _samples(model: LatentDiffusion, guidance: float, seed: int) -> Tensor:
    pairs = compositional_prompts()
    streams = [generator(seed, f"sample {pair}") for pair in pairs]
    texts = [str(pair) for pair in pairs]
    return model.sample(texts, size=(64, 64), steps=50, guidance=guidance, generators=streams)


def found_in(pictures: Mapping[Any, Tensor], judges: Sequence[str], by: str = "guidance") -> list[dict[str, Any]]:
    """Each judge's rates, and of what all of them find, with 95% intervals (Wilson)."""
    hits: dict[tuple[str, Any, str], Any] = {}
    for name in judges:
        judge = load_pair_reader(name)
        for key, images in pictures.items():
            verdict = judge_pairs(judge, images, compositional_prompts() * SEEDS)
            hits |= {(name, key, rate): getattr(verdict, rate).numpy() for rate in RATES}
    hits |= {
        ("all", key, rate): np.all([hits[name, key, rate] for name in judges], axis=0)
        for key in pictures
        for rate in RATES
    }
    return [
        {"judge": name, by: key, **{rate: asdict(intervals.rate(hits[name, key, rate])) for rate in RATES}}
        for name in (*judges, "all")
        for key in pictures
    ]


def scenes(split: str) -> Tensor:
    """As many composed pictures of each compositional prompt as of its own: what the judges find at best."""
    return torch.stack(
        [compose_pair(pair, split=split, number=seed) for seed in range(SEEDS) for pair in compositional_prompts()]
    )


@torch.no_grad()
def errors(model: LatentDiffusion) -> dict[str, Any]:
    """Mean squared error of the noise by text: at each noise level, over all of them with its 95% interval (bootstrap
    over scenes), and what it is above that with the own caption, as a share of it (paired bootstrap)."""
    batch = PairBatches(SPLITS[0], 2 * COLOURED, seed=1).batch(0)
    rows = [row for row, pair in enumerate(batch.pairs) if pair.first.colour and pair.second.colour][:COLOURED]
    captions = [batch.captions[row] for row in rows]
    latents = model.encode(batch.images[rows])
    texts = {
        "own": captions,
        "exchanged colours": [batch.swapped[row] for row in rows],
        "another's": [*captions[1:], captions[0]],
        "none": [""] * len(rows),
    }
    noise = torch.randn(latents.shape, generator=generator(0, "noise"))
    found = {
        name: {time: _errors(model, latents, noise, time, model.embed_prompts(given)) for time in TIMES}
        for name, given in texts.items()
    }
    drawn = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    own = np.mean(list(found["own"].values()), axis=0)
    found_by_text: dict[str, Any] = {"n": len(rows)}
    for name, by_time in found.items():
        all_times = np.mean(list(by_time.values()), axis=0)
        above = all_times[drawn].mean(1) / own[drawn].mean(1) - 1
        found_by_text[name] = {
            **{str(time): float(values.mean()) for time, values in by_time.items()},
            "all": asdict(intervals.mean(all_times, seed=0)),
            "above own": [float(all_times.mean() / own.mean() - 1), *map(float, np.quantile(above, (0.025, 0.975)))],
        }
    return found_by_text


def _errors(model: LatentDiffusion, latents: Tensor, noise: Tensor, time: int, given: Conditioning) -> Any:
    kept = model.alphas_cumprod[time]
    times = torch.full((len(latents),), time)
    found = model.predict_noise(kept.sqrt() * latents + (1 - kept).sqrt() * noise, times, given, given, 1.0)
    return (found - noise).square().flatten(1).mean(1).numpy()


def curve(run: Path) -> dict[str, Any]:
    """Mean error of the noise over tenths of a training, and what its record says of it."""
    record = Run.open(run).record
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").strip().split("\n")]
    values = np.array([one["error"] for one in lines if "error" in one])
    steps = [int(share[-1]) + 1 for share in np.array_split(np.arange(len(values)), SHARES)]
    means = [round(float(share.mean()), 4) for share in np.array_split(values, SHARES)]
    kept = {name: record[name] for name in ("versions", "commit", "started", "ended")}
    asked = {
        name: record["arguments"][name] for name in ("start", "steps", "lr", "batch_size", "repeat", "placed", "dtype")
    }
    return kept | {"arguments": asked, "error": dict(zip(map(str, steps), means, strict=True))}


def picture(model: LatentDiffusion, pictures: dict[float, Tensor]) -> Tensor:
    """The first prompts: composed in unseen styles, through the autoencoder, and the model's own."""
    pairs = compositional_prompts()[:COLUMNS]
    scenes = torch.stack([compose_pair(pair, split=SPLITS[1]) for pair in pairs])
    with torch.no_grad():
        rows = {"composed": scenes, "through the autoencoder": model.decode(model.encode(scenes)).clamp(0, 1)}
    rows |= {f"guidance {guidance:g}": images[:COLUMNS] for guidance, images in pictures.items()}
    return titled_grid(list(rows), [str(pair) for pair in pairs], torch.cat(list(rows.values())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=path("generators", "emoji-diffusion"))
    parser.add_argument("--run", type=Path, nargs="+", default=[])
    parser.add_argument("--earlier", type=Path)
    parser.add_argument("--sheet", type=Path, default=SHEET)
    parser.add_argument("--judges", nargs="+", default=JUDGES)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.run, arguments.earlier, arguments.sheet, arguments.judges)
