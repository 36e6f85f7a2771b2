"""A batch in parts, or over processes, is the same batch: same loss, same adversarial images, same gradients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from one_batch import TOWERS, one_update

RTOL = 1e-8
SCRIPT = Path(__file__).with_name("one_batch.py")


def in_processes(count: int, *arguments: str, folder: Path) -> list[dict[str, Tensor]]:
    """What each of `count` gloo processes wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments, str(folder)],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(count)]


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(error(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("loss", ["clip", "siglip", "text-bank"])
@pytest.mark.parametrize("tower", ["toy", *TOWERS])
def test_parts_are_the_whole(tower: str, loss: str) -> None:
    whole = one_update(tower, loss, parts=1)
    assert worst(one_update(tower, loss, parts=4), whole) < RTOL
    assert worst(one_update(tower, loss, parts=3), whole) < RTOL  # which does not divide 16


@pytest.mark.parametrize("loss", ["fare", "trades", "anchored"])
def test_parts_are_the_whole_where_other_embeddings_are_read(loss: str) -> None:
    assert worst(one_update("vit", loss, parts=3), one_update("vit", loss, parts=1)) < RTOL


def test_trades_attack_climbs_the_divergence() -> None:
    """Its images are those of the divergence's own attack, and not those that the base loss would find."""
    found, base = one_update("vit", "trades", parts=1)["images"], one_update("vit", "clip", parts=1)["images"]
    assert error(found, base) > 1e-3
    torch.testing.assert_close(found, one_update("vit", "divergence", parts=1)["images"])


def test_local_negatives_are_an_approximation_and_only_in_the_attack() -> None:
    whole = one_update("vit", "clip", parts=1)
    local = one_update("vit", "clip", parts=4, negatives="local")
    assert error(local["images"], whole["images"]) > 1e-4
    assert error(local["loss"], whole["loss"]) > 1e-6
    bank = one_update("vit", "text-bank", parts=4, negatives="local")
    assert worst(bank, one_update("vit", "text-bank", parts=1)) < RTOL  # where images don't meet, nothing is lost


@pytest.mark.parametrize(
    ("tower", "loss", "parts"),
    [("vit", "clip", 1), ("resnet", "siglip", 2), ("vit", "anchored", 2), ("vit", "trades", 1)],
)
def test_processes_are_the_whole(tower: str, loss: str, parts: int, tmp_path: Path) -> None:
    whole = one_update(tower, loss, parts=1)
    shares = in_processes(2, tower, loss, str(parts), folder=tmp_path)
    images = torch.cat([share.pop("images") for share in shares])
    assert error(images, whole.pop("images")) < RTOL
    for share in shares:
        assert worst(share, whole) < RTOL


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["clip", "siglip", "text-bank"])
@pytest.mark.parametrize("tower", ["toy", *TOWERS])
@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (2, 4), (4, 2)])
def test_processes_and_parts_are_the_whole(tower: str, loss: str, processes: int, parts: int, tmp_path: Path) -> None:
    whole = one_update(tower, loss, parts=1)
    shares = in_processes(processes, tower, loss, str(parts), folder=tmp_path)
    images = torch.cat([share.pop("images") for share in shares])
    errors = [error(images, whole.pop("images")), *(worst(share, whole) for share in shares)]
    print(f"{tower} {loss}: {processes} processes x {parts} parts, largest relative error {max(errors):.1e}")
    assert max(errors) < RTOL
