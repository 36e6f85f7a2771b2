from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from robustclip.data.emoji import load_rgba
from robustclip.data.sources import open_data, open_source, parse_weights, split_data
from robustclip.errors import UsageError, coded

STYLES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione", "fxemoji")


@pytest.fixture
def here(tmp_path, encode, write_shard, monkeypatch) -> Path:
    """A folder with one source of each kind; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        write_shard(tmp_path / "cc3m" / f"{number:05d}.tar", 10, first=100 * number)
    (tmp_path / "pets" / "dog").mkdir(parents=True)
    (tmp_path / "pets" / "dog" / "0.png").write_bytes(encode(form="PNG"))
    (tmp_path / "pairs.csv").write_text("path,caption\npets/dog/0.png,a dog\n")
    return tmp_path


def test_each_kind_is_told_by_its_look(here) -> None:
    kinds = {
        "cc3m/{00000..00001}.tar": "shards",
        "cc3m/*.tar": "shards",
        "cc3m": "shards",
        "pairs.csv": "table",
        "pets": "image folder",
        "emoji": "shards",
        "emoji/unseen-train": "shards",
    }
    assert {part: open_source(part).describe()["kind"] for part in kinds} == kinds


def test_several_sources_make_one_stream(here) -> None:
    data = open_data("cc3m/{00000..00001}.tar::pairs.csv::pets", batch_size=22, size=8)
    (batch,) = islice(data.batches(), 1)
    assert Counter(name.split("/")[0] for name in batch.ids) == {"cc3m": 20, "pairs": 1, "pets": 1}
    assert {"a dog", "a photo of a dog."} < set(batch.captions)


def test_weights_reach_the_mixture(here) -> None:
    data = open_data(["cc3m", "pairs.csv"], batch_size=400, size=8, weights="1,3")
    (batch,) = islice(data.batches(), 1)
    assert sum(name.startswith("pairs/") for name in batch.ids) == pytest.approx(300, abs=35)
    assert json.loads(json.dumps(data.describe()))["weights"] == [1, 3]


def test_all_faults_of_a_call_come_at_once(here) -> None:
    with pytest.raises(UsageError) as caught:
        open_data("cc3m/{00000..00009}.tar::none.csv::what", batch_size=4, size=0, weights="1,2")
    message = str(caught.value)
    assert "5 faults in the call of open_data()" in message
    assert "8 of 10 shards missing: cc3m/00002.tar, cc3m/00003.tar, cc3m/00004.tar, ..." in message
    assert "cc3m holds 2 shards, 00000.tar to 00001.tar." in message
    assert "no table at none.csv" in message
    assert "no data at 'what': give shards (" in message
    assert "2 weights for 3 sources" in message
    assert "size 0: give pixels" in message


@pytest.mark.parametrize("data", ["", " :: ", []])
def test_no_data_says_what_would_do(data) -> None:
    with pytest.raises(UsageError, check=coded("no_data")):
        split_data(data)


def test_a_command_is_never_run(here) -> None:
    with pytest.raises(UsageError, match="needs --allow-commands"):
        open_data("pipe:touch made", batch_size=1, size=8)
    assert not (here / "made").exists()


def test_a_command_that_is_allowed_is_read(here) -> None:
    data = open_data("pipe:cat cc3m/0000{0..1}.tar", batch_size=20, size=8, allow_commands=True)
    assert len(set(next(data.batches()).ids)) == 20
    with pytest.raises(UsageError, check=coded("unknown_size", source="pipe")):
        open_data("pipe:cat cc3m/00000.tar::pairs.csv", batch_size=20, size=8, allow_commands=True).batches()


def test_shares_must_fit_the_sources(here) -> None:
    with pytest.raises(UsageError, check=coded("unequal_counts", shares=3, sources=2)):
        open_data("cc3m::pairs.csv", batch_size=20, size=8, shares=[1, 1, 0.5])


def test_weights_are_parsed() -> None:
    assert [parse_weights(text) for text in ("size", "equal", "1, 1,2.5")] == ["size", "equal", [1, 1, 2.5]]
    assert parse_weights([1, 2]) == [1, 2]
    with pytest.raises(UsageError, check=coded("unknown_choice", argument="weights", given="1,x")):
        parse_weights("1,x")


def test_the_embedded_shards_read_like_any_others() -> None:
    data = open_data("emoji", batch_size=256, size=32, background="random")
    (batch,) = islice(data.batches(), 1)
    assert batch.images.shape == (256, 3, 32, 32)
    assert not data.faults
    assert {name.split("/")[1] for name in batch.ids} == {f"emoji-{style}" for style in STYLES}
    assert all(caption.strip() == caption != "" for caption in batch.captions)


def test_the_embedded_shards_come_without_the_held_out_concepts() -> None:
    samples = list(open_source("emoji").epoch(0, 0))
    assert not any(sample.fault for sample in samples)
    assert Counter(sample.key.split("/")[1] for sample in samples) == Counter(load_rgba("guide-styles")[1].ids)
    grinning = [sample for sample in samples if sample.concept == "1F600"]
    assert len(grinning) == len(STYLES)


def test_an_emoji_split_that_is_not_for_training_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("not_for_training", split="judge-heldback")):
        open_source("emoji/judge-heldback")
