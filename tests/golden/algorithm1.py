"""Writes algorithm1.json: three iterations of Referee-Can-Play's Algorithm 1 on toy modules, in plain numpy.

python tests/golden/algorithm1.py

From the paper's lines; nothing of the package is used. The toys: a linear decoder, x = D z; the referee's loss
||x - target||^2 / 2; noise that is predicted as A z_t + b; times, noises and the noise on z are fixed numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CELLS, STEPS, GUIDED = 4, 3, (0, 1)  # height times width of the latent; iterations; those with the referee
DECAY, START, PERIOD = 0.5, 1, 2  # of the moving average
SIGMA = 0.2


def toys() -> dict[str, Any]:
    """Everything that the iterations need, drawn once."""
    rng = np.random.default_rng(0)
    return {
        "decoder": rng.normal(size=(12, 4)).round(3).tolist(),
        "target": rng.normal(size=12).round(3).tolist(),
        "predictor": rng.normal(size=(4, 4)).round(3).tolist(),
        "bias": rng.normal(size=4).round(3).tolist(),
        "start": rng.normal(size=4).round(3).tolist(),
        "kept": [0.9, 0.5, 0.2],
        "noises": rng.normal(size=(STEPS, 4)).round(3).tolist(),
        "shaken": rng.normal(size=(STEPS, 4)).round(3).tolist(),
    }


def run(toy: dict[str, Any]) -> list[list[float]]:
    """z after each iteration, by the paper's text; vlminv.py is its code."""
    decoder, target, predictor, bias = (np.array(toy[name]) for name in ("decoder", "target", "predictor", "bias"))
    z = np.array(toy["start"])
    ema = z.copy()
    first, second = np.zeros(4), np.zeros(4)  # Adam's moments
    path = []
    for i in range(STEPS):
        w1 = 2.0
        w2 = 4 + (8 - 4) * (1 + np.cos(np.pi * i / STEPS)) / 2  # 800 to 400, for a latent of 4 cells
        rate = 0.5 + (1 - 0.5) * (1 + np.cos(np.pi * i / STEPS)) / 2
        # gradient of SDS: w(t) (predicted - noise) / cells, with w(t) = 2
        kept, noise = toy["kept"][i], np.array(toy["noises"][i])
        noisy = np.sqrt(kept) * z + np.sqrt(1 - kept) * noise
        sds = 2 * (predictor @ noisy + bias - noise) / CELLS
        # gradient of the referee through the decoder
        vlm = decoder.T @ (decoder @ z - target)
        if i in GUIDED:  # g_blip = w1 grad L ||grad SDS|| / ||grad L||, by Adam; both rates fall
            g = w1 * vlm * np.linalg.norm(sds) / np.linalg.norm(vlm)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            corrected = first / (1 - 0.9 ** (i + 1)), second / (1 - 0.999 ** (i + 1))
            z = z - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        z = z - rate * w2 * sds
        if i in GUIDED:
            z = z + SIGMA * np.array(toy["shaken"][i])
        ema = DECAY * ema + (1 - DECAY) * z
        if i >= START and (i - START) % PERIOD == 0:
            z = ema.copy()
        path.append(z.tolist())
    return path


if __name__ == "__main__":
    toy = toys()
    content = {"toys": toy, "faithful": run(toy)}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
