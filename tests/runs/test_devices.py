from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

from robustclip.errors import UsageError, coded
from robustclip.runs.devices import (
    autocast,
    check_memory,
    chosen_dtype,
    forward_backward,
    measure_dtype,
    no_cuda,
    pick_device,
    pick_dtype,
)


def test_auto_is_a_device_that_works() -> None:
    assert torch.zeros(1, device=pick_device("auto")).item() == 0
    assert pick_device("cpu") == torch.device("cpu")


def test_unknown_device_lists_the_known() -> None:
    with pytest.raises(UsageError, check=coded("unknown_device", device="gpu")):
        pick_device("gpu")


@pytest.mark.parametrize("count", [0, 2])
def test_absent_cuda_device_says_what_is_there(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UsageError, check=coded("no_such_device", device="cuda:2", count=count)):
        pick_device("cuda:2")


OLD = "The NVIDIA driver on your system is too old (found version 11040)."


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_a_driver_older_than_torch_wants_is_told(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def init() -> None:
        raise kind(OLD + "\n Please update it")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "init", init)
    assert no_cuda().endswith(f": {OLD} Please update it")
    with pytest.raises(UsageError, match="too old") as caught:
        pick_device("cuda")
    assert caught.value.code == "no_such_device"
    assert caught.value.values == {"device": "cuda", "count": 0}


def test_named_dtypes_are_taken_at_their_word() -> None:
    assert pick_dtype("bfloat16") == torch.bfloat16
    assert pick_dtype(torch.float16) == torch.float16
    with pytest.raises(UsageError, check=coded("unknown_dtype", dtype="fp32")):
        pick_dtype("fp32")


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_on_cuda_that_can(
    monkeypatch: pytest.MonkeyPatch, supported: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    assert pick_dtype("auto", "cuda") == expected


@pytest.mark.parametrize("faster", [torch.float32, torch.bfloat16])
def test_measure_takes_the_faster_and_auto_does_not_time(faster: torch.dtype) -> None:
    def step() -> None:
        cast = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        time.sleep(0.001 if cast == faster else 0.02)

    assert measure_dtype(step) == faster
    assert pick_dtype("measure", "cpu", step) == faster

    def never() -> None:
        raise AssertionError("auto is timed")

    assert pick_dtype("auto", "cpu", never) == torch.float32
    with pytest.raises(UsageError, check=coded("nothing_to_time")):
        pick_dtype("measure", "cpu")


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_on_a_cpu_is_a_rule_by_hardware_and_tower(monkeypatch: pytest.MonkeyPatch, hardware: bool) -> None:
    monkeypatch.setattr("robustclip.runs.devices.cpu_has_bfloat16", lambda: hardware)
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    vit = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.TransformerEncoderLayer(8, 2, 32))
    expected = torch.bfloat16 if hardware else torch.float32
    assert {pick_dtype("auto", "cpu", tower=convolutions) for _ in range(8)} == {expected}
    assert pick_dtype("auto", "cpu", tower=vit) == torch.float32


def test_what_a_run_began_in_holds_unless_another_dtype_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tower, images = nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 8, 8)
    monkeypatch.setattr("robustclip.runs.devices.measure_dtype", lambda *_: torch.float32)
    monkeypatch.setattr("robustclip.runs.devices.cpu_has_bfloat16", lambda: False)
    for name in ("auto", "measure"):
        assert chosen_dtype(name, tower, images) == torch.float32
        assert chosen_dtype(name, tower, images, recorded="bfloat16") == torch.bfloat16
    assert chosen_dtype("float16", tower, images, recorded="bfloat16") == torch.float16


def test_measuring_leaves_no_trace() -> None:
    tower = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).train()
    images = torch.rand(2, 3, 8, 8)
    measure_dtype(forward_backward(tower, images), repeats=1)
    assert all(parameter.grad is None for parameter in tower.parameters())
    assert not images.requires_grad


def test_measuring_leaves_normalisation_statistics_alone() -> None:
    tower = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = copy.deepcopy(tower.state_dict())
    forward_backward(tower, torch.rand(2, 3, 8, 8))()
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert tower.training


def test_autocast_computes_in_the_dtype() -> None:
    layer = nn.Linear(2, 2)
    with autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(1, 2)).dtype == torch.bfloat16
    with autocast("cpu", torch.float32):
        assert layer(torch.zeros(1, 2)).dtype == torch.float32


def test_what_no_memory_holds_is_refused() -> None:
    check_memory(1.0, "a byte")
    with pytest.raises(UsageError, check=coded("too_little_memory", needed=1e18)):
        check_memory(1e18, "things")
