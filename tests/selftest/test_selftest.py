"""Every check is within its bound on this CPU, its bound shows a coarser dtype, and whatever goes wrong is a row."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustclip import printing
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.plain import check_plain
from robustclip.selftest.checks import CHECKS, Check, smooth
from robustclip.selftest.selftest import Row, Selftest, run_checks, selftest
from robustclip.selftest.settings import TRUTH, Setting, settings_of

CPU = torch.device("cpu")
OF_CPU = {one.name: one for one in settings_of(CPU)}
FLOAT32, FLOAT16, BFLOAT16 = OF_CPU["float32"], OF_CPU["float16"], OF_CPU["bfloat16"]
SEARCHES = ("attack ", "AdamW")  # bounds of searches are wide, and AdamW runs in float32 whatever the dtype


@pytest.mark.parametrize("check", [check for check in CHECKS if check.runs_in(FLOAT32)], ids=lambda check: check.name)
def test_a_check_is_within_its_bound_and_the_bound_shows_a_coarser_dtype(check: Check) -> None:
    full, half, layout = run_checks([FLOAT32, BFLOAT16, OF_CPU["channels_last"]], [check])
    for row in (full, half, layout):
        assert row.result == "within", row
        assert row.difference is not None
        assert row.seconds is not None
        assert row.seconds > 0
    if not check.name.startswith(SEARCHES) and full.bound > 0:
        assert half.difference > full.bound


@pytest.mark.parametrize("name", ["PGD step, ViT", "update, CNN", "canvas pixels", "smoothing", "SDS"])
def test_products_of_eleven_bits_in_place_of_float32_exceed_its_bound(name: str) -> None:
    """float16 has the significand of TF32, which this CPU has not."""
    (check,) = (one for one in CHECKS if one.name == name)
    (row,) = run_checks([FLOAT16], [check])
    assert row.result == "within"
    assert row.difference > check.bound(FLOAT32.roundoff)
    assert row.bound == check.bound(Setting("TF32", CPU, tf32=True).roundoff)


def off_by(relative: float) -> Check:
    """A check whose numbers are the truth's times 1 + `relative`."""
    return Check("numbers", lambda one: torch.tensor([3.0, 4.0]) * (1 if one is TRUTH else 1 + relative), smooth(10, 0))


@pytest.mark.parametrize(("relative", "full", "half"), [(1e-3, "exceeded", "within"), (0.5, "exceeded", "exceeded")])
def test_a_difference_is_relative_to_the_norm_of_the_truth(relative: float, full: str, half: str) -> None:
    rows = run_checks([FLOAT32, BFLOAT16], [off_by(relative)])
    assert [row.result for row in rows] == [full, half]
    assert [row.difference for row in rows] == pytest.approx([relative] * 2, rel=1e-3)
    assert [row.bound for row in rows] == [10 * 2.0**-24, 10 * 2.0**-8]


def test_an_overflow_of_the_attack_in_float16_is_named() -> None:
    (check,) = (one for one in CHECKS if one.name == "PGD step, ViT")
    (row,) = run_checks([Setting("float16", CPU, torch.float16, scale=2.0**40)], [check])
    assert row.result == "overflow"
    assert row.reason.startswith("image 1 of 4 was not attacked")
    assert row.difference is None


def outside_of_truth(run: object) -> Check:
    return Check("broken", lambda one: torch.ones(2) if one is TRUTH else run(one), smooth())


def too_much(_: Setting) -> Tensor:
    return torch.empty(2**50)


def raises(_: Setting) -> Tensor:
    raise ValueError("of some\n kind")


@pytest.mark.parametrize(
    ("run", "setting", "result", "reason"),
    [
        (too_much, FLOAT32, "out of memory", "memory"),
        (raises, FLOAT32, "failed", "ValueError: of some kind"),
        (lambda _: torch.tensor([1.0, torch.inf]), FLOAT16, "overflow", "1 of 2 numbers are not finite"),
        (lambda _: torch.tensor([1.0, torch.nan]), FLOAT32, "not finite", "1 of 2 numbers are not finite"),
    ],
    ids=["memory", "exception", "infinity in float16", "NaN"],
)
def test_what_goes_wrong_is_the_result_of_a_row(run: object, setting: Setting, result: str, reason: str) -> None:
    rows = run_checks([setting], [outside_of_truth(run), off_by(0)])
    assert [row.result for row in rows] == [result, "within"]
    assert reason in rows[0].reason
    assert "\n" not in rows[0].reason


