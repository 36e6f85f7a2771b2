from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Literal

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from robustclip.data.examples import odd_pictures, read_examples
from robustclip.data.images import save_image, to_pil
from robustclip.data.pictures import resize_and_crop
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.rng import generator


def test_class_folders(colour_folder: Path, plain) -> None:
    found = read_examples(colour_folder)

    assert found.ids == ["blue/d.png", "green/c.png", "red/a.png", "red/b.png"]
    assert found.label_names == ["blue", "green", "red"]
    assert found.labels.tolist() == [0, 1, 2, 2]
    assert found.size == (8, 8)
    assert not found.captions
    torch.testing.assert_close(found.images[torch.tensor([3, 0])], plain((0.6, 0.4, 0.0), (0.0, 0.6, 0.4)))


def test_a_folder_may_bring_the_names_of_its_classes(colour_folder: Path) -> None:
    (colour_folder / "classnames.txt").write_text("a blue square\na green square\na red square\n")

    assert read_examples(colour_folder).label_names == ["a blue square", "a green square", "a red square"]


def test_underscores_of_folders_are_spaces(tmp_path: Path, plain) -> None:
    save_image(plain((1.0, 0.0, 0.0))[0], tmp_path / "hot_dog" / "1.png")

    assert read_examples(tmp_path).label_names == ["hot dog"]


