"""A planted perturbation moves the mean colour of every image by a known amount, so that accuracies are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from robustclip.attacks.threat import ThreatModel
from robustclip.cli import app
from robustclip.data.images import save_image
from robustclip.errors import RunError, UsageError, coded
from robustclip.evaluation import evaluate
from robustclip.evaluation.ledger import exact
from robustclip.evaluation.universal import FORMAT, read_universal, save_universal, universal
from robustclip.referees.folder import save_referee
from robustclip.referees.toy import toy_referee

CPU = {"device": "cpu"}
BALL = ThreatModel("linf", 0.1, 8).to_json()


def colour(*change: float, size: int = 8) -> Tensor:
    return torch.tensor(change)[:, None, None].expand(3, size, size).contiguous()


def plant(path: Path, delta: Tensor, name: str = "delta") -> str:
    save_file({name: delta}, path)
    return f"universal:{path}"


def test_accuracy_under_a_planted_perturbation_is_that_of_the_moved_images(
    colour_referee, colour_folder: Path, tmp_path: Path
) -> None:
    """0.3 from red to green: (0.6, 0.4, 0) becomes green. 0.3 from green to blue: the wrong (0, 0.6, 0.4) gets right,
    and no other changes."""
    worse = "linf:0.3@" + plant(tmp_path / "worse.safetensors", colour(-0.3, 0.3, 0))
    better = "linf:0.3@" + plant(tmp_path / "better.safetensors", colour(0, -0.3, 0.3))

    report = evaluate([colour_referee()], data=colour_folder, attack=[worse, better], **CPU)

    top = {row.attack: row.value for row in report.rows if (row.kind, row.metric) == ("value", "top-1")}
    assert top == {
        "clean": 0.75,
        f"random {worse}": 0.75,
        f"random {better}": 0.75,
        worse: 0.5,
        better: 1.0,
        "worst linf:0.3": 0.5,
    }
    assert report.threats[worse].startswith(str(ThreatModel("linf", 0.3, 8)))


def test_the_norm_that_is_left_after_clamping_is_reported(colour_referee, colour_folder: Path, tmp_path: Path) -> None:
    """Red cannot fall below 0, green not rise above 1: of 0.3 * sqrt(128), (0, 0.8, 0) keeps 0.2 * 8, (0, 0.6, 0.4)
    0.3 * 8."""
    spec = "l2:3.4@" + plant(tmp_path / "d.safetensors", colour(-0.3, 0.3, 0))
    report = evaluate([colour_referee()], data=colour_folder, attack=spec, **CPU)

    record, whole = report.setting["universal"][spec], 0.3 * 128**0.5
    assert record["norm"] == pytest.approx(whole, rel=1e-5)
    assert record["left"]["mean"] == pytest.approx((2 * whole + 1.6 + 2.4) / 4, rel=1e-5)
    assert record["left"]["most"] == pytest.approx(whole, rel=1e-5)
    assert record["left"]["rms"] == pytest.approx(record["left"]["mean"] / 192**0.5, rel=1e-5)
    assert 0 < record["control"]["mean"] < whole
    assert (record["about"], record["resized_from"]) == (None, None)
    assert f"{record['left']['mean']:.4g} on average" in report.threats[spec]
    assert record["sha256"][:8] in report.threats[spec]


def test_another_size_and_a_smaller_ball_are_met(colour_referee, colour_folder: Path, tmp_path: Path) -> None:
    """Of 4x4 for images of 8x8; in the ball of 0.05, no margin of 0.2 is lost."""
    small = plant(tmp_path / "small.safetensors", colour(-0.3, 0.3, 0, size=4)[None])
    report = evaluate([colour_referee()], data=colour_folder, attack=[f"linf:0.3@{small}", f"linf:0.05@{small}"], **CPU)

    assert report.row("colours", "top-1", f"linf:0.3@{small}").value == 0.5
    assert report.row("colours", "top-1", f"linf:0.05@{small}").value == 0.75
    record = report.setting["universal"][f"linf:0.05@{small}"]
    assert (record["norm"], record["resized_from"]) == (pytest.approx(0.05), [4, 4])


def test_retrieval_takes_it_too(colour_referee, plain, tmp_path: Path) -> None:
    for name, pixels in {"red": (0.6, 0.4, 0.0), "green": (0.0, 0.8, 0.0)}.items():
        save_image(plain(pixels)[0], tmp_path / "pairs" / f"{name}.png")
        (tmp_path / "pairs" / f"{name}.txt").write_text(name)
    spec = "linf:0.3@" + plant(tmp_path / "d.safetensors", colour(-0.3, 0.3, 0))

    report = evaluate([colour_referee()], data=tmp_path / "pairs", tasks=["retrieval"], attack=spec, **CPU)

    assert report.row("colours", "image to text recall@1").value == 1.0
    assert report.row("colours", "image to text recall@1", spec).value == 0.5
    for task in ("maps", "faithfulness"):
        with pytest.raises(UsageError, match="needs PGD"):
            evaluate([colour_referee()], data=tmp_path / "pairs", tasks=[task], attack=spec, **CPU)


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    """A bare tensor, a state dict, and X-TransferBench's two forms."""
    delta = colour(0.1, -0.2, 0.05)
    torch.save(delta[None], tmp_path / "bare.pt")
    torch.save({"delta": delta, "epoch": 3}, tmp_path / "state.pth")
    plant(tmp_path / "linf.safetensors", delta[None].clone())
    plant(tmp_path / "l2.safetensors", delta[None].atanh(), "delta_param")
    for file in ("bare.pt", "state.pth", "linf.safetensors", "l2.safetensors"):
        stored = read_universal(tmp_path / file)
        torch.testing.assert_close(stored.delta, delta)
        assert stored.about == {}


