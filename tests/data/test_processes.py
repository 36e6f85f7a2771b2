"""Several processes that train together: in every epoch each sample is met once, by one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import pytest

from robustclip.data.loader import Loader, Preparation
from robustclip.data.mixture import Mixture, Weights
from robustclip.data.samples import Sample, SampleSource
from robustclip.data.shards import ShardSource
from robustclip.data.sources import open_source
from robustclip.data.tars import Shard
from robustclip.errors import RunError, coded
from robustclip.runs.processes import Place

SHARDS = (9, 4, 0, 17, 6, 1, 8)  # samples


@pytest.fixture
def here(tmp_path, encode, write_shard) -> Path:
    """Seven shards of unequal sizes, one big one, a folder, a table, and a table of one line."""
    for number, count in enumerate(SHARDS):
        write_shard(tmp_path / "many" / f"{number}.tar", count, first=100 * number)
    write_shard(tmp_path / "one.tar", 23)
    for number in range(11):
        path = tmp_path / "pets" / "dog" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number))
    rows = "".join(f"pets/dog/{number}.jpg,dog {number}\n" for number in range(10))
    (tmp_path / "pairs.csv").write_text("path,caption\n" + rows)
    (tmp_path / "single.csv").write_text("path,caption\npets/dog/0.jpg,alone\n")
    return tmp_path


def met_in(epochs: int, sources: list[SampleSource], weights: Weights, place: Place) -> list[Sample]:
    """What one process meets of the first epochs of all sources."""
    stream = Mixture(sources, weights).stream(0, place)
    met: list[Sample] = []
    while any(cursor.epoch < epochs for cursor in stream.cursors.values()):
        met.append(next(stream))
    return [sample for sample in met if sample.epoch < epochs]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("weights", ["size", "equal", (1, 2, 1, 3)])
def test_each_sample_is_met_once_an_epoch_by_one_process(here, weights: Weights, world_size: int) -> None:
    sources = [open_source(str(here / name)) for name in ("many", "one.tar", "pets", "pairs.csv")]
    met = Counter(
        (sample.epoch, sample.id)
        for rank in range(world_size)
        for sample in met_in(3, sources, weights, Place(rank, world_size))
    )
    assert set(met.values()) == {1}
    assert len(met) == 3 * (sum(SHARDS) + 23 + 11 + 10)


def test_processes_have_about_as_much_to_do(here) -> None:
    """Seven shards on three processes: six are dealt out, the seventh is shared, whatever it holds."""
    source = open_source(str(here / "many"))
    counts = [
        sum(len(list(source.epoch(0, epoch, Place(rank, 3)))) for epoch in range(60)) for rank in range(3)
    ]  # fmt: skip
    assert sum(counts) == 60 * sum(SHARDS)
    assert max(counts) < 1.2 * min(counts)


class Recording(ShardSource):
    """Remembers which shards it opened."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.opened: list[Shard] = []

    def read(self, shard: Shard):  # type: ignore[no-untyped-def]
        def recorded():  # type: ignore[no-untyped-def]
            self.opened.append(shard)
            yield from super(Recording, self).read(shard)

        return recorded()


def test_whole_shards_are_opened_by_one_process_only(here) -> None:
    source = Recording(here / "many")
    opened = []
    for rank in range(3):
        source.opened.clear()
        list(source.epoch(0, 0, Place(rank, 3)))
        opened.append(set(source.opened))
    assert [len(shards) for shards in opened] == [3, 3, 3]
    assert len(opened[0] & opened[1] & opened[2]) == 1  # the one that is left over is shared


def test_fewer_samples_than_processes_go_round_in_turn(here) -> None:
    source = open_source(str(here / "single.csv"))
    assert all(next(Mixture([source]).stream(0, Place(rank, 4))).id == "single/line-2" for rank in range(4))


def test_a_share_that_is_one_bad_sample_is_no_bad_source(here) -> None:
    table = here / "bad.csv"
    for second, bad in (("pets/dog/1.jpg", False), ("gone.jpg", True)):
        table.write_text(f"path,caption\n{second},good or gone\nmissing.jpg,bad\n")
        for seed in range(3):
            loader = Loader(
                Mixture([open_source(str(table))]), Preparation(8), batch_size=4, seed=seed, place=Place(1, 2)
            )
            with pytest.raises(RunError, check=coded("empty_data", source="bad")) if bad else nullcontext():
                list(islice(loader.batches(), 30))


def test_an_empty_source_is_still_told(tmp_path, write_tar) -> None:
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(RunError, check=coded("no_samples")):
        next(Mixture([ShardSource(tmp_path)]).stream(0, Place(1, 4)))


@pytest.mark.parametrize("seed", range(4))
def test_a_process_that_draws_the_empty_shard_again_goes_on(tmp_path, write_tar, seed: int) -> None:
    write_tar(tmp_path / "0.tar", [])
    write_tar(tmp_path / "1.tar", [("1.jpg", b"picture"), ("1.txt", b"a cat")])
    for rank in range(2):
        stream = Mixture([ShardSource(tmp_path)]).stream(seed, Place(rank, 2))
        assert [sample.key for sample in islice(stream, 8)] == ["1/1"] * 8


@pytest.mark.parametrize("seed", range(5))
def test_the_sources_of_each_process_end_together(tmp_path, seed: int) -> None:
    for name, count in (("a", 1000), ("b", 3000)):
        (tmp_path / f"{name}.csv").write_text("path,caption\n" + "x.jpg,a caption\n" * count)
    stream = Mixture([open_source(str(tmp_path / name)) for name in ("a.csv", "b.csv")]).stream(seed, Place(1, 4))
    last = list(islice(stream, 1000))[-30:]
    assert {sample.source for sample in last} == {"a", "b"}


def test_two_processes_with_two_workers_each_meet_every_sample_once(here) -> None:
    mixture = Mixture([open_source(str(here / name)) for name in ("many", "pairs.csv")])
    for epochs in (1, 3):
        met: Counter[str] = Counter()
        for rank in range(2):
            place = Place(rank, 2)
            loader = Loader(mixture, Preparation(8), batch_size=2, workers=2, place=place)
            count = len(met_in(epochs, list(mixture.sources.values()), "size", place))
            met.update(name for batch in islice(loader.batches(), count) for name in batch.ids)
        assert len(met) == sum(SHARDS) + 10
        assert set(met.values()) == {epochs}


PROCESS = """
import json, sys
from itertools import islice
from robustclip.data.samples import Place
from robustclip.data.sources import open_data
folder, rank, batches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = open_data(folder, batch_size=20, size=8, workers=2, place=Place(rank, 2))
print(json.dumps([name for batch in islice(data.batches(), batches) for name in batch.ids]))
"""


def test_two_real_processes_with_two_workers_each(tmp_path, write_shard) -> None:
    for number in range(4):
        write_shard(tmp_path / f"{number}.tar", 20, first=100 * number)
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROCESS,
                str(tmp_path),
                str(rank),
                "12",
            ],  # three epochs of 40 samples, ten at a time
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    ids = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    for epoch in range(3):
        met = [name for process in ids for name in process[40 * epoch : 40 * (epoch + 1)]]
        assert len(set(met)) == len(met) == 80
    assert set(ids[0][:40]) != set(ids[0][40:80])  # dealt out anew each epoch
