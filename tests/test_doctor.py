from __future__ import annotations

import io
import sys
from importlib import metadata

import pytest
from rich.console import Console

import robustclip
from robustclip import doctor
from robustclip.errors import UsageError


def printed(facts: dict[str, object]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(doctor.report(facts))
    return stream.getvalue()


@pytest.fixture
def without_torchattacks(monkeypatch: pytest.MonkeyPatch) -> None:
    original = metadata.version

    def version(name: str) -> str:
        if name == "torchattacks":
            raise metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(metadata, "version", version)


def test_it_tells_versions_devices_and_memory() -> None:
    facts = doctor.doctor()
    assert facts["robustclip"] == robustclip.__version__
    assert facts["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert facts["packages"]["torch"]["installed"] == metadata.version("torch")
    assert "cpu" in facts["devices"]
    assert facts["memory_gb"] >= facts["memory_free_gb"] > 0
    assert facts["threads"] >= 1
    text = printed(facts)
    assert f"robustclip {robustclip.__version__}" in text
    assert "cpu: " in text


def test_what_is_missing_comes_with_the_command_that_gets_it(without_torchattacks: None) -> None:
    packages = doctor.requirements()
    assert packages["torchattacks"]["installed"] is None
    assert packages["torchattacks"]["remedy"] == "pip install 'robustclip[evaluation]'"
    facts = doctor.doctor()
    assert "torchattacks" in facts["missing"]
    assert "torch" not in facts["missing"]
    assert "To get what is missing: pip install 'robustclip[evaluation]'" in printed(facts)


def test_a_version_that_is_too_old_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.0.1")
    assert doctor.requirements()["torch"]["remedy"] == "pip install torch"


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("torchattacks.attack", "pip install 'robustclip[evaluation]'"),
        ("pytorch_grad_cam", "pip install 'robustclip[explanation]'"),
        ("open_clip", "pip install open-clip-torch"),
        ("numpy.linalg", "pip install numpy"),
        ("wonder", "pip install wonder"),
    ],
)
def test_a_missing_module_has_a_remedy(module: str, command: str) -> None:
    assert doctor.remedy(module) == command


def test_a_device_that_is_not_here_is_a_fault_of_the_call() -> None:
    assert doctor.doctor(device="cpu")["chosen"] == "cpu"
    with pytest.raises(UsageError, match="cuda:99"):
        doctor.doctor(device="cuda:99")


def test_a_driver_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("robustclip.runs.devices.no_cuda", lambda: "the driver is too old")
    facts = doctor.doctor()
    assert facts["no_cuda"] == "the driver is too old"
    assert "no CUDA device: the driver is too old" in printed(facts)


def test_from_source_it_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> metadata.PackageMetadata:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", not_found)
    assert doctor.requirements() == {}
    assert "robustclip is not installed" in printed(doctor.doctor())