def wrong_files() -> dict[str, tuple[str, Any, str]]:
    """What is saved, and the code of the fault."""
    broken = colour(0.1, 0.2, 0.3)
    broken[0, 0, 0] = torch.inf
    return {
        "infinite": ("pt", broken, "not_finite"),
        "nan": ("safetensors", {"delta": torch.full((3, 4, 4), torch.nan)}, "not_finite"),
        "grey": ("pt", torch.zeros(1, 4, 4), "wrong_shape"),
        "many": ("pt", torch.zeros(2, 3, 4, 4), "wrong_shape"),
        "flat": ("pt", torch.zeros(48), "wrong_shape"),
        "huge": ("pt", torch.zeros(1).expand(3, 9_999, 9_999), "wrong_shape"),
        "levels": ("pt", torch.zeros(3, 4, 4, dtype=torch.uint8), "wrong_type"),
        "sparse": ("pt", torch.eye(3)[:, :, None].to_sparse(), "wrong_type"),
        "two": ("safetensors", {"a": torch.zeros(3, 4, 4), "b": torch.ones(3, 4, 4)}, "not_one_tensor"),
        "text": ("pt", {"delta": "0.1"}, "not_one_tensor"),
    }


@pytest.mark.parametrize(("ending", "content", "code"), wrong_files().values(), ids=wrong_files())
def test_what_is_no_perturbation_is_refused(ending: str, content: Any, code: str, tmp_path: Path) -> None:
    file = tmp_path / f"wrong.{ending}"
    save_file(content, file) if ending == "safetensors" else torch.save(content, file)
    with pytest.raises(UsageError) as met:
        read_universal(file)
    assert met.value.code == code


def test_code_damage_and_absence_are_refused(colour_referee, colour_folder: Path, tmp_path: Path) -> None:
    torch.save({"delta": Path("x")}, tmp_path / "code.pt")
    (tmp_path / "half.safetensors").write_bytes(b"\x10")
    with pytest.raises(UsageError, check=coded("unsafe_pickle")):
        read_universal(tmp_path / "code.pt")
    with pytest.raises(RunError) as met:
        read_universal(tmp_path / "half.safetensors")
    assert met.value.code == "damaged"
    with pytest.raises(UsageError, match="nowhere"):  # before a referee is loaded
        evaluate(["no such referee"], data=colour_folder, attack="l2:1@universal:nowhere.pt", **CPU)
    zero = "l2:1@" + plant(tmp_path / "zero.safetensors", torch.zeros(3, 8, 8))
    with pytest.raises(UsageError) as fault:
        evaluate([colour_referee()], data=colour_folder, attack=zero, **CPU)
    assert fault.value.code == "zero"
    with pytest.raises(UsageError, check=coded("not_signable")):
        evaluate([colour_referee()], data=colour_folder, attack=zero, sign=True, **CPU)


@pytest.mark.parametrize(
    "about", [{}, {"threat": {"norm": "l2", "eps": -1, "size": [8, 8]}, "referees": {}}, {"threat": 3}], ids=str
)
def test_metadata_are_checked(about: dict[str, Any], tmp_path: Path) -> None:
    save_universal(tmp_path / "x.safetensors", colour(0.1, 0, 0), about)
    with pytest.raises(UsageError):
        read_universal(tmp_path / "x.safetensors")


