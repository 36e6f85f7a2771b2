"""Writes vlminv.json: twelve iterations of Referee-Can-Play's released loop (VLMinv, commit 4dd4c13) on toy modules.

python tests/golden/vlminv.py

A restatement of the arithmetic of blip2_sds.py, sds_utils.py, utils.py and vqgan_utils.py in torch, float64; nothing of
the package is used. As there, gradients are autograd's, the referee's optimiser is torch's SGD, the average is a tensor
whose memory the latents take at a restart, and iterations are counted from 0. The toys: a linear decoder, a linear
denoiser guided by 30, and the referee's loss ||x - target||^2 / 2 of each copy. All draws are fixed numbers, in the
order in which the loop makes them. Smaller than there, so that twelve iterations reach every rule: the weight of SDS
(0.8 to 0.4), the warm-up (3), the referee's iterations (10), the average's decay, start and period (0.5, 4, 3), and the
copies (2, of which nothing but the noises is made).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ITERATIONS, GUIDED, WARM_UP, COPIES = 12, 10, 3, 2
FIRST, LAST = 0.8, 0.4  # weight of SDS
DECAY, START, PERIOD = 0.5, 4, 3
CHANNELS, SIDE = 4, 2  # of the latent; a picture has 3 channels of 4 x 4 pixels
RATE, LOWEST, GUIDANCE, W1 = 1.0, 0.5, 30.0, 2.0
NOISE_OF_LATENTS, NOISE_OF_COPIES, LARGEST = 0.2, 0.2, 0.1
SCALE = 0.18215


def toys() -> dict[str, Any]:
    """Everything that the iterations need, drawn once."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return (scale * torch.randn(shape, generator=draw, dtype=torch.float64)).round(decimals=3).tolist()

    latent, picture = CHANNELS * SIDE**2, 3 * (2 * SIDE) ** 2
    return {
        "decoder": normal(picture, latent, scale=0.05),
        "denoiser": normal(latent, latent, scale=0.2),
        "without text": normal(latent, scale=0.02),
        "with text": normal(latent, scale=0.02),
        "target": normal(picture),
        "start": normal(latent),
        "times": torch.randint(50, 949, (ITERATIONS,), generator=draw).tolist(),
        "noise of SDS": normal(ITERATIONS, latent),
        "strength of copies": torch.rand(ITERATIONS, COPIES, generator=draw, dtype=torch.float64).tolist(),
        "noise of copies": normal(ITERATIONS, COPIES, picture),
        "added noise": normal(ITERATIONS, COPIES, picture),
        "noise of the gradient": normal(ITERATIONS, latent),
        "noise of the latents": normal(ITERATIONS, latent),
    }


def rate_of(iteration: int, warm_up: int, iterations: int) -> float:
    """The referee's: a line up, and after it half a cosine down."""
    if iteration < warm_up:
        return RATE * (iteration + 1) / warm_up
    share = (iteration - warm_up) / (iterations - warm_up)
    return 0.5 * (1 + math.cos(math.pi * share)) * (RATE - LOWEST) + LOWEST


def restarts_at(iteration: int, start: int, period: int, guided: int) -> bool:
    done = iteration + 1
    return done >= start and (done - start) % period == 0 and done <= guided


def kept_of(time: int) -> float:
    """alpha-bar of the toy schedule of 1000 steps."""
    return 0.99 - 0.98 * time / 999


def run(toy: dict[str, Any]) -> dict[str, list[Any]]:
    """The latents and the average after each iteration, the referee's rate and the weight of SDS in it."""
    found: dict[str, list[Any]] = {"latents": [], "average": [], "rate": [], "weight": []}
    given = {name: torch.tensor(value, dtype=torch.float64) for name, value in toy.items() if name != "times"}
    z = given["start"].clone().requires_grad_()
    average: Tensor | None = None
    referee = torch.optim.SGD([z], lr=RATE)
    for i in range(ITERATIONS):
        weight = 0.5 * (1 + math.cos(math.pi * i / ITERATIONS)) * (FIRST - LAST) + LAST
        rate = rate_of(i, WARM_UP, ITERATIONS)
        referee.param_groups[0]["lr"] = rate

        # SDS: sum of 2 (guided noise - noise) z, over the cells of the latent
        noise, kept = given["noise of SDS"][i], kept_of(toy["times"][i])
        with torch.no_grad():
            noisy = math.sqrt(kept) * z + math.sqrt(1 - kept) * noise
            without = given["denoiser"] @ noisy + given["without text"]
            told = given["denoiser"] @ noisy + given["with text"]
            pull = 2 * (without + GUIDANCE * (told - without) - noise)
        sds = weight * (pull * z).sum() / SIDE**2
        of_sds = torch.autograd.grad(sds, z)[0]

        if i < GUIDED:
            picture = (given["decoder"] @ (z / SCALE) / 2 + 0.5).clamp(0, 1)
            strength = LARGEST * given["strength of copies"][i][:, None]
            copies = picture.expand(COPIES, -1) + strength * given["noise of copies"][i]
            copies = copies + NOISE_OF_COPIES * given["added noise"][i]
            loss = W1 * ((copies - given["target"]) ** 2).sum(1).div(2).mean()
            of_referee = torch.autograd.grad(loss, z)[0]
            scale = of_sds.norm() / of_referee.norm()
            z.grad = W1 * scale * of_referee + NOISE_OF_LATENTS * given["noise of the gradient"][i]
            referee.step()  # in place: after a restart it moves the average too
            z.data = z.data - RATE * of_sds + NOISE_OF_LATENTS * given["noise of the latents"][i]
        else:
            z.data = z.data - RATE * of_sds + 0.01 * given["noise of the latents"][i]

        average = z.detach().clone() if average is None else average.copy_(DECAY * average + (1 - DECAY) * z.detach())
        if restarts_at(i, START, PERIOD, GUIDED):
            z.data = average
        found["latents"].append(z.tolist())
        found["average"].append(average.tolist())
        found["rate"].append(rate)
        found["weight"].append(weight)
    return found


if __name__ == "__main__":
    toy = toys()
    content = {"toys": toy, **run(toy)}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content) + "\n")
