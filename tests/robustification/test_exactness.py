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


def in_processes(count: int, cases: list[str], folder: Path) -> dict[str, list[dict[str, Tensor]]]:
    """What each of `count` gloo processes wrote of each case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *cases],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return {case: [load_file(folder / f"{case}-rank{rank}.safetensors") for rank in range(count)] for case in cases}


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(error(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "loss", ["clip", *(pytest.param(one, marks=pytest.mark.slow) for one in ("siglip", "text-bank"))]
)
@pytest.mark.parametrize("tower", ["toy", *TOWERS])
def test_parts_are_the_whole(tower: str, loss: str) -> None:
    whole = one_update(tower, loss, parts=1)
    assert worst(one_update(tower, loss, parts=4), whole) < RTOL
    assert worst(one_update(tower, loss, parts=3), whole) < RTOL  # which does not divide 16


@pytest.mark.parametrize("loss", ["fare", "agft", "trades", "anchored", "energy"])
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


SPREAD = ["vit_clip_1", "resnet_siglip_2", "vit_anchored_2", "vit_trades_1", "vit_energy_2"]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """The cases of `SPREAD` by the same two processes."""
    return in_processes(2, SPREAD, tmp_path_factory.mktemp("two"))


@pytest.mark.slow  # tests/runs/test_launch.py trains one case by two processes in the fast tests
@pytest.mark.parametrize("case", SPREAD)
def test_processes_are_the_whole(case: str, by_two: dict[str, list[dict[str, Tensor]]]) -> None:
    tower, loss, _ = case.split("_")
    assert largest_error(by_two[case], one_update(tower, loss, parts=1)) < RTOL


def largest_error(shares: list[dict[str, Tensor]], whole: dict[str, Tensor]) -> float:
    """Of the images of all processes together, and of each one's loss and gradients."""
    images = torch.cat([share.pop("images") for share in shares])
    return max(error(images, whole.pop("images")), *(worst(share, whole) for share in shares))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (2, 4), (4, 2)])
def test_processes_and_parts_are_the_whole(processes: int, parts: int, tmp_path: Path) -> None:
    cases = [f"{tower}_{loss}_{parts}" for tower in ("toy", *TOWERS) for loss in ("clip", "siglip", "text-bank")]
    for case, shares in in_processes(processes, cases, tmp_path).items():
        tower, loss, _ = case.split("_")
        found = largest_error(shares, one_update(tower, loss, parts=1))
        print(f"{tower} {loss}: {processes} processes x {parts} parts, largest relative error {found:.1e}")
        assert found < RTOL, case