def webdataset(folder: Path, samples: list[dict[str, bytes]], mode: Literal["w", "w:gz"] = "w") -> None:
    """One shard."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "0.tar", mode) as tar:
        for index, sample in enumerate(samples):
            for ending, content in sample.items():
                member = tarfile.TarInfo(f"s{index:04}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def webp(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    to_pil(image).save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_clip_benchmarks_classification_layout(tmp_path: Path, plain, mode) -> None:
    images = plain((0.2, 0.4, 0.6), (0.8, 0.0, 0.2))
    samples = [{"webp": webp(images[0]), "cls": b"1\n"}, {"webp": webp(images[1]), "cls": b"0"}]
    webdataset(tmp_path / "test", samples, mode)
    (tmp_path / "classnames.txt").write_text("ant\nbee\ncow\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")

    for folder in (tmp_path, tmp_path / "test"):
        found = read_examples(folder)
        assert found.label_names == ["ant", "bee", "cow"]
        assert found.labels.tolist() == [1, 0]
        assert found.ids == ["0/s0000", "0/s0001"]
        assert found.templates == ("a photo of a {c}.",)
        torch.testing.assert_close(found.images[torch.arange(2)], images)


def test_clip_benchmarks_retrieval_layout(tmp_path: Path, plain) -> None:
    image = webp(plain((0.2, 0.4, 0.6))[0])
    webdataset(tmp_path / "test", [{"webp": image, "txt": b"a square\nblue-ish"}, {"webp": image, "txt": b"another"}])

    found = read_examples(tmp_path)

    assert found.captions == [["a square", "blue-ish"], ["another"]]
    assert not found.label_names


def hub_cache(folder: Path, name: str, samples: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as huggingface_hub writes it, links to blobs, with a data set of one shard; and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = folder / f"datasets--clip-benchmark--wds_{name}"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    webdataset(blobs, samples)
    (blobs / "names").write_text("ant\nbee\ncow\n")
    (blobs / "shards").write_text("1\n")
    (blobs / "templates").write_text("a photo of a {c}.\n")
    (snapshot / "test").mkdir(parents=True)
    for link, blob in {
        "test/0.tar": "0.tar",
        "test/nshards.txt": "shards",
        "classnames.txt": "names",
        "zeroshot_classification_templates.txt": "templates",
    }.items():
        (snapshot / link).symlink_to(blobs / blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    return snapshot


@pytest.mark.parametrize(("name", "repository"), [("own", "own"), ("vtab/cifar10", "vtab-cifar10")])
def test_clip_benchmarks_data_sets_by_name(
    name: str, repository: str, tmp_path: Path, plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = plain((0.2, 0.4, 0.6), (0.8, 0.0, 0.2))
    samples = [{"webp": webp(images[0]), "cls": b"1\n"}, {"webp": webp(images[1]), "cls": b"0"}]
    snapshot = hub_cache(tmp_path, repository, samples, monkeypatch)
    found = read_examples(f"wds/{name}")
    assert found.name == f"wds/{name}"
    assert found.reported == ("2 pictures of 1 shards",)
    assert found.label_names == ["ant", "bee", "cow"]
    assert found.labels.tolist() == [1, 0]
    assert found.templates == ("a photo of a {c}.",)
    torch.testing.assert_close(found.images[torch.arange(2)], images)

    (snapshot / "test" / "nshards.txt").unlink()
    (snapshot / "test" / "nshards.txt").write_text("3")
    with pytest.raises(RunError, check=lambda error: error.code == "unreachable") as raised:
        read_examples(f"wds/{name}")
    assert raised.value.values["missing"] == ["test/1.tar", "test/2.tar"]  # type: ignore[attr-defined]
    (snapshot / "test" / "nshards.txt").unlink()
    with pytest.raises(UsageError, check=lambda error: error.code == "not_wds"):
        read_examples(f"wds/{name}")
    with pytest.raises(RunError, match="clip-benchmark/wds_other", check=lambda error: error.code == "unreachable"):
        read_examples("wds/other")


def test_of_a_data_set_of_clip_benchmark_the_test_split_is_fetched(
    tmp_path: Path, plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hub_cache(tmp_path, "own", [{"webp": webp(plain((0.2, 0.4, 0.6))[0]), "cls": b"1"}], monkeypatch)
    asked: list[object] = []

    def fetched(*which: object, **how: object) -> str:
        asked.extend((which, how))
        return str(snapshot)

    monkeypatch.setattr("robustclip.runs.hub.snapshot_download", fetched)
    assert len(read_examples("wds/own")) == 1
    files = ["test/*", "classnames.txt", "zeroshot_classification_templates.txt"]
    assert asked == [("clip-benchmark/wds_own",), {"repo_type": "dataset", "allow_patterns": files}]


@pytest.mark.parametrize("name", ["wds/", "wds/../own", "wds//own", "wds/o wn"])
def test_names_that_clip_benchmark_cannot_have_are_no_data(name: str) -> None:
    with pytest.raises(UsageError, check=coded("no_data", data=name)):
        read_examples(name)


def test_a_caption_that_is_missing_is_told(tmp_path: Path, plain) -> None:
    image = webp(plain((0.2, 0.4, 0.6))[0])
    webdataset(tmp_path / "test", [{"webp": image, "txt": b"a square"}, {"webp": image}])

    with pytest.raises(UsageError, check=coded("unequal_counts", given=1, pictures=2)):
        read_examples(tmp_path)


def test_labels_need_names(tmp_path: Path, plain) -> None:
    webdataset(tmp_path / "test", [{"webp": webp(plain((0.2, 0.4, 0.6))[0]), "cls": b"3"}])
    (tmp_path / "classnames.txt").write_text("ant\nbee\n")

    with pytest.raises(UsageError, check=coded("too_few_names", labels=4, names=2)):
        read_examples(tmp_path)


@pytest.mark.parametrize("label", [b"-1", b"cat", b"\xff"])
def test_a_label_that_is_no_number(tmp_path: Path, plain, label: bytes) -> None:
    webdataset(tmp_path / "test", [{"webp": webp(plain((0.2, 0.4, 0.6))[0]), "cls": label}])

    with pytest.raises(UsageError, match=r"0\.tar") as found:
        read_examples(tmp_path)
    assert found.value.code == ("not_utf8" if label == b"\xff" else "not_a_label")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_tar_is_named(tmp_path: Path, mode) -> None:
    noise = torch.randint(256, (9000,), generator=torch.Generator().manual_seed(0)).numpy().astype("uint8").tobytes()
    webdataset(tmp_path / "test", [{"webp": noise, "cls": b"0"}] * 3, mode)
    shard = tmp_path / "test" / "0.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2 - 100])

    with pytest.raises(UsageError, check=coded("not_a_tar")):
        read_examples(tmp_path)


def test_a_tar_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"not a tar file at all")

    with pytest.raises(UsageError, check=coded("not_a_tar")):
        read_examples(tmp_path)


@pytest.mark.parametrize("inside", ["", "cats"])
def test_an_empty_folder_is_told_what_would_do(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)

    with pytest.raises(UsageError, check=coded("no_pictures")):
        read_examples(tmp_path)


def test_shards_without_images_are_empty_data(tmp_path: Path) -> None:
    webdataset(tmp_path / "test", [{"cls": b"0"}])

    with pytest.raises(UsageError, check=coded("no_picture")):
        read_examples(tmp_path)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("no_data")):
        read_examples(tmp_path / "nowhere")
    with pytest.raises(UsageError, check=coded("unknown_split", split="unseen"), match="unseen-styles"):
        read_examples("emoji/unseen")


def test_a_broken_picture_is_a_fault_of_the_run(colour_folder: Path) -> None:
    whole = (colour_folder / "red/a.png").read_bytes()
    (colour_folder / "red/a.png").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(RunError, check=coded("not_a_picture", path=colour_folder / "red" / "a.png")):
        read_examples(colour_folder)
    found = read_examples(colour_folder, size=8)
    with pytest.raises(RunError, check=coded("not_a_picture")):
        found.images[torch.arange(4)]


def test_broken_metadata_is_noted_and_the_pixels_are_measured(colour_folder: Path) -> None:
    shown = read_examples(colour_folder).images[torch.arange(4)]
    with Image.open(colour_folder / "red/a.png") as picture:
        picture.save(colour_folder / "red/a.png", exif=b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03")
    found = read_examples(colour_folder)
    assert not list(odd_pictures(found))
    for _ in range(2):  # as under attack
        assert torch.equal(found.images[torch.arange(4)], shown)
    assert list(odd_pictures(found)) == ["1 pictures have broken metadata (the pixels are read), e.g. red/a.png"]


def test_a_limit_takes_the_same_images_each_time(colour_folder: Path) -> None:
    whole = read_examples(colour_folder)
    some = read_examples(colour_folder, limit=3, seed=5)

    assert len(some) == 3
    assert some.ids == read_examples(colour_folder, limit=3, seed=5).ids
    assert some.ids == [name for name in whole.ids if name in some.ids]
    assert {tuple(read_examples(colour_folder, limit=2, seed=seed).ids) for seed in range(20)} != {tuple(some.ids[:2])}
    for place, name in enumerate(some.ids):
        there = whole.ids.index(name)
        assert some.labels[place] == whole.labels[there]
        assert torch.equal(some.images[torch.tensor([place])], whole.images[torch.tensor([there])])
    assert len(read_examples(colour_folder, limit=99)) == 4


def test_a_limit_of_an_embedded_split_takes_its_rows() -> None:
    whole = read_examples("emoji/judge-heldback")
    some = read_examples("emoji/judge-heldback", limit=5, seed=2)
    rows = [whole.ids.index(one) for one in some.ids]
    assert rows == sorted(torch.randperm(400, generator=generator(2, "subset"))[:5].tolist())
    assert torch.equal(some.images[torch.arange(5)], whole.images[torch.tensor(rows)])
    assert torch.equal(some.labels, whole.labels[rows])
    assert some.captions == [whole.captions[row] for row in rows]
    assert read_examples("emoji/judge-heldback", limit=400).ids == whole.ids


def test_images_of_a_folder_are_brought_to_one_size(colour_folder: Path) -> None:
    save_image(torch.zeros(3, 12, 8), colour_folder / "red" / "tall.png")

    with pytest.raises(UsageError, check=coded("unequal_sizes", sizes=2)):
        read_examples(colour_folder)
    assert read_examples(colour_folder, size=4).images[torch.arange(5)].shape == (5, 3, 4, 4)


def test_fitting_cuts_the_centre() -> None:
    image = torch.zeros(3, 12, 8)
    image[:, 2:10] = 1.0

    assert torch.equal(resize_and_crop(image, (8, 8)), torch.ones(3, 8, 8))
    assert torch.equal(resize_and_crop(image, (12, 8)), image)
    assert resize_and_crop(torch.zeros(3, 99, 100), (224, 224)).shape == (3, 224, 224)