def test_without_a_truth_nothing_is_compared() -> None:
    rows = run_checks([FLOAT32, BFLOAT16], [Check("broken", raises, smooth())])
    assert [row.result for row in rows] == ["failed"] * 2
    assert [row.seconds for row in rows] == [None] * 2


def test_a_check_whose_library_is_missing_is_skipped_and_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_checks([FLOAT32], [Check("numbers", raises, smooth(), needs=("no_such_module", "evaluation"))])
    assert [row.result for row in rows] == ["skipped"]
    assert "robustclip[evaluation]" in rows[0].reason
    printing.selftested(found(rows))
    assert "0 of 0 checks within" in capsys.readouterr().out


def found(rows: list[Row]) -> Selftest:
    facts = {"is": "a processor", "free_gb": 1.0, "dtypes": ["float32"]}
    return Selftest({"torch": "2"}, {"cpu": facts}, ["no accelerator"], rows)


def test_faults_are_told_after_the_table_and_fail_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_checks([FLOAT32, FLOAT16], [off_by(1.0)])
    with pytest.raises(RunError, check=lambda error: error.code == "selftest_failed" and error.values["failed"] == 2):
        printing.selftested(found(rows))
    said = capsys.readouterr().out
    assert "1.0e+00 / 6.0e-07" in said
    assert "cpu, float16, numbers: exceeded" in said
    check_plain(found(rows).to_json())


def test_settings_switch_tf32_and_put_it_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    seen = []

    def look(_: Setting) -> Tensor:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        raise ValueError

    rows = run_checks([Setting("on", CPU, tf32=True), Setting("off", CPU)], [outside_of_truth(look)])
    assert [row.result for row in rows] == ["failed"] * 2
    assert seen == [("high", True), ("highest", False)]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_an_accelerator_is_checked_with_tf32_and_compiled_too() -> None:
    names = ["float32", "TF32", "bfloat16", "float16", "channels_last", "compiled"]
    assert [one.name for one in settings_of(torch.device("cuda", 0))] == names
    assert [one.name for one in settings_of(torch.device("mps"))] == [names[0], *names[2:]]
    compiled = Setting("compiled", CPU, compiled=True)
    assert not run_checks([compiled], [off_by(0)]), "only some checks are compiled"


def test_what_torch_says_of_the_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("robustclip.selftest.selftest.no_cuda", lambda: "the driver is too old")
    monkeypatch.setattr("robustclip.selftest.selftest.run_checks", lambda _: [])
    assert selftest().notes == ["no accelerator: the driver is too old"]


def test_an_unknown_device_is_a_fault_of_the_call() -> None:
    with pytest.raises(UsageError, check=coded("unknown_device", device="tpu")):
        selftest(device="tpu")


@pytest.mark.slow
def test_the_command_checks_the_cpu_and_writes_what_a_bug_report_needs(tmp_path: Path) -> None:
    file = tmp_path / "selftest.json"
    command = [sys.executable, "-m", "robustclip", "selftest", "--device", "cpu", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(file.read_text())
    assert written["faults"] == 0
    of_all = {"robustclip", "torch", "Python", "timm", "open_clip_torch", "diffusers", "torchattacks", "CUDA", "cuDNN"}
    assert set(written["versions"]) == of_all | {"driver"}
    assert written["versions"]["timm"] == metadata.version("timm")
    assert written["resident"] > 1e8
    assert "float32" in written["found"]["cpu"]["dtypes"]
    assert len(written["rows"]) == 28 * len(OF_CPU) == (len(CHECKS) - 1) * len(OF_CPU)
    assert {row["result"] for row in written["rows"]} == {"within"}
    assert "112 of 112 checks within their bounds" in done.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile warns of what it traces
@pytest.mark.parametrize("name", ["PGD step, ViT", "PGD step, ViT, with its loss"])
def test_a_compiled_tower_is_attacked_alike(name: str) -> None:
    (check,) = (one for one in CHECKS if one.name == name)
    (row,) = run_checks([Setting("compiled", CPU, compiled=True)], [check])
    assert row.result == "within", row
