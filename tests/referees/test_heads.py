"""Both families of aesthetics predictors, in the layout they were released in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from robustclip.errors import RunError, UsageError, coded
from robustclip.referees.image_judges import load_aesthetics
from robustclip.runs.files import sha256

SHAPES = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}


@pytest.fixture
def mlp() -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(0)
    weights = {}
    for place, (after, before) in SHAPES.items():
        weights[f"layers.{place}.weight"] = torch.randn(after, before, generator=stream) * before**-0.5
        weights[f"layers.{place}.bias"] = torch.randn(after, generator=stream)
    return weights


@pytest.fixture
def linear() -> dict[str, Tensor]:
    return {"weight": torch.tensor([[1.0, -2.0, 0.5]]), "bias": torch.tensor([5.0])}


def test_the_mlp_has_no_activations(mlp: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(mlp, tmp_path / "mlp.pth")
    embeddings = torch.randn(5, 768, generator=torch.Generator().manual_seed(1))

    head = load_aesthetics(tmp_path / "mlp.pth")

    expected = embeddings
    for place in SHAPES:
        expected = expected @ mlp[f"layers.{place}.weight"].T + mlp[f"layers.{place}.bias"]
    assert (head.family, head.width, head.sha256) == ("mlp", 768, sha256(tmp_path / "mlp.pth"))
    torch.testing.assert_close(head(embeddings), expected[:, 0])
    torch.testing.assert_close(head(embeddings), head(embeddings))  # nothing is dropped
    assert head.describe() == f"mlp.pth (mlp), sha256 {head.sha256}"


def test_the_linear_head_by_hand(linear: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(linear, tmp_path / "head.safetensors")

    head = load_aesthetics(tmp_path / "head.safetensors")

    assert (head.family, head.width) == ("linear", 3)
    assert head(torch.tensor([[0.0, 0.0, 1.0], [0.6, 0.8, 0.0]])).tolist() == pytest.approx([5.5, 4.0])


def test_an_embedding_of_another_width_is_refused(linear: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(linear, tmp_path / "head.safetensors")

    with pytest.raises(UsageError, check=coded("unequal_widths", head=3, judge=4)):
        load_aesthetics(tmp_path / "head.safetensors")(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"layers.7.bias": None}, UsageError, r"1 missing \(layers.7.bias\)"),
        ({"layers.0.weight": None}, UsageError, "is not an aesthetics head: one has the keys"),
        ({"layers.0.weight": torch.ones(3)}, UsageError, "is not an aesthetics head"),
        ({"layers.2.weight": torch.ones(3, 3)}, UsageError, "1 of another shape"),
        ({"layers.9.weight": torch.ones(3, 3)}, UsageError, "1 unexpected"),
        ({"layers.2.bias": torch.full((128,), torch.nan)}, RunError, "NaN or infinity in layers.2.bias"),
    ],
)
def test_other_files_are_refused(
    mlp: dict[str, Tensor], tmp_path: Path, change: dict[str, Tensor | None], kind: type[Exception], message: str
) -> None:
    weights = {name: value for name, value in (mlp | change).items() if value is not None}
    save_file(weights, tmp_path / "head.safetensors")

    with pytest.raises(kind, match=message):
        load_aesthetics(tmp_path / "head.safetensors")


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Path("x")}, tmp_path / "head.pth")

    with pytest.raises(UsageError, check=coded("unsafe_pickle")):
        load_aesthetics(tmp_path / "head.pth")
