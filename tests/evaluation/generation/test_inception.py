"""torch-fidelity's network with drawn weights: the shapes are the published ones, the numbers mean nothing."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from robustclip.errors import UsageError, coded
from robustclip.evaluation.generation.judge import judge_images
from robustclip.evaluation.generation.measure import Inception, JudgeOptions, inception_score, load_inception
from robustclip.evaluation.generation.pictures import from_tensor
from robustclip.referees.toy import toy_referee
from robustclip.runs.files import sha256

CPU = torch.device("cpu")


class Unloaded(FeatureExtractorInceptionV3):
    def load_state_dict(self, *_: object, **__: object) -> None:
        pass


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nothing = BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing)
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path


def test_the_published_network_sees_8_bits(weights_file: Path) -> None:
    inception = load_inception(weights_file, CPU)
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))

    features, logits = inception(image)

    expected = inception.network((image * 255).round().to(torch.uint8))
    torch.testing.assert_close((features, logits), expected)
    assert (features.shape, logits.shape) == ((1, 2048), (1, 1008))
    assert inception.sha256 == sha256(weights_file)


def test_fid_and_inception_score_name_the_weights() -> None:
    class Means(torch.nn.Module):
        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            means = pixels.float().mean((2, 3))
            return means, means

    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inception = Inception("weights.pth", "a" * 64, Means(), CPU)
    report = judge_images(
        images,
        ["a", "b", "c"],
        [toy_referee()],
        options=JudgeOptions(["fid", "inception-score"], inception=inception),
        reference=from_tensor(images.flip(0), [""] * 3, name="real"),
        device="cpu",
    )

    fid = report.figure("fid")
    assert (fid.judge, fid.fingerprint, fid.reference) == ("Inception", "a" * 64, "real")
    assert fid.value == pytest.approx(0, abs=1e-6)
    assert report.figure("inception-score").value == pytest.approx(
        inception_score((images * 255).round().mean((2, 3))), rel=1e-3
    )
    assert any("has 3 dimensions, and pictures only 3 pictures" in note for note in report.notes)


def test_without_weights_it_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"weights-inception-2015-12-05-6726825d\.pth .* --inception-weights FILE"):
        load_inception(None, CPU)
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, check=coded("does_not_fit", path=tmp_path / "other.safetensors")):
        load_inception(tmp_path / "other.safetensors", CPU)
