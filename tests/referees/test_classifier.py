"""Classifiers as guides: timm's folders, torchvision's, WS-DAN's checkpoints; their classes by name and number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from robustclip.errors import RunError, UsageError, coded
from robustclip.referees.image_judges import LAYERS, WSDAN, load_classifier

NAMES = ["n1", "n2", "n3", "n4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("classifier") / "small"
    model = timm.create_model("test_resnet", num_classes=4)
    described = {"n1": "tiger shark, Galeocerdo cuvieri", "n2": "goldfish", "n3": "crane, a bird", "n4": "crane"}
    timm.models.save_for_hf(
        model, str(place), {"label_names": NAMES, "label_descriptions": described}, safe_serialization=True
    )
    return place


def test_a_folder_of_timm_answers_as_timm_does(folder: Path) -> None:
    found = load_classifier(str(folder))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(theirs)
    images = torch.rand(2, 3, *config["input_size"][1:])
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(found.logits(images), theirs((images - mean) / std))
    assert not any(weight.requires_grad for weight in found.model.parameters())
    assert found.logits(images.requires_grad_()).sum().requires_grad


def test_a_class_by_name_number_or_near_name(folder: Path, tmp_path: Path) -> None:
    found = load_classifier(str(folder))
    assert [found.index(one) for one in ("2", "Goldfish", "galeocerdo cuvieri", "n4", "crane")] == [2, 1, 0, 3, 2]
    with pytest.raises(UsageError, check=coded("unknown_class", given="gold fish", near=["goldfish"])):
        found.index("gold fish")
    with pytest.raises(UsageError, check=coded("unknown_class", given="4", classes=4)):
        found.index("4")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nlast\n")
    assert load_classifier(str(folder), classes=names).index("last") == 3
    names.write_bytes("\ufefffirst\r\nb\u2028b\r\nc\r\nd\r\n\r\n".encode())
    assert load_classifier(str(folder), classes=names).names == [("first",), ("b\u2028b",), ("c",), ("d",)]
    names.write_bytes(b"caf\xe9\nb\nc\nd\n")
    with pytest.raises(UsageError, check=coded("not_utf8")):
        load_classifier(str(folder), classes=names)
    names.write_text("a\nb\n")
    with pytest.raises(UsageError, check=coded("wrong_number_of_names", names=2, classes=4)):
        load_classifier(str(folder), classes=names)


def test_wsdan_checkpoints_are_read_by_their_keys(tmp_path: Path) -> None:
    """Drawn weights under the port's keys: `features.N` are torchvision's InceptionV3 layers in order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torchvision.models.Inception3(aux_logits=False, init_weights=False)
        layers = torch.nn.Sequential(*(getattr(theirs, name) for name in LAYERS))
        attention = torchvision.models.inception.BasicConv2d(768, 2, kernel_size=1)
        last = torch.nn.Linear(2 * 768, 3, bias=False)
    weights = {f"module.features.{name}": one for name, one in layers.state_dict().items()}
    weights |= {f"module.attentions.{name}": one for name, one in attention.state_dict().items()}
    weights |= {"module.fc.weight": last.weight.detach()}
    torch.save({"state_dict": weights}, tmp_path / "wsdan.pth")
    found = load_classifier(str(tmp_path / "wsdan.pth"))
    assert (found.classes, found.size, found.names) == (3, (512, 512), [])
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        features = layers.eval()(x)
        maps = attention.eval()(features)
        pooled = torch.stack([(maps[:, row : row + 1] * features).mean((2, 3)) for row in range(2)], 1).flatten(1)
        pooled = pooled.sign() * (pooled.abs() + 1e-6).sqrt()
        wanted = last(100 * pooled / pooled.norm(dim=1, keepdim=True))
        torch.testing.assert_close(found.model(x), wanted)
    with pytest.raises(UsageError, check=coded("unknown_class", given="cardinal", names=[])):
        found.index("cardinal")
    assert isinstance(found.model, WSDAN)


def test_what_is_no_classifier_is_told(folder: Path, tmp_path: Path) -> None:
    for given, code, values in (
        ("resnet18x", "unknown_classifier", {"given": "resnet18x"}),
        ("torchvision:resnet5", "unknown_classifier", {"given": "resnet5"}),
        (str(tmp_path), "missing_file", {"path": str(tmp_path / "config.json")}),
    ):
        with pytest.raises(UsageError, check=coded(code, **values)):
            load_classifier(given)
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
    with pytest.raises(UsageError, check=coded("not_wsdan")):
        load_classifier(str(tmp_path / "odd.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    weights = timm.create_model("test_resnet", num_classes=4).state_dict()
    for name, change, kind, code in (
        ("other", {"num_classes": 5}, UsageError, "does_not_fit"),
        ("unknown", {"architecture": "nothing"}, UsageError, "not_a_config"),
        ("bare", {"pretrained_cfg": {}}, UsageError, "not_a_config"),
        ("lost", {}, RunError, "not_finite"),
    ):
        place = tmp_path / name
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config | change))
        lost = {"fc.weight": weights["fc.weight"] * float("nan")} if name == "lost" else {}
        save_file({key: value.contiguous() for key, value in (weights | lost).items()}, place / "model.safetensors")
        with pytest.raises(kind, check=coded(code)):
            load_classifier(str(place))
