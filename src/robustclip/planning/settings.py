"""Inputs of a plan: GPUs, number of samples, and the settings of a training that determine its cost; and scripts that
launch the planned run by accelerate, torchrun or SLURM, with its numbers filled in.

A script starts the run in its folder, and continues it from its newest checkpoint when started again
(`--resume latest`). Importing this module does not import torch, so that help stays fast.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, PositiveInt

from robustclip.errors import UsageError
from robustclip.recipes import Recipe
from robustclip.runs.processes import Place

HERE: Final = "here"
"""Name of this machine, which is measured instead of looked up."""
PRICES_OF: Final = "2026-03"
"""Date of the prices, list prices of a cloud that rents single GPUs. They are indicative; other clouds charge from half
to three times as much."""
SINGLE_REACHED: Final = 0.7
"""Assumed utilisation of a GPU's float32 peak (ours); without tensor cores it is higher than --mfu."""
RESERVED: Final = 0.1
"""Share of a GPU's memory for the CUDA context, fragmentation, and workspace of layers (ours)."""
LOG_EVERY: Final = 10  # the trainer's default
GIB: Final = 2**30
UNPLANNED: Final = {"edits": "a text tower", "votes": "LoRA on triplets"}
"""Flags by which a recipe is known that has no plan, and what it trains."""


@dataclass(frozen=True)
class Gpu:
    """`half` and `single` are peaks in TFLOP/s of the maker's data sheet: dense (no sparsity) tensor cores with float32
    accumulation for bfloat16 and float16, and ordinary cores for float32, torch's default (no TF32). Memory in GB,
    price in US dollars per hour. `link` is what a GPU sends to others of its machine, in GB/s: half of the data
    sheet's NVLink or PCIe, which is of both directions. `network` is a GPU's share of its machine's network."""

    half: float
    single: float
    memory: float
    price: float
    link: float
    network: float = 12.5  # 100 Gb/s, ours; 400 and 200 Gb/s a GPU below are NVIDIA's of DGX H100, B200 and A100
    has_bfloat16: bool = True

    def reached(self, dtype: str, mfu: float) -> float:
        """Expected FLOP/s in a dtype by name; `mfu` is the utilisation of the tensor cores' peak."""
        return 1e12 * (SINGLE_REACHED * self.single if dtype == "float32" else mfu * self.half)


GPUS: Final = {
    "b200": Gpu(2250, 75, 180, 5.98, 900, 50),  # NVIDIA HGX B200 data sheet (a system's numbers / 8)
    "h200": Gpu(989, 67, 141, 3.59, 450, 50),  # NVIDIA H200 data sheet, SXM
    "h100": Gpu(989, 67, 80, 2.69, 450, 50),  # NVIDIA H100 data sheet, SXM
    "h100-pcie": Gpu(756, 51, 80, 1.99, 64),  # NVIDIA H100 PCIe product brief
    "a100-80gb": Gpu(312, 19.5, 80, 1.39, 300, 25),  # NVIDIA A100 80GB data sheet
    "a100-40gb": Gpu(312, 19.5, 40, 1.29, 300, 25),  # NVIDIA A100 data sheet
    "l40s": Gpu(362, 91.6, 48, 0.79, 32),  # NVIDIA L40S data sheet
    "l4": Gpu(121, 30.3, 24, 0.44, 32),  # NVIDIA L4 data sheet
    "a40": Gpu(149.7, 37.4, 48, 0.40, 32),  # NVIDIA A40 data sheet
    "a10": Gpu(125, 31.2, 24, 0.75, 32),  # NVIDIA A10 data sheet
    "rtx-a6000": Gpu(154.8, 38.7, 48, 0.49, 32),  # NVIDIA RTX A6000 data sheet (half of its sparse figure)
    "rtx5090": Gpu(209.5, 104.8, 32, 0.69, 64),  # NVIDIA RTX Blackwell architecture paper
    "rtx4090": Gpu(165.2, 82.6, 24, 0.34, 32),  # NVIDIA Ada architecture paper
    "rtx3090": Gpu(71, 35.6, 24, 0.22, 32),  # NVIDIA Ampere GA102 architecture paper
    "v100": Gpu(125, 15.7, 32, 0.55, 150, has_bfloat16=False),  # NVIDIA V100 data sheet, SXM2
    "t4": Gpu(65, 8.1, 16, 0.35, 16, has_bfloat16=False),  # NVIDIA T4 data sheet
}


