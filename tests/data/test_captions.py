"""Captions without pictures: what is drawn, where a resumed run goes on, what is refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from robustclip.data.captions import CaptionBatches, open_captions
from robustclip.data.loader import redealt
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs import checkpoint
from robustclip.runs.processes import Place

LINES = ["a cat", "", "  a dog ", "a bear", "a fish"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(LINES))
    return path


def drawn(data: CaptionBatches, count: int, position: dict[str, object] | None = None) -> list[str]:
    return [text for batch in islice(data.batches(position), count) for text in batch.texts]


def test_every_line_comes_once_an_epoch_in_an_order_of_the_seed(file: Path) -> None:
    data = open_captions([str(file)], batch_size=2)
    texts = drawn(data, 4)
    assert sorted(texts[:4]) == sorted(texts[4:]) == ["a bear", "a cat", "a dog", "a fish"]
    assert drawn(open_captions([str(file)], batch_size=2), 4) == texts
    assert drawn(open_captions([str(file)], batch_size=2, seed=1), 4) != texts


def test_a_position_goes_on_where_its_batch_ended(file: Path) -> None:
    data = open_captions([str(file), f"{file}=2"], batch_size=3)
    batches = list(islice(data.batches(), 6))
    assert drawn(data, 3, batches[2].position) == [text for batch in batches[3:] for text in batch.texts]
    with pytest.raises(UsageError, check=coded("other_data")):
        drawn(open_captions([str(file)], batch_size=3), 1, batches[2].position)


def test_a_checkpoint_brings_back_a_position_with_skipped_samples(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("path,caption\n1.png,a cat\n2.png,\n3.png,a dog\n")
    data = open_captions([str(tmp_path / "pairs.csv")], batch_size=2)
    *_, last = islice(data.batches(), 3)
    assert last.position["faults"] == {"no caption": data.faults["no caption"]}
    path = checkpoint.save(tmp_path, 3, {"data": [last.position]})
    assert checkpoint.load(path)["data"] == [last.position]
    again = open_captions([str(tmp_path / "pairs.csv")], batch_size=2)
    again.batches(last.position)  # of which a run that was finished takes none
    assert again.faults == last.position["faults"]


def test_processes_share_an_epoch_and_others_can_go_on(file: Path) -> None:
    both = [open_captions([str(file)], batch_size=2, place=Place(rank, 2)) for rank in (0, 1)]
    assert sorted(text for data in both for text in drawn(data, 2)) == ["a bear", "a cat", "a dog", "a fish"]
    positions = [next(data.batches()).position for data in both]
    assert len(drawn(open_captions([str(file)], batch_size=2), 2, redealt(positions, Place(0, 1)))) == 4


def test_another_number_of_processes_keeps_the_count_of_skipped_samples(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("path,caption\n" + "1.png,a cat\n2.png,\n" * 8)
    both = [open_captions([str(tmp_path / "pairs.csv")], batch_size=2, place=Place(rank, 2)) for rank in (0, 1)]
    positions = [next(data.batches()).position | {"faults": {"no caption": 3 + rank}} for rank, data in enumerate(both)]
    counted = []
    for rank in range(3):
        data = open_captions([str(tmp_path / "pairs.csv")], batch_size=3, place=Place(rank, 3))
        counted.append(next(data.batches(redealt(positions, Place(rank, 3)))).position["faults"].get("no caption", 0))
    assert counted[0] >= 7
    assert max(counted[1:]) < 7


def test_a_share_that_is_one_sample_without_a_caption_is_no_bad_source(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("path,caption\n1.png,a cat\n2.png,\n")
    for seed in range(8):
        data = open_captions([str(tmp_path / "pairs.csv")], batch_size=2, seed=seed, place=Place(1, 2))
        assert drawn(data, 4) == ["a cat"] * 4


def test_pictures_are_not_opened_and_their_captions_alternate(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).write_bytes(b"no picture")
    data = open_captions([str(tmp_path)], batch_size=2, templates=("a {}", "the {}"))
    assert set(drawn(data, 12)) == {"a cat", "the cat", "a dog", "the dog"}
    assert len(set(drawn(open_captions(["emoji"], batch_size=8, shuffle_buffer=50), 2))) > 8


def test_what_holds_no_captions_is_told(file: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    for data, check in (
        (["nowhere.txt"], coded("not_readable", path=Path("nowhere.txt"))),
        ([str(tmp_path / "blank.txt")], coded("no_captions", path=tmp_path / "blank.txt")),
        ([], coded("no_data")),
    ):
        with pytest.raises(UsageError, check=check):
            open_captions(data, batch_size=2)
    (tmp_path / "pairs.csv").write_text("path,caption\n1.png,\n2.png,\n")
    data = open_captions([str(tmp_path / "pairs.csv")], batch_size=2)
    with pytest.raises(RunError, check=coded("empty_data", source="pairs")):
        next(data.batches())
    assert set(data.faults) == {"no caption"}
    with pytest.raises(UsageError, check=coded("not_divisible", argument="batch_size", given=3, near="2 or 4")):
        open_captions([str(file)], batch_size=3, place=Place(0, 2))
