"""Both readings of CLIPAG's data mix, and what a call without data is told."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest

from robustclip import recipes
from robustclip.data.sources import missing_sources, mixed, weighted
from robustclip.errors import UsageError, coded
from robustclip.runs.processes import Place

SOURCES = ["emoji", "emoji/unseen-train"]


def test_concatenated_takes_all_samples_once_an_epoch_and_a_share_of_the_last_source(tmp_path, write_shard) -> None:
    write_shard(tmp_path / "sbu" / "0.tar", 60)
    for number in range(10):
        write_shard(tmp_path / "laion" / f"{number}.tar", 40, first=100 * number)
    epochs: list[Counter[str]] = [Counter(), Counter()]
    for rank in range(2):
        sources = [str(tmp_path / "sbu"), str(tmp_path / "laion")]
        data = mixed(sources, "concatenated", 0.25, 4, (8, 8), seed=0, workers=0, place=Place(rank, 2))
        for sample in takewhile(lambda sample: sample.epoch < 2, data.mixture.stream(0, Place(rank, 2))):
            epochs[sample.epoch][sample.id] += 1
    assert set(epochs[0].values()) == set(epochs[1].values()) == {1}
    parts = [{name for name in epoch if name.startswith("laion/")} for epoch in epochs]
    assert [len(epoch) - len(part) for epoch, part in zip(epochs, parts, strict=True)] == [60, 60]
    assert all(len(part) == pytest.approx(100, abs=40) for part in parts)  # four standard deviations
    assert parts[0] != parts[1]


def test_a_source_of_several_parts_has_one_share() -> None:
    sources = ["emoji::emoji", "emoji/unseen-train::emoji"]
    described = mixed(sources, "concatenated", 0.25, 4, (64, 64), seed=0, workers=0).describe()
    assert [source["share"] for source in described["sources"]] == [1, 1, 0.25, 0.25]


def test_equal_draws_from_each_source_alike() -> None:
    assert mixed(SOURCES, "equal", 0.5, 4, (64, 64), seed=0, workers=0).describe()["weights"] == "equal"
    described = mixed(SOURCES, "equal", 0.5, 4, (64, 64), seed=0, workers=0).describe()
    assert [source["share"] for source in described["sources"]] == [1, 1]


def test_missing_data_are_told_one_by_one_unless_it_is_a_trial() -> None:
    named = {"sbu": "sbu/0.tar", "cc3m": None, "laion": None}
    told = list(missing_sources(named, quick=False))
    assert [(one.code, one.values["argument"]) for one in told] == [("missing", "cc3m"), ("missing", "laion")]
    assert "cc3m/{00000..00331}.tar" in str(told[0])
    assert not list(missing_sources(named, quick=True))


def test_data_that_say_their_weights_are_drawn_by_them() -> None:
    described = mixed(["emoji", "emoji/unseen-train=2.0"], "equal", 1.0, 4, (64, 64), seed=0, workers=0).describe()
    assert described["weights"] == [1, 2]
    assert mixed(["emoji::emoji=3"], "concatenated", 1.0, 4, (64, 64), seed=0, workers=0).describe()["weights"] == [
        1,
        3,
    ]


@pytest.mark.parametrize("part", ["a=0", "a=-1", "a=nan", "a=1e999", "a=", "a=two", "=2", "a=1/0", "a=0/2", "a=2,5"])
def test_a_weight_is_a_positive_number(part: str) -> None:
    with pytest.raises(UsageError, check=coded("not_positive")):
        weighted([part])


def test_an_equals_sign_of_a_path_or_a_command_is_no_weight(tmp_path: Path) -> None:
    (tmp_path / "x=2").mkdir()
    parts = [str(tmp_path / "x=2"), "lr=1/{00..09}.tar", "pipe:curl -H a=2", "k=v.tar"]
    assert weighted(parts) == (parts, None)
    signed = [
        "https://host/0.tar?part=1&token=12345",
        "https://host/1.tar?sign=QUI=",
        "s3://b/{00..09}.tar?versionId=x",
    ]
    assert weighted(signed) == (signed, None)
    assert weighted([f"{signed[0]}=2", f"{signed[1]}=1/2", "s3://b/0.tar=3"])[1] == [2, 0.5, 3]
    assert weighted(["a=1/2", "b=3"]) == (["a", "b"], [0.5, 3])
    assert weighted(["lr=1/{00..09}.tar=0.5", "b"]) == (["lr=1/{00..09}.tar", "b"], [0.5, 1])


def test_data_stands_for_the_four_sources_and_not_beside_them() -> None:
    assert not list(missing_sources({"sbu": None}, quick=False, data=["emoji"]))
    told = list(missing_sources({"sbu": "x", "laion": None}, quick=False, data=["emoji=0"]))
    assert "--sbu" in str(told[0])
    assert "--laion" not in str(told[0])
    assert "'0'" in str(told[1])


@pytest.mark.parametrize("name", ["clipag-vit-b32", "clipag-vit-b16", "clipag-convnext", "clipag-linf"])
def test_every_recipe_of_clipag_takes_data_by_one_flag(name: str) -> None:
    bound, faults = recipes.find(name, "robustify").bind({"data": ["emoji", "emoji/unseen-train=2.0"]})
    assert faults == []
    assert bound["data"] == ["emoji", "emoji/unseen-train=2.0"]
