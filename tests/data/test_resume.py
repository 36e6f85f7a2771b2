"""A run that is taken up from a batch's position meets the very batches it would have met, without the way there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from robustclip.data.loader import CHUNK, Loader, Preparation, redealt
from robustclip.data.mixture import Mixture, WeightedChoice, Weights, redealt_stream
from robustclip.data.samples import Batch, Sample
from robustclip.data.shards import ROUND, ShardSource
from robustclip.data.sources import open_source
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.processes import ALONE, Place

SHARDS = ROUND + 20  # two good samples in each
SOURCES = ("many", "packed.tar.gz", "pets", "pairs.csv")


@pytest.fixture
def here(tmp_path, encode, write_shard) -> Path:
    """Sources of every kind, with faulty samples in all but the folder; the first has more shards than a round."""
    faulty = [("b.jpg", b"<html>"), ("b.txt", b"an error page"), ("c.txt", b"no picture")]
    for number in range(SHARDS):
        write_shard(tmp_path / "many" / f"{number:03d}.tar", 2, first=10 * number, extra=faulty[: number % 3])
    write_shard(tmp_path / "packed.tar.gz", 12, extra=faulty)
    for number in range(9):
        path = tmp_path / "pets" / f"pet_{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number))
    rows = "".join(f"pets/pet_{number % 2}/{number}.jpg,pet {number}\n" for number in range(11))
    (tmp_path / "pairs.csv").write_text("path,caption\n" + rows)
    return tmp_path


def loader(folder: Path, *names: str, weights: Weights = "size", batch_size: int = 6, **options: Any) -> Loader:
    mixture = Mixture([open_source(str(folder / name), shuffle_buffer=20) for name in names], weights)
    prepare = Preparation(12, scale=(0.3, 0.8))
    return Loader(mixture, prepare, batch_size=batch_size, seed=5, **options)


def same(ours: Batch, theirs: Batch) -> bool:
    tensors = torch.equal(ours.images, theirs.images) and torch.equal(ours.positives, theirs.positives)
    return tensors and (ours.captions, ours.ids) == (theirs.captions, theirs.ids)


def resumes_bit_equal(source: Loader, stops: tuple[int, ...] = (1, 7, 24), after: int = 6) -> bool:
    whole = []
    faults = []
    for batch in islice(source.batches(), max(stops) + after):
        whole.append(batch)
        faults.append(source.faults.copy())
    assert source.faults.total() > 0 or not whole[0].position
    for stop in stops:
        position = json.loads(json.dumps(whole[stop - 1].position))
        for number, batch in enumerate(islice(source.batches(stop, position), after), stop):
            if not same(batch, whole[number]) or source.faults != faults[number]:
                return False
    return True


@pytest.mark.parametrize("name", ["many", "packed.tar.gz", "pairs.csv"])
def test_every_kind_of_source_resumes_bit_equal(here, name: str) -> None:
    assert resumes_bit_equal(loader(here, name))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("weights", ["size", "equal", (1, 2, 1, 3)])
def test_every_mixture_resumes_bit_equal(here, weights: Weights, workers: int) -> None:
    assert resumes_bit_equal(loader(here, *SOURCES, weights=weights, workers=workers))


@pytest.mark.parametrize("weights", ["size", "equal"])
def test_each_of_several_processes_resumes_bit_equal(here, weights: Weights) -> None:
    for rank in range(2):
        assert resumes_bit_equal(loader(here, *SOURCES, weights=weights, place=Place(rank, 2)))


def test_a_resumed_run_can_be_resumed(here) -> None:
    source = loader(here, *SOURCES)
    whole = list(islice(source.batches(), 30))
    position = None
    for start in range(0, 30, 5):
        part = list(islice(source.batches(start, position), 5))
        assert all(map(same, part, whole[start:]))
        position = part[-1].position


def test_a_size_that_is_estimated_otherwise_later_changes_nothing(here) -> None:
    whole = list(islice(loader(here, *SOURCES).batches(), 12))
    (here / "packed_stats.json").write_text('{"successes": 500}')
    again = list(islice(loader(here, *SOURCES).batches(2, whole[1].position), 10))
    assert all(map(same, again, whole[2:]))
    assert not all(map(same, islice(loader(here, *SOURCES).batches(), 12), whole))


def test_without_a_position_the_way_is_gone_again(here) -> None:
    source = loader(here, *SOURCES)
    whole = list(islice(source.batches(), 9))
    assert all(map(same, islice(source.batches(6), 3), whole[6:]))


@dataclass(frozen=True)
class Counting(Preparation):
    """Counts the pictures that it decodes."""

    decoded: Counter[str] | None = None

    def __call__(
        self, encoded: bytes | Path, generator: torch.Generator, remarks: Counter[str] | None = None
    ) -> torch.Tensor:
        assert self.decoded is not None
        self.decoded["pictures"] += 1
        return super().__call__(encoded, generator, remarks)


def test_what_is_skipped_is_not_decoded(here) -> None:
    decoded: Counter[str] = Counter()
    source = Loader(Mixture([open_source(str(here / "many"))]), Counting(12, decoded=decoded), batch_size=6)
    *_, last = islice(source.batches(), 11)
    assert decoded["pictures"] > 66
    decoded.clear()
    next(source.batches(11, last.position))
    assert 6 <= decoded["pictures"] <= CHUNK


class Recording(ShardSource):
    """Remembers the epochs and rounds it was asked for, and the shards it opened."""

    asked: list[tuple[int, int]]
    opened: int

    def epoch(self, seed: int, epoch: int, place: Place = ALONE, first_round: int = 0) -> Iterator[Sample]:
        self.asked.append((epoch, first_round))
        return super().epoch(seed, epoch, place, first_round)

    def read(self, shard: Any) -> Iterator[Sample]:
        self.opened += 1
        yield from super().read(shard)


def test_no_epoch_and_no_round_but_the_last_is_read_again(here) -> None:
    recording = Recording(here / "many", shuffle_buffer=20)
    recording.asked, recording.opened = [], 0
    source = Loader(Mixture([recording]), Preparation(8), batch_size=2)
    batches = list(islice(source.batches(), 3 * SHARDS))  # three epochs
    for number, asked in ((10, (0, 0)), (SHARDS - 3, (0, 1)), (3 * SHARDS - 3, (2, 1))):
        recording.asked.clear()
        recording.opened = 0
        next(source.batches(number + 1, batches[number].position))
        assert recording.asked[0] == asked
        assert recording.opened < SHARDS  # of its round, and some that come after


def test_a_choice_is_found_without_those_before_it() -> None:
    names, odds = ["a", "b", "c"], [1.0, 2.0, 3.0]
    choice = WeightedChoice(0, ALONE)
    row = [choice.choose(names, odds) for _ in range(3 * WeightedChoice.BLOCK)]
    for number in (0, 1, WeightedChoice.BLOCK - 1, WeightedChoice.BLOCK, 3 * WeightedChoice.BLOCK - 1):
        assert WeightedChoice(0, ALONE, number).choose(names, odds) == row[number]
    assert row[: WeightedChoice.BLOCK] != row[WeightedChoice.BLOCK : 2 * WeightedChoice.BLOCK]
    assert [WeightedChoice(0, Place(1, 2), number).choose(names, odds) for number in range(50)] != row[:50]


def test_the_faults_counted_so_far_live_on(here) -> None:
    source = loader(here, "many", batch_size=60)
    first, second = islice(source.batches(), 2)
    told, faults = source.report(), dict(source.faults)
    again = loader(here, "many", batch_size=60)
    next(again.batches(1, first.position))
    assert (again.report(), again.faults) == (told, faults)
    again.batches(2, second.position)
    assert again.faults == faults  # known before the first batch is asked for


def test_a_share_that_is_met_with_faults_only_after_the_resume_is_no_empty_source(tmp_path, write_shard) -> None:
    """The sample usable in epoch 0 lies before the position; the next epoch begins with a faulty one."""
    write_shard(tmp_path / "0.tar", 1, extra=[("b.jpg", b"x"), ("b.txt", b"x")])
    source = Loader(Mixture([ShardSource(tmp_path)]), Preparation(8), batch_size=1, seed=1)
    batches = list(islice(source.batches(), 12))
    for start, batch in enumerate(batches[:-1], 1):
        assert same(next(source.batches(start, batch.position)), batches[start])


def test_a_position_of_another_process_or_other_data_is_refused(here) -> None:
    position = next(loader(here, "many", "pets", place=Place(0, 2)).batches()).position
    with pytest.raises(UsageError, check=coded("other_process", theirs=[0, 2], ours=[1, 2])):
        loader(here, "many", "pets", place=Place(1, 2)).batches(1, position)
    with pytest.raises(UsageError, check=coded("other_process", theirs=[0, 2], ours=[0, 1])):
        loader(here, "many", "pets").batches(1, position)
    with pytest.raises(UsageError, check=coded("other_data", theirs=["many", "pets"], ours=["many", "pairs"])):
        loader(here, "many", "pairs.csv", place=Place(0, 2)).batches(1, position)
    with pytest.raises(UsageError, check=coded("not_a_position")):
        loader(here, "many").batches(1, {"epoch": 3})


def test_the_share_of_faults_is_judged_over_the_whole_run(here) -> None:
    lenient = loader(here, "many")
    *_, last = islice(lenient.batches(), 30)
    share = lenient.faults.total() / (lenient.faults.total() + 180)
    with pytest.raises(RunError, match="--max-skipped"):
        list(islice(loader(here, "many", max_skipped=share / 2).batches(30, last.position), 20))


@pytest.mark.parametrize("counts", [(2, 1), (1, 2), (2, 3), (4, 2), (2, 3, 2)])
@pytest.mark.parametrize("weights", ["size", "equal"])
def test_other_numbers_of_processes_together_meet_each_sample_once_an_epoch(
    here, counts: tuple[int, ...], weights: Weights
) -> None:
    """Also in the epoch that the change fell into, of sources that the processes had read to different depths."""
    mixture = loader(here, "many", "packed.tar.gz", "pets", weights=weights).mixture
    met: Counter[tuple[str, int, str]] = Counter()
    states: list[tuple[Place, dict[str, Any]]] = []
    for count in counts:
        places = [Place(rank, count) for rank in range(count)]
        former = states and [(place, redealt_stream(states, place)) for place in places]
        states = []
        for place, state in former or [(place, None) for place in places]:
            stream = mixture.stream(5, place, json.loads(json.dumps(state)))
            last = count == counts[-1] and bool(former)
            if last:
                begun = {name: cursor.shares[-1].epoch for name, cursor in stream.cursors.items()}
            for _number in range(100_000 if last else 25 + 9 * place.rank):
                if last and all(cursor.epoch > begun[name] for name, cursor in stream.cursors.items()):
                    break
                sample = next(stream)
                met[sample.source, sample.epoch, sample.key] += 1
            states.append((place, stream.state()))
    for name, source in mixture.sources.items():
        keys = [sample.key for sample in source.epoch(0, 0)]
        for epoch in range(begun[name] + 1):
            assert {key: met[name, epoch, key] for key in keys} == dict.fromkeys(keys, 1)


def test_a_resumed_batch_of_other_processes_repeats_a_chunk_at_most(here) -> None:
    former = [loader(here, "many", batch_size=6, place=Place(rank, 2)) for rank in range(2)]
    batches = [list(islice(source.batches(), 4)) for source in former]
    positions = [json.loads(json.dumps(of[-1].position)) for of in batches]
    source = loader(here, "many", batch_size=6)
    rest = [batch.ids for batch in islice(source.batches(4, redealt(positions, ALONE)), 26)]
    seen = Counter(name for batch in [*batches[0], *batches[1]] for name in batch.ids)
    again = Counter(name for ids in rest[:13] for name in ids)  # no more than was left of the epoch
    assert 0 < (again & seen).total() <= 2 * CHUNK
    assert max(again.values()) == 1
    usable = {f"many/{number:03d}/{10 * number + one:09d}" for number in range(SHARDS) for one in (0, 1)}
    assert {*seen, *(name for ids in rest for name in ids)} == usable


def test_a_run_that_nothing_had_begun_is_dealt_as_usual(here) -> None:
    streams = [(Place(rank, 2), loader(here, "many").mixture.stream(5, Place(rank, 2)).state()) for rank in range(2)]
    state = redealt_stream(streams, ALONE)
    assert (state["sources"], state["shares"]) == ({"many": [0, 0, 0]}, {})


def test_what_all_processes_counted_lives_on_in_the_first_of_another_number(here) -> None:
    sources = [loader(here, "many", batch_size=60, place=Place(rank, 2)) for rank in range(2)]
    positions = [next(source.batches()).position for source in sources]
    resumed = [loader(here, "many", batch_size=60, place=Place(rank, 3)) for rank in range(3)]
    for source in resumed:
        source.batches(1, redealt(positions, source.place))
    assert resumed[0].faults == sources[0].faults + sources[1].faults
    assert resumed[0].faults.total() > max(source.faults.total() for source in sources)
    assert not resumed[1].faults + resumed[2].faults
    with pytest.raises(UsageError, check=coded("not_a_position")):
        resumed[0].batches(1, redealt([{"epoch": 3}], Place(0, 3)))
