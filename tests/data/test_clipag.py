"""Both readings of CLIPAG's data mix, and what a call without data is told."""

from __future__ import annotations

import pytest

from robustclip.data.clipag import missing_sources, mixed

SOURCES = ["emoji", "emoji/unseen-train"]


def test_concatenated_draws_by_size_and_reduces_the_last_source() -> None:
    described = mixed(SOURCES, "concatenated", 0.5, 4, (64, 64), seed=0, workers=0).describe()
    assert described["weights"] == pytest.approx([7375 + 565, 0.5 * (3064 + 198)])  # the shards hold held-out ones too


def test_equal_draws_from_each_source_alike() -> None:
    assert mixed(SOURCES, "equal", 0.5, 4, (64, 64), seed=0, workers=0).describe()["weights"] == "equal"


def test_missing_data_are_told_one_by_one_unless_it_is_a_trial() -> None:
    named = {"sbu": "sbu/0.tar", "cc3m": None, "laion": None}
    told = list(missing_sources(named, quick=False))
    assert [line.partition(" ")[0] for line in told] == ["--cc3m", "--laion"]
    assert "cc3m/{00000..00331}.tar" in told[0]
    assert not list(missing_sources(named, quick=True))
