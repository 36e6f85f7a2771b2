"""Learned weights of an ensemble: against a solution by hand, on planted scores, and on the embedded referees."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from robustclip.cli import app
from robustclip.errors import RunError, UsageError, coded
from robustclip.evaluation.ensembles import fit_weights, weigh
from robustclip.referees.registry import find


def test_the_scale_of_one_referee_is_the_logit_of_its_accuracy() -> None:
    """Scores 1 and 0 of two labels, three of four right: softmax(s) is 3/4 at s = log 3."""
    scores = torch.tensor([[[1.0, 0.0]] * 4])
    weights, scale = fit_weights(scores, torch.tensor([0, 0, 0, 1]))
    assert weights == [1.0]
    assert scale == pytest.approx(math.log(3), rel=1e-3)


def test_weights_of_independent_referees_are_those_of_naive_bayes() -> None:
    """Two referees, right in 3/4 and 2/3 of the images and independent: log odds log 3 and log 2."""
    rows, targets = [], []
    for first, often in ((1.0, 3), (0.0, 1)):
        for second, also in ((1.0, 2), (0.0, 1)):
            rows += [[[first, 1 - first], [second, 1 - second]]] * (often * also)
            targets += [0] * (often * also)
    scores = torch.tensor(rows).transpose(0, 1)
    weights, scale = fit_weights(scores, torch.tensor(targets))
    assert weights[0] * scale == pytest.approx(math.log(3), rel=1e-3)
    assert weights[1] * scale == pytest.approx(math.log(2), rel=1e-3)


def test_a_referee_that_only_misleads_has_no_weight() -> None:
    right = torch.rand(1, 50, 5, generator=torch.Generator().manual_seed(0))
    weights, _ = fit_weights(torch.cat([right, -right]), right[0].argmax(1))
    assert weights[0] == 1
    assert weights[1] == 0
    with pytest.raises(RunError, check=coded("nothing_to_weigh")):
        fit_weights(-right, right[0].argmax(1))


def test_under_attack_the_robust_referee_has_most_of_the_weight() -> None:
    names, asked = ["emoji-robust", "emoji-vanilla-long"], {"limit": 12, "device": "cpu"}
    attacked = weigh(names, attack="l2:1.5@2", rounds=1, **asked)
    clean = weigh(names, attack="none", **asked)
    assert attacked["weights"]["emoji-robust"] > 0.8 > 0.7 > clean["weights"]["emoji-robust"]
    assert sum(attacked["weights"].values()) == pytest.approx(1, abs=2e-3)
    rows = attacked["rows"]
    assert list(rows) == [*names, "equal weights", "learned weights"]
    top = {name: row["l2:1.5@2"].value for name, row in rows.items()}
    assert top["learned weights"] > top["equal weights"] >= top["emoji-vanilla-long"]
    assert set(clean["rows"]["learned weights"]) == {"clean"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["emoji-robust"], "alone has nothing to be weighed against"),
        (["emoji-robust", "emoji-vanilla", "--attack", "l2:1.5@square"], "weighing an ensemble needs PGD"),
        (["emoji-robust", "emoji-vanilla", "--attack", "l2:1.5@5x3"], "one start per image"),
        (["emoji-robust", "emoji-vanilla", "--attack", "none", "--rounds", "5"], "leave out one of them"),
        (["emoji-robust", "emoji-robust"], "two referees are called"),
    ],
)
def test_faults_of_a_call(words: list[str], found: str) -> None:
    done = CliRunner().invoke(app, ["referees", "weigh", *words])
    assert isinstance(done.exception, UsageError)
    assert found in str(done.exception)


def test_the_command_prints_flags_of_synthesize() -> None:
    done = CliRunner().invoke(
        app, ["referees", "weigh", "emoji-robust", "emoji-vanilla", "--quick", "--attack", "none"]
    )
    assert done.exit_code == 0, done.output
    assert "learned weights" in done.output
    assert "next: robustclip synthesize clipag 'a cat' --referee emoji-" in done.output


def test_flags_have_a_referee_as_it_was_given(tmp_path: Path) -> None:
    """By its folder, whose path may have spaces: no registered referee has the name of its card."""
    entry = find("emoji-robust")
    assert entry is not None
    folder = tmp_path / "one of mine"
    shutil.copytree(entry.existing_folder(), folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"name": "mine"}))
    found = weigh([folder, "emoji-vanilla"], attack="none", quick=True, device="cpu")
    weight = found["weights"]["mine"]
    assert shlex.split(found["flags"])[:2] == ["--referee", f"{folder}={weight:g}"]


def test_one_image_is_too_few(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (64, 64), (200, 0, 0)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(UsageError) as caught:
        weigh(["emoji-robust", "emoji-vanilla"], data=str(tmp_path), device="cpu")
    assert caught.value.code == "too_few"
