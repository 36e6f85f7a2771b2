"""`make bench`: cost of exact gradient accumulation, and gain of a second process.

    batch in 4 parts, gathered negatives    the exact mode: a forward pass more in each attack step and in the update
    batch in 4 parts, local negatives       the approximate mode: a forward pass more in the update only
    their bare passes                       the same forward and backward passes by themselves: the least that it costs
    two processes                           the same batch shared by two processes of one thread, against one of one

Each is the time of attack and gradients (no optimiser) over that of the batch in one piece.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from bench import CASES, Case, Step, ratio

from robustclip.attacks import attacking
from robustclip.attacks.threat import ThreatModel
from robustclip.data.samples import Batch
from robustclip.planning.costs import gradient_to_pixels
from robustclip.referees.base import unit
from robustclip.robustification.adversarial import AdversarialGradients
from robustclip.robustification.losses import clip
from robustclip.robustification.state import ready_to_train
from robustclip.runs import distributed
from robustclip.runs.devices import pick_device

PARTS = 4


def update(case: Case, device: torch.device, attack_steps: int, size: int, **changes: object) -> AdversarialGradients:
    """Attack and gradients of a case; its batch is made by `pairs`."""
    tower = case.tower(device)
    ready_to_train(
        tower,
        frozen_statistics=True,
        grad_checkpointing=False,
        accumulate=PARTS,
        channels_last=case.channels_last,
    )
    return AdversarialGradients(
        tower=tower,
        embed=lambda images: unit(tower(images)),
        objective=clip(100.0),
        threat=ThreatModel("l2", 1.5, size),
        attack_steps=attack_steps,
        **changes,  # type: ignore[arg-type]
    )


def pairs(case: Case, device: torch.device, rows: slice) -> tuple[Batch, torch.Tensor]:
    """This process's rows of a batch of noise, and text features of no meaning."""
    stream = torch.Generator(device).manual_seed(0)
    images = torch.rand(case.batch, 3, case.size, case.size, generator=stream, device=device)[rows]
    texts = F.normalize(torch.randn(case.batch, case.model_cfg["embed_dim"], generator=stream, device=device), dim=1)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    ids = torch.arange(case.batch, device=device)[rows]
    names = [str(number) for number in ids.tolist()]
    return Batch(images.to(memory_format=layout), names, ids, names), texts[rows]


def bare(case: Case, device: torch.device, images: torch.Tensor, attack_steps: int, *, parts: int, again: int) -> Step:
    """Forward and backward passes of a step in `parts`, with `again` forward passes more in the attack and one in the
    update if in several parts."""
    tower = case.tower(device).eval()

    def step() -> None:
        for part in images.chunk(parts):
            with attacking(tower):
                for _ in range(again):
                    torch.no_grad()(tower)(part)
                for _ in range(attack_steps):
                    gradient_to_pixels(tower, part)
            if parts > 1:
                torch.no_grad()(tower)(part)
            tower(part).sum().backward()

    return step


def cost_of_parts(case: Case, device: torch.device, rounds: int, attack_steps: int) -> None:
    batch, texts = pairs(case, device, slice(None))
    whole = update(case, device, attack_steps, case.size)
    for negatives in ("gathered", "local"):
        parts = update(case, device, attack_steps, case.size, accumulate=PARTS, attack_negatives=negatives)
        cost = ratio(partial(parts, 0, batch, texts), partial(whole, 0, batch, texts), rounds, device)
        again = attack_steps if negatives == "gathered" else 0
        in_parts = bare(case, device, batch.images, attack_steps, parts=PARTS, again=again)
        least = ratio(in_parts, bare(case, device, batch.images, attack_steps, parts=1, again=0), rounds, device)
        print(
            f"{case.name}: batch in {PARTS} parts, {negatives} negatives: {cost:.2f} of one piece, "
            f"their bare passes {least:.2f}",
            flush=True,
        )


def seconds_of_share(number: int, rounds: int, attack_steps: int) -> float:
    """Median seconds of a step of this process, which takes its share of the batch."""
    case, device = CASES[number], torch.device("cpu")
    torch.set_num_threads(1)
    share = case.batch // distributed.count()
    batch, texts = pairs(case, device, slice(distributed.rank() * share, (distributed.rank() + 1) * share))
    step = update(case, device, attack_steps, case.size)
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        step(0, batch, texts)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def processes(count: int, *arguments: str) -> float:
    """The slowest process's median seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), "--share", *arguments]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | (world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    return max(float(process.communicate()[0].split()[-1]) for process in started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each side (default: %(default)s)")
    parser.add_argument("--attack-steps", type=int, default=2, help="K (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.share is not None:
        print(seconds_of_share(arguments.share, arguments.rounds, arguments.attack_steps))
        return
    device = pick_device(arguments.device)
    print(f"K = {arguments.attack_steps} attack steps, {device}, {torch.get_num_threads()} threads", flush=True)
    settings = ("--rounds", str(arguments.rounds), "--attack-steps", str(arguments.attack_steps))
    for number, case in enumerate(CASES):
        cost_of_parts(case, device, arguments.rounds, arguments.attack_steps)
        alone, together = (processes(count, str(number), *settings) for count in (1, 2))
        print(f"{case.name}: two processes of one thread take {together / alone:.2f} of one's time", flush=True)


if __name__ == "__main__":
    main()
