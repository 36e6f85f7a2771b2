"""Bytes sent in the plan beside those that two gloo processes send while the trainer makes steps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from robustclip.planning.costs import sent
from robustclip.planning.settings import GPUS, Settings, Terms

SCRIPT = Path(__file__).with_name("sending.py")
CHANGES = [
    {"attack_steps": 2},
    {"attack_steps": 3, "clean_weight": 0.5},
    {"attack_steps": 2, "accumulate": 2},
    {"attack_steps": 2, "attack_negatives": "local"},
    {"attack_steps": 2, "dtype": "bfloat16"},
    {"attack_steps": 2, "objective": "text-bank"},
    {"attack_steps": 2, "objective": "energetic text-bank"},
    {"attack_steps": 2, "objective": "energetic clip"},
]


@pytest.mark.slow
def test_the_formula_is_what_two_processes_send(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), *map(repr, CHANGES)],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        lines, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        numbers = [[float(word) for word in line.split()] for line in lines.splitlines()]
        assert len(numbers) == len(CHANGES)
        for change, (rows, means, embeddings, gradients) in zip(CHANGES, numbers, strict=True):
            assert (rows, means) == (embeddings, gradients), change
    assert numbers[0][0] > numbers[3][0] > 0
    assert numbers[5][0] == 0


def test_rings_send_what_can_be_computed_by_hand() -> None:
    settings = Settings("vit", 1, batch_size=64, attack_steps=2)
    texts, embeddings = 16 * (4 * 10 + 8), 16 * 10 * 2  # of each of four processes: with ids of 8 bytes; in bfloat16
    found = sent(settings, 10, 4, 1000, 800, "bfloat16")
    assert found.embeddings == 3 * (2 * texts + (2 + 1) * embeddings)
    assert found.gradients == 2 * 3 / 4 * 4 * 800
    assert found.weights == 0
    split = sent(settings, 10, 4, 1000, 800, "bfloat16", fsdp=True)
    assert split.gradients == found.gradients / 2
    assert split.weights == 3 / 4 * 4 * 1000 * 2 * 3  # before and behind each of three passes
    in_parts = sent(
        Settings("vit", 1, batch_size=64, attack_steps=2, accumulate=2), 10, 4, 1000, 800, "bfloat16", fsdp=True
    )
    assert in_parts.weights == 2 * 3 / 4 * 4 * 1000 * 3 * 3
    assert sent(settings, 10, 1, 1000, 800, "bfloat16").total == 0
    assert found.seconds(None) == 0
    assert found.seconds(1e3) == pytest.approx(found.total / 1e3)


def test_a_gpu_sends_over_its_machines_links_or_its_network_or_as_told() -> None:
    assert Terms(gpu="h100", count=8).sending() == 450e9 == 1e9 * GPUS["h100"].link
    assert Terms(gpu="h100", count=16).sending() == 50e9
    assert Terms(gpu="l4", count=16).sending() == 12.5e9
    assert Terms(gpu="h100", count=16, bandwidth=20.0).sending() == 20e9
    assert Terms(gpu="here", count=2).sending() is None
    assert Terms(gpu="here", count=2, bandwidth=1.0).sending() == 1e9