def known_gpu(name: str) -> str:
    """Canonical name of a GPU ("RTX 4090" is rtx4090). Raises ValueError for an unknown one."""
    spelt = name.strip().lower().replace("_", "-").replace(" ", "-")
    for candidate in (spelt, spelt.replace("-", ""), f"{spelt}-80gb"):
        if candidate in GPUS or candidate == HERE:
            return candidate
    near = get_close_matches(spelt, GPUS, n=3)
    meant = f"; near ones: {', '.join(near)}" if near else ""
    raise ValueError(f"should be {HERE} (this machine, measured) or one of {', '.join(GPUS)}{meant}")


def count_of(text: object) -> object:
    """Parse a number of samples: 100M, 5k, 1.2B, 4096. Raises ValueError."""
    if not isinstance(text, str):
        return text
    powers = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kmb]?)", text.strip().lower().replace("_", ""), re.ASCII)
    value = Fraction(found[1]) * powers[found[2]] if found else Fraction(0)  # as a float, 4.1 * 10**6 is not whole
    if value.denominator != 1 or not 0 < value <= 10**15:
        raise ValueError("should be a whole number above 0, as in 100M, 5k, 1.2B or 4096")
    return int(value)


@dataclass(frozen=True)
class Terms:
    """Hardware, length and assumptions of a planned run."""

    gpu: Annotated[str, AfterValidator(known_gpu), "GPU name, or `here` to time a step on this machine"] = "h100"
    count: Annotated[PositiveInt, "number of GPUs, one process each"] = 1
    samples: Annotated[
        PositiveInt | None, BeforeValidator(count_of), "number of training pairs, e.g. 100M; sets --steps"
    ] = None
    mfu: Annotated[float, Field(gt=0, le=1), "assumed utilisation of peak FLOPS"] = 0.3
    price: Annotated[NonNegativeFloat | None, "price of one GPU hour; default: the table's"] = None
    fsdp: Annotated[bool, "shard weights, gradients and moments over the GPUs (FSDP)"] = False
    bandwidth: Annotated[
        float | None,
        Field(gt=0),
        "GB/s that a GPU sends to others; default: NVLink's, PCIe's or a network's",
    ] = None
    per_node: Annotated[PositiveInt, "GPUs of one machine"] = 8
    launch: Annotated[Launcher | None, "print a script that launches the run, instead of the table"] = None

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return ceil(self.count / self.per_node)

    def sending(self) -> float | None:
        """Bytes per second that a GPU sends; None of this machine's, unless given."""
        if self.bandwidth is not None or self.gpu == HERE:
            return self.bandwidth and 1e9 * self.bandwidth
        return 1e9 * (GPUS[self.gpu].link if self.nodes == 1 else GPUS[self.gpu].network)


