"""`make test-gpu`: the rows of `robustclip selftest` on every accelerator, one test each."""

from __future__ import annotations

import pytest
import torch

from robustclip.runs.devices import no_cuda
from robustclip.selftest.checks import CHECKS, Check
from robustclip.selftest.selftest import run_checks
from robustclip.selftest.settings import Setting, accelerators, settings_of

FOUND = accelerators()
ROWS = [
    pytest.param(check, setting, id=f"{place} {setting.name} {check.name}")
    for place in FOUND or [torch.device("cuda")]
    for check in CHECKS
    for setting in settings_of(place)
    if check.runs_in(setting)
]


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch.compile warns of what it traces, and drivers of what they are
@pytest.mark.skipif(not FOUND, reason=f"no accelerator: {no_cuda()}")
@pytest.mark.parametrize(("check", "setting"), ROWS)
def test_an_accelerator_is_within_the_bounds(check: Check, setting: Setting) -> None:
    (row,) = run_checks([setting], [check])
    if row.result == "skipped":
        pytest.skip(row.reason)
    assert row.result == "within", f"{row.result}: {row.reason}"
