"""Measure the reversible samplers on the embedded diffusion model: inversion error and distance to DDIM.

    python tools/measure_samplers.py > table.md                # minutes on one core
    python tools/measure_samplers.py --cost                    # time and memory of a gradient instead

Of each sampler, guidance, number of steps and dtype of the states: the RMS error of the reconstructed noise in parts of
its RMS (the largest of the prompts'), the deviation of the latents at the end, and their RMS distance from DDIM's of
the same noise. A drift is of EDICT's pair.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from alive import Alive
from torch import Tensor

from robustclip.data.pairs import compositional_prompts
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.reversible import chain_of, pair
from robustclip.errors import RunError
from robustclip.runs.rng import generator

GUIDANCES: Final = (1.0, 3.0, 7.5)
STEPS: Final = (10, 25, 50)
SAMPLERS: Final[list[tuple[Any, dict[str, float]]]] = [
    ("edict", {"p": 0.93}),
    ("edict", {"p": 0.97}),
    *(("bdia", {"gamma": gamma}) for gamma in (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)),
    ("o-belm", {}),
]


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@torch.no_grad()
def rows(count: int, guidances: Sequence[float]) -> Iterator[str]:
    model = load_diffusion("emoji-diffusion")
    texts = model.embed_prompts([str(one) for one in compositional_prompts()[:count]])
    empty = model.embed_prompts([""])
    side = 64 // model.factor
    drawn = [torch.randn(model.channels, side, side, generator=generator(row, "samplers")) for row in range(count)]
    noise = torch.stack(drawn).double()
    yield f"n = {count} prompts, {noise[0].numel()} numbers each\n"
    yield "| sampler | guidance | steps | error, float32 | error, float64 | deviation | DDIM's | from DDIM | drift |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for guidance in guidances:
        for steps in STEPS:
            setting: dict[str, Any] = {"steps": steps, "guidance": guidance}
            plain, given = chain_of(model, texts, empty, sampler="ddim", **setting)
            target = plain.sample(pair(noise), *given)[plain.pictures[0]]
            for name, constants in SAMPLERS:
                chain, _ = chain_of(model, texts, empty, sampler=name, **setting, constants=constants)
                errors, end = [], noise
                for dtype in (torch.float32, torch.float64):
                    try:
                        state = chain.sample(pair(noise.to(dtype)), *given)
                        back = chain.invert(state, *given) - noise
                        errors.append(f"{float(back.square().flatten(2).mean(2).sqrt().max()):.0e}")
                        end = state
                    except RunError:
                        errors.append("not finite")
                made = end[chain.pictures]
                drift = f"{rms(made[0] - made[1]):.2f}" if len(made) == 2 else ""
                label = " ".join([name, *(f"{key} {value:g}" for key, value in constants.items())])
                facts = (rms(made - made.mean()), rms(target - target.mean()), rms(made - target))
                cells = [f"{guidance:g}", str(steps), *errors, *(f"{one:.2f}" for one in facts), drift]
                yield f"| {label} | {' | '.join(cells)} |"


def costs(repeats: int = 5) -> Iterator[str]:
    model = load_diffusion("emoji-diffusion")
    texts, empty = model.embed_prompts(["a cat", "a dog"]), model.embed_prompts([""])
    side = 64 // model.factor
    noise = torch.randn(2, model.channels, side, side, generator=generator(0, "samplers")).double()
    yield f"2 latents of {model.channels}x{side}x{side}, guidance 3; seconds of a core; MB alive at a peak\n"
    yield "| sampler | gradient | 10 steps, s | 50 steps, s | 10 steps, MB | 50 steps, MB |"
    yield "|---|---|---|---|---|---|"
    for name, gradients in (
        ("edict", ("reversed", "checkpointed", "stored")),
        ("bdia", ("reversed", "checkpointed", "stored")),
        ("o-belm", ("reversed", "checkpointed", "stored")),
        ("ddim", ("checkpointed", "stored")),
    ):
        for gradient in gradients:
            seconds, peaks = [], []
            for steps in (10, 50):
                setting: Any = {"sampler": name, "steps": steps, "guidance": 3.0, "gradient": gradient}
                chain, given = chain_of(model, texts, empty, **setting)

                def once(chain: Any = chain, given: Any = given) -> None:
                    leaf = noise.clone().requires_grad_()
                    chain.sample(pair(leaf), *given)[chain.pictures].square().sum().backward()

                found = []
                for _ in range(repeats):
                    begun = time.process_time()
                    once()
                    found.append(time.process_time() - begun)
                seconds.append(min(found))
                with Alive() as alive:
                    once()
                peaks.append(alive.peak / 1e6)
            cells = [*(f"{one:.2f}" for one in seconds), *(f"{one:.1f}" for one in peaks)]
            yield f"| {name} | {gradient} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCES)
    parser.add_argument("--cost", action="store_true")
    asked = parser.parse_args()
    for line in costs() if asked.cost else rows(asked.prompts, asked.guidance):
        print(line, flush=True)
