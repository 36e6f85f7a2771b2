"""Referees that paint and judge in milliseconds, under names, as those of a machine are."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustclip.referees.folder import save_referee
from robustclip.referees.toy import toy_referee


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of five toy referees, all different, which are registered for this test."""
    names = [f"toy-{letter}" for letter in "abcde"]
    for seed, name in enumerate(names):
        save_referee(toy_referee(seed=seed, name=name), tmp_path / "home" / "referees" / name)
    monkeypatch.setenv("ROBUSTCLIP_HOME", str(tmp_path / "home"))
    return names