def faults(
    gpu: str, count: int, fsdp: bool, per_node: int, launch: Launcher | None, dtype: str, quick: bool
) -> Iterator[str | UsageError]:
    """Faults of combinations of terms and flags."""
    if launch and count > per_node and count % per_node:
        near = " or ".join(f"--count {per_node * nodes}" for nodes in (count // per_node, count // per_node + 1))
        message = f"--count {count}: not a multiple of the {per_node} GPUs of a machine (--per-node): give {near}"
        yield UsageError(message, "not_divisible", argument="count", near=near)
    if quick:
        yield UsageError("--quick: a quick run takes seconds and needs no plan: leave it out", "no_plan")
    if fsdp and count == 1:
        yield UsageError(
            "--fsdp splits weights over GPUs, and --count is 1: leave it out, or give --count 2 or more", "one_gpu"
        )
    if gpu != HERE and dtype == "bfloat16" and not GPUS[gpu].has_bfloat16:
        message = f"--dtype bfloat16: not supported by a {gpu}: use --dtype float32"
        yield UsageError(message, "unsupported_dtype", dtype=dtype, gpu=gpu)
    if gpu != HERE and dtype not in ("auto", "bfloat16", "float32"):
        yield UsageError(f"--dtype {dtype!r}: training runs in auto, bfloat16 or float32", "unknown_dtype", dtype=dtype)


@dataclass(frozen=True)
class Settings:
    """Settings that the cost of a training depends on, named as the flags; defaults are the trainer's."""

    start: str
    steps: int
    batch_size: int
    architecture: str | None = None
    attack_steps: int = 0
    objective: str = "clip"
    split: str | None = None
    clean_weight: float = 0.0
    anchor: float = 0.0
    energy: float = 0.0
    energy_steps: int = 0
    accumulate: int = 1
    attack_negatives: str = "gathered"
    grad_checkpointing: bool = False
    frozen_statistics: bool = False
    locked_groups: int = 0
    evaluate_every: int = 0
    channels_last: bool = False
    dtype: str = "auto"
    device: str = "auto"

    @property
    def coupled(self) -> bool:
        """Whether an image's loss depends on the rest of its batch."""
        return self.objective in ("clip", "siglip")

    @property
    def reads_clean(self) -> bool:
        """Whether the update also embeds the clean images, with gradients."""
        return self.objective == "trades" or self.anchor > 0 or self.energy > 0

    @property
    def sampling_steps(self) -> int:
        """Steps of CLIP-JEM's negative samples, each as dear as one of the attack."""
        return self.energy_steps if self.energy else 0

    @property
    def reads_original(self) -> bool:
        """Whether the objective needs the tower before training."""
        return self.objective in ("fare", "agft") or self.anchor > 0

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size

    def share(self, count: int) -> int:
        """Pairs of a batch per process. Raises UsageError if `count` does not divide the batch."""
        return Place(world_size=count).share(self.batch_size)

    def part(self, count: int) -> int:
        """Pairs whose activations a process holds at once."""
        return ceil(self.share(count) / self.accumulate)


def settings_of(recipe: Recipe, arguments: Mapping[str, Any], samples: int | None = None) -> Settings:
    """Settings of a call of `recipe` with `arguments` (including defaults), for `samples` pairs or the recipe's steps.

    Raises UsageError for a recipe without tower or batch size, and for one that trains a text tower or LoRA.
    """
    known = dict(arguments)
    for flag in known.keys() & UNPLANNED.keys():
        message = f"plans are of whole image towers on pairs, and {recipe.name} trains {UNPLANNED[flag]}"
        raise UsageError(message, "no_plan")
    if lacking := [name for name in ("start", "steps", "batch_size") if not known.get(name)]:
        flags = ", ".join("--" + name.replace("_", "-") for name in lacking)
        raise UsageError(
            f"{recipe.name} has no value of {flags}, which a plan needs. Give it if the recipe has the flag, "
            "e.g. --start emoji-vanilla or --start ViT-B-32:laion2b_s34b_b79k"
        )
    if samples is not None:
        known["steps"] = ceil(samples / known["batch_size"])
    return Settings(**{field.name: known[field.name] for field in fields(Settings) if field.name in known})


Launcher = Literal["accelerate", "torchrun", "slurm"]

PORT: Final = 29500
RESTARTS: Final = 3  # of all processes after one died, by torch's elastic agent
LONGEST: Final = 24  # hours that a job asks for; a longer run is requeued
OWN_STORE: Final = (
    "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else restarted processes may find the addresses of dead ones"
)
"""torch keeps one key-value store over restarts, and gloo and NCCL look each other up there under the same keys."""
CONTINUED: Final = " \\\n    "


@dataclass(frozen=True)
class Launch:
    """`count` processes, one per GPU, on `nodes` machines, that execute `robustclip RUN...`.

    workers: decoding processes per process; hours: estimated length of the run. Both set SLURM's requests.
    """

    run: Sequence[str]
    count: int
    nodes: int = 1
    fsdp: bool = False
    workers: int = 0
    hours: float = LONGEST

    def script(self, launcher: Launcher, about: Sequence[str]) -> str:
        """The bash script, with the lines `about` as the comment at its head."""
        body = {"accelerate": self._accelerate, "torchrun": self._torchrun, "slurm": self._slurm}[launcher]()
        comment = ["# " + line.replace("\n", " ") for line in about]
        return "\n".join(["#!/bin/bash", *comment, *body]) + "\n"

    def _accelerate(self) -> list[str]:
        kind = "--use_fsdp --fsdp_version 2 " if self.fsdp else "--multi_gpu " if self.count > 1 else ""
        flags = [f"{kind}--num_processes {self.count} --mixed_precision no --dynamo_backend no"]
        usage = []
        if self.nodes == 1:
            flags[0] += " --num_machines 1"
        else:
            usage = ["# Run it on each machine: bash SCRIPT RANK ADDRESS_OF_MACHINE_0"]
            flags += [
                f'--num_machines {self.nodes} --machine_rank "${{1:?rank of this machine, 0 to {self.nodes - 1}}}"',
                f'--main_process_ip "${{2:?address of machine 0}}" --main_process_port {PORT}',
            ]
        return [*usage, CONTINUED.join(["exec accelerate launch", *flags, "-m robustclip"]) + self._flags()]

    def _torchrun(self) -> list[str]:
        each = f"--nproc-per-node {self.count // self.nodes} --max-restarts {RESTARTS}"
        if self.nodes == 1:
            usage, flags = [], [f"--standalone {each}"]
        else:
            usage = ["# Run it on each machine: bash SCRIPT ADDRESS_OF_ONE_OF_THEM"]
            flags = [
                f"--nnodes {self.nodes} {each}",
                f'--rdzv-backend c10d --rdzv-endpoint "${{1:?address of one of the machines}}:{PORT}"',
            ]
        exports = [*self._fsdp(), OWN_STORE]
        # Without --, torchrun would refuse a recipe's --start as an abbreviation of one of its own.
        return [*usage, *exports, CONTINUED.join(["exec torchrun", *flags, "-m -- robustclip"]) + self._flags()]

    def _slurm(self) -> list[str]:
        each = self.count // self.nodes
        hours = min(LONGEST, ceil(1.5 * self.hours + 0.5))  # half as much again as estimated, and a start
        return [
            f"#SBATCH --job-name={self.run[1].rpartition('/')[2]} --time={hours}:00:00",
            f"#SBATCH --nodes={self.nodes} --ntasks-per-node={each} --gpus-per-node={each}"
            f" --cpus-per-task={self.workers + 1}",
            "#SBATCH --signal=TERM@180 --requeue --open-mode=append",
            *self._fsdp(),
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
            "export MASTER_ADDR MASTER_PORT",
            "",
            "# One task a GPU. When one has ended, the others get five minutes to write what they have.",
            "srun --kill-on-bad-exit=0 --wait=300 bash -c \\",
            "    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec \"$@\"' bash \\",
            "    robustclip" + self._flags(),
            "code=$?",
            "case $code in",
            "    0 | 1 | 2) exit $code ;;  # finished, failed, or called wrongly: starting again would not help",
            '    *) scontrol requeue "$SLURM_JOB_ID" ;;  # stopped by SIGTERM before the time limit, or killed',
            "esac",
        ]

    def _fsdp(self) -> list[str]:
        return ["export ACCELERATE_USE_FSDP=true FSDP_VERSION=2"] if self.fsdp else []

    def _flags(self) -> str:
        """The run's command, a line per flag."""
        verb, recipe, *flags = self.run
        starts = [place for place, word in enumerate(flags) if word.startswith("--")] + [len(flags)]
        lines = [shlex.join(flags[start:end]) for start, end in pairwise(starts)]
        return CONTINUED.join([" " + shlex.join([verb, recipe]), *lines])


def shares(parts: Mapping[str, float]) -> str:
    """Parts of a total in percent, the largest first."""
    names = {
        "recomputed": "computed again for parts",
        "beside": "clean, original and sample embeddings",
        "samples": "negative samples",
        "watching": "log and probe",
    }
    total = sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{names.get(name, name)} {value / total:.1%}" for name, value in largest if value > 0)