@pytest.mark.parametrize("about", [{"format": "robustclip universal 2"}, {"format": FORMAT, "threat": BALL}], ids=str)
def test_metadata_of_another_format_are_refused(about: dict[str, Any], tmp_path: Path) -> None:
    delta = {"delta": colour(0.1, 0, 0)}
    save_file(delta, tmp_path / "x.safetensors", metadata={"universal": json.dumps(about)})
    with pytest.raises(UsageError, check=lambda error: error.code == "other_format"):
        read_universal(tmp_path / "x.safetensors")


def test_images_without_labels_are_refused(colour_referee, tmp_path: Path) -> None:
    save_image(torch.zeros(3, 8, 8), tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("a caption")
    with pytest.raises(UsageError, check=lambda error: error.code == "no_labels"):
        universal([colour_referee()], out=tmp_path / "x.safetensors", data=tmp_path / "data", **CPU)


def test_an_ensemble_is_trained_and_the_file_says_how(colour_referee, colour_folder: Path, tmp_path: Path) -> None:
    """Both referees lose: accuracy on the images of the training falls to what the ball allows."""
    one, other = colour_referee("one"), colour_referee("other", logit_scale=5.0)
    out = tmp_path / "both.safetensors"
    made = universal([one, other], out=out, attack="linf:0.15@20", data=colour_folder, batch_size=4, **CPU)

    stored = read_universal(out)
    assert stored.about["referees"] == {"one": exact(one), "other": exact(other)}
    assert ThreatModel.from_json(stored.about["threat"]) == ThreatModel("linf", 0.15, 8)
    assert (stored.about["attack"], stored.about["images"], stored.about["seed"]) == ("linf:0.15@20:0.015", 4, 0)
    assert made["last_loss"] > made["first_loss"]
    assert float(stored.delta.abs().max()) <= 0.15 + 1e-6
    report = evaluate([one, other], data=colour_folder, attack=f"linf:0.15@universal:{out}", **CPU)
    for name in ("one", "other"):  # (0.6, 0.4, 0) falls, whose margin is 0.2
        assert report.row(name, "top-1", f"linf:0.15@universal:{out}").value == 0.5
    assert "trained on one, other" in report.threats[f"linf:0.15@universal:{out}"]

    again = tmp_path / "again.safetensors"
    universal([one, other], out=again, attack="linf:0.15@20", data=colour_folder, batch_size=4, **CPU)
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    "options",
    [{"attack": "l2:1@square"}, {"attack": "l2:1@20x3"}, {"out": Path("x.pt")}, {"templates": "none"}],
    ids=str,
)
def test_faulty_calls(colour_referee, colour_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    given = {"out": tmp_path / "x.safetensors", "data": colour_folder, "attack": "l2:1@2", **CPU} | options
    with pytest.raises(UsageError):
        universal([colour_referee()], **given)


def test_the_commands(colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, evaluate, and a benchmark with it as a further attack, whose cell is not another file's."""
    save_referee(toy_referee(), tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    data = ("--data", str(colour_folder), "--device", "cpu")

    def run(*words: str) -> str:
        ran = CliRunner().invoke(app, [*words, *data], catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        return ran.output

    told = run("universal", "toy", "--attack", "linf:4/255@9", "--out", "d.safetensors", "--quick")
    spec = "linf:4/255@universal:d.safetensors"
    assert "steps: 9" in told
    assert f"--attack {spec}" in told
    assert spec in run("evaluate", "toy", "--attack", spec, "--out", "evaluated")
    record = json.loads(Path("evaluated/evaluation.json").read_text())["setting"]["universal"][spec]
    assert record["norm"] <= 4 / 255 + 1e-6

    words = ("benchmark", "toy", "--parts", "accuracy", "--quick", "--attack", spec, "--out", "board")
    run(*words)
    [row] = [
        row
        for row in json.loads(Path("board/leaderboard.json").read_text())["rows"]
        if (row["metric"], row["attack"]) == ("top-1", spec)
    ]
    assert record["sha256"][:8] in row["threat"]
    assert f"--attack {spec}" in row["command"]
    plant(Path("d.safetensors"), colour(0.01, 0.01, 0.01))
    run(*words, "--resume")
    assert len(list(Path("board/cells").iterdir())) == 2
