from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustclip.errors import UsageError, coded
from robustclip.inits import Mixture, load_mixture, save_mixture
from robustclip.inits.mixture import fit_classes
from robustclip.inits.mixture_file import Precision
from robustclip.runs import rng

Change = Callable[[dict[str, Tensor], dict[str, Any]], None]


def mixture(directions: int | None = None) -> Mixture:
    images = torch.rand(12, 3, 4, 5, generator=rng.generator(0, "file"))
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2])
    return fit_classes(images, labels, ["a cat", "ein Hünd", "猫"], directions=directions)


@pytest.mark.parametrize("directions", [None, 7])
@pytest.mark.parametrize(("precision", "tolerance"), [("float", 0.0), ("half", 1e-3), ("byte", 1e-2)])
def test_what_is_saved_comes_back(
    tmp_path: Path, precision: Precision, tolerance: float, directions: int | None
) -> None:
    saved, path = mixture(directions), tmp_path / "new" / "m.safetensors"
    save_mixture(saved, path, precision=precision)
    loaded = load_mixture(path)
    assert loaded.class_names == saved.class_names
    assert (loaded.size, loaded.ridge, len(loaded)) == ((4, 5), 1e-4, 3)
    assert torch.equal(loaded.counts, saved.counts)
    assert (loaded.basis is None) == (directions is None)
    classes, streams = torch.tensor([0, 1, 2]), [rng.generator(0, "x", c) for c in range(3)]
    again = [rng.generator(0, "x", c) for c in range(3)]
    worst = 30 * tolerance  # a sample sums up to six rows
    torch.testing.assert_close(loaded.draw(classes, streams), saved.draw(classes, again), atol=worst, rtol=0)
    torch.testing.assert_close(loaded.means, saved.means, atol=tolerance * 3, rtol=0)
    torch.testing.assert_close(loaded.factors, saved.factors, atol=tolerance * 3, rtol=0)


def test_two_files_of_one_mixture_are_the_same_bytes_and_lower_precision_is_smaller(tmp_path: Path) -> None:
    sizes = {}
    for precision in ("float", "half", "byte"):
        files = [tmp_path / f"{precision}{copy}.safetensors" for copy in (0, 1)]
        for file in files:
            save_mixture(mixture(), file, precision=precision, notes={"b": "2", "a": "1"})
        assert files[0].read_bytes() == files[1].read_bytes()
        sizes[precision] = files[0].stat().st_size
    assert sizes["float"] > sizes["half"] > sizes["byte"]
    with pytest.raises(UsageError, check=coded("unknown_choice", argument="precision", given="double")):
        save_mixture(mixture(), tmp_path / "x.safetensors", precision="double")  # type: ignore[arg-type]


def rewritten(path: Path, change: Change, precision: Precision = "half") -> Path:
    """A mixture's file with one thing of its tensors or its metadata changed."""
    save_mixture(mixture(7), path, precision=precision)
    header = json.loads(path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])
    about, tensors = json.loads(header["__metadata__"]["mixture"]), load_file(path)
    change(tensors, about)
    save_file(tensors, path, {"mixture": json.dumps(about)})
    return path


