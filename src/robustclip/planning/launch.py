"""Launch scripts of a planned run: accelerate, torchrun or SLURM, with the run's numbers filled in.

Each starts the run in its folder, and continues it from its newest checkpoint when started again (`--resume latest`).
Importing this module does not import torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Final, Literal

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
        flags = [f"--multi_gpu --num_processes {self.count} --mixed_precision no --dynamo_backend no"]
        if self.fsdp:
            flags[0] = flags[0].replace("--multi_gpu", "--use_fsdp --fsdp_version 2")
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
        return [*usage, *exports, CONTINUED.join(["exec torchrun", *flags, "-m robustclip"]) + self._flags()]

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
