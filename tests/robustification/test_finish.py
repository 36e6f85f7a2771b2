from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustclip.errors import RunError, UsageError, coded
from robustclip.recipes import with_flags
from robustclip.referees.base import TwoTower
from robustclip.referees.registry import load_referee
from robustclip.referees.toy import toy_referee
from robustclip.robustification.export import export
from robustclip.robustification.monitor import referee_at, save_trained
from robustclip.runs import checkpoint
from robustclip.runs.folder import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose best weights (seed 1) are not those of its end (seed 2)."""
    run = Run.create(tmp_path / "run", recipe="toy", arguments={"steps": 3})
    checkpoint.save_best(run.checkpoints, 2, {"ema": toy_referee(seed=1).image_tower.state_dict(), "best": 0.5})
    save_trained(toy_referee(seed=2), run, name="toy", threat=None, started_from=None, samples=6)
    return run


def test_the_last_weights_and_the_best(run: Run) -> None:
    images = torch.rand(2, 3, 16, 16)
    last, best = referee_at(run.folder, "last"), referee_at(run.folder, "best")
    assert torch.equal(last.embed_images(images), toy_referee(seed=2).embed_images(images))
    assert torch.equal(best.embed_images(images), toy_referee(seed=1).embed_images(images))
    assert best.card.provenance["checkpoint"] == {"which": "best", "step": 2, "accuracy": 0.5}
    assert "checkpoint" not in last.card.provenance
    assert best.card.weights == {}, "the hashes were of the last weights"


def test_a_run_without_a_best_checkpoint(run: Run) -> None:
    (run.checkpoints / "best-00000002.pt").unlink()
    with pytest.raises(UsageError, check=coded("no_best_checkpoint")):
        referee_at(run.folder, "best")


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe="toy", arguments={})
    run.fail("as told")
    with pytest.raises(UsageError, check=coded("no_trained_referee", status="failed"), match="--resume"):
        referee_at(run.folder, "best")


def test_a_checkpoint_of_another_tower(run: Run) -> None:
    checkpoint.save_best(run.checkpoints, 2, {"ema": {"weight": torch.zeros(1)}})
    with pytest.raises(RunError, check=coded("does_not_fit", path=str(run.checkpoints / "best-00000002.pt"))):
        referee_at(run.folder, "best")


def test_an_export_takes_either(run: Run, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 16, 16)
    for which, seed in (("last", 2), ("best", 1)):
        folder = export(run.folder, name="mine", to=tmp_path / which, checkpoint=which, register=False)  # type: ignore[arg-type]
        assert torch.equal(load_referee(folder).embed_images(images), toy_referee(seed=seed).embed_images(images))


def test_a_loop_with_the_flags_of_a_recipe() -> None:
    def training(referee: TwoTower, *, steps: int, lr: float, resume: bool, log_every: int = 10) -> TwoTower:
        called.append((steps, lr, resume, log_every))
        return referee

    called: list[tuple[int, float, bool, int]] = []
    arguments = {"referee": "toy", "steps": 3, "lr": 0.1, "out": None, "resume": None, "quick": False}
    with_flags(training, arguments)(toy_referee())
    with_flags(training, arguments | {"resume": Path("run"), "quick": True})(toy_referee(), lr=0.2)
    assert called == [(3, 0.1, False, 10), (3, 0.2, True, 1)]