def tensor(name: str, value: Callable[[Tensor], Tensor | None]) -> Change:
    def change(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        found = value(tensors.pop(name))
        if found is not None:
            tensors[name] = found.contiguous().clone()

    return change


def about(**values: Any) -> Change:
    return lambda _, about: about.update(values)


def one(value: float) -> Callable[[Tensor], Tensor]:
    """One number of the tensor replaced."""
    return lambda tensor: torch.cat([torch.full_like(tensor.flatten()[:1], value), tensor.flatten()[1:]]).view_as(
        tensor
    )


HOSTILE: dict[str, tuple[Change, Callable[[BaseException], bool]]] = {
    "no means": (tensor("means", lambda _: None), coded("missing", tensors=["means"])),
    "NaN": (tensor("means", one(float("nan"))), coded("not_finite", tensor="means")),
    "infinite": (tensor("centre", one(float("inf"))), coded("not_finite", tensor="centre")),
    "huge": (tensor("basis", one(2000.0)), coded("not_finite", tensor="basis")),
    "integers": (tensor("means", lambda t: t.to(torch.int32)), coded("wrong_type", tensor="means", dtype=torch.int32)),
    "complex": (
        tensor("factors", lambda t: t.to(torch.complex64)),
        coded("wrong_type", tensor="factors", dtype=torch.complex64),
    ),
    "scalar": (tensor("means", lambda _: torch.zeros(())), coded("wrong_type", tensor="means", dimensions=0)),
    "transposed": (tensor("means", lambda t: t.T), coded("wrong_shape", tensor="means", shape=(7, 3), expected=(3, 7))),
    "narrow factors": (
        tensor("factors", lambda t: t[:, 1:]),
        coded("wrong_shape", tensor="factors", shape=(11, 6), expected=(11, 7)),
    ),
    "short centre": (
        tensor("centre", lambda t: t[1:]),
        coded("wrong_shape", tensor="centre", shape=(59,), expected=(60,)),
    ),
    "other basis": (
        tensor("basis", lambda t: t[:, 1:]),
        coded("wrong_shape", tensor="basis", shape=(7, 59), expected=(7, 60)),
    ),
    "no basis": (tensor("basis", lambda _: None), coded("wrong_shape", tensor="means", shape=(3, 7), expected=(3, 60))),
    "fewer counts": (tensor("counts", lambda t: t[1:]), coded("wrong_shape", tensor="counts", shape=(2,), classes=3)),
    "float counts": (tensor("counts", lambda t: t.float()), coded("wrong_shape", tensor="counts", dtype=torch.float32)),
    "negative counts": (tensor("counts", lambda _: torch.tensor([-1, 11, 1])), coded("other_sum", tensor="counts")),
    "overflowing counts": (
        tensor("counts", lambda _: torch.tensor([2**63 - 1, 7, 7])),
        coded("other_sum", tensor="counts"),
    ),
    "wrong counts": (tensor("counts", lambda t: t + 1), coded("other_sum", tensor="counts")),
    "negative weights": (
        tensor("weights", lambda _: torch.tensor([2.0, -0.5, -0.5])),
        coded("other_sum", tensor="weights"),
    ),
    "no weight": (tensor("weights", lambda t: 0 * t), coded("other_sum", tensor="weights")),
    "many weights": (tensor("weights", lambda t: t.repeat(2) / 2), coded("wrong_shape", tensor="weights", shape=(6,))),
    "another format": (about(format="robustclip mixture 99"), coded("not_a_mixture", part="metadata")),
    "huge size": (about(height=10**9), coded("not_a_size", height=10**9)),
    "size true": (about(height=True), coded("not_a_size", height=True)),
    "other size": (about(height=5), coded("wrong_shape", tensor="centre", shape=(60,), expected=(75,))),
    "ridge text": (about(ridge="1e-4"), coded("out_of_range", argument="ridge", given="1e-4")),
    "ridge NaN": (about(ridge=float("nan")), coded("out_of_range", argument="ridge")),
    "ridge negative": (about(ridge=-1.0), coded("out_of_range", argument="ridge", given=-1.0)),
    "names a text": (about(class_names="abc"), coded("not_names")),
    "names numbers": (about(class_names=[1, 2, 3]), coded("not_names")),
    "no names": (about(class_names=[]), coded("not_names")),
    "more names": (about(class_names=list("abcd")), coded("wrong_shape", tensor="counts", classes=4)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_mixture_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    change, check = HOSTILE[name]
    with pytest.raises(UsageError, check=check):
        load_mixture(rewritten(tmp_path / "m.safetensors", change))


def test_bytes_need_a_scale_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(UsageError, match="factors_scale missing"):
        load_mixture(rewritten(path, tensor("factors_scale", lambda _: None), "byte"))
    with pytest.raises(UsageError, check=coded("wrong_shape", tensor="means", shape=(3, 7), scales=(6,))):
        load_mixture(rewritten(path, tensor("means_scale", lambda t: t[1:]), "byte"))
    with pytest.raises(UsageError, check=coded("not_finite", tensor="means")):
        load_mixture(rewritten(path, tensor("means_scale", lambda t: t * 0 + 999), "byte"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", bytes(range(256)) * 8, struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"[]"],
    ids=["empty", "short", "random", "a header of 2 to the 60", "a header that is a list"],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, check=coded("not_a_mixture", path=path)):
        load_mixture(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_metadata_that_says_nothing_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"means": torch.zeros(1)}, path, {"mixture": text})
    with pytest.raises(UsageError, check=coded("not_a_mixture", part="metadata")):
        load_mixture(path)
    save_file({"means": torch.zeros(1)}, path)
    with pytest.raises(UsageError, check=coded("not_a_mixture", part="metadata")):
        load_mixture(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_mixture(mixture(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UsageError, check=coded("not_a_mixture", path=path)):
        load_mixture(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", "emoji-guide-style", "../x", "", "a\0b", "x" * 10_000):
        with pytest.raises(UsageError, check=coded("unknown_mixture", name=path)):
            load_mixture(path)
