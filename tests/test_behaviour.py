"""The behaviour record: the calls of tests/golden/behaviour.py still give what behaviour.json holds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("golden") / "behaviour.py"


@pytest.fixture(scope="module")
def behaviour() -> ModuleType:
    spec = importlib.util.spec_from_file_location("behaviour", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded(behaviour: ModuleType) -> dict[str, Any]:
    return dict(json.loads(behaviour.RECORD.read_text()))


def test_every_call_is_recorded(behaviour: ModuleType, recorded: dict[str, Any]) -> None:
    assert list(recorded) == list(behaviour.CALLS)


def test_the_quickest_calls_give_what_is_recorded(behaviour: ModuleType, recorded: dict[str, Any]) -> None:
    for name, facts in behaviour.observe(behaviour.QUICKEST):
        assert not list(behaviour.differences(name, facts, recorded))


@pytest.mark.slow
def test_all_calls_give_what_is_recorded(behaviour: ModuleType, recorded: dict[str, Any]) -> None:
    for name, facts in behaviour.observe(list(behaviour.CALLS)):
        assert not list(behaviour.differences(name, facts, recorded))


def test_differences_are_told(behaviour: ModuleType) -> None:
    known = {"call": {"a.png": {"mean": 0.5, "word": "l2"}, "b.png": {"mean": 1}}}
    assert not list(behaviour.differences("call", {**known["call"], "new.png": {}}, known))
    told = list(behaviour.differences("call", {"a.png": {"mean": 0.51, "word": "linf"}}, known))
    assert [line.split(": ", 1)[1] for line in told] == [
        "a.png: mean was 0.5, is 0.51",
        "a.png: word was 'l2', is 'linf'",
        "b.png is gone",
    ]
