"""The training function on a toy referee: what it changes, what it leaves, what it writes, how it stops."""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustclip.attacks.threat import ThreatModel
from robustclip.data.samples import Batch
from robustclip.errors import Interrupted, RunError, UsageError, coded
from robustclip.referees.base import TwoTower
from robustclip.referees.openclip import build_image_tower
from robustclip.referees.toy import ToyText, toy_referee
from robustclip.robustification import adversarial, trainer
from robustclip.robustification.adversarial import AdversarialGradients, WarmStarts, refuse_warm_starts
from robustclip.robustification.energy import NegativeSamples, jem
from robustclip.robustification.losses import clip, fare
from robustclip.robustification.state import TrainingState, adamw, warmup_cosine
from robustclip.robustification.trainer import train
from robustclip.runs import checkpoint, distributed
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator

COLOURS = {"red": (1.0, 0.2, 0.2), "green": (0.2, 1.0, 0.2), "blue": (0.2, 0.2, 1.0), "grey": (0.5, 0.5, 0.5)}


class Colours:
    """Noisy squares of four colours, and their names; the first of some batches holds a pixel that is no number."""

    def __init__(self, size: int = 16, poisoned: Collection[int] = (), epoch: int = 1_000) -> None:
        self.size, self.poisoned, self.epoch = size, poisoned, epoch  # the ids come again after so many batches
        self.faults: Counter[str] = Counter()

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        k = start
        while True:
            noise = torch.rand(8, 3, self.size, self.size, generator=generator(0, "colours", k))
            images = (0.7 * torch.tensor([*COLOURS.values()] * 2).view(8, 3, 1, 1) + 0.3 * noise).clamp(0, 1)
            if k in self.poisoned:
                images = images.clone()
                images[0, 0, 0, 0] = torch.nan
            yield Batch(images, [*COLOURS] * 2, torch.arange(8) % 4, [f"{k % self.epoch}-{i}" for i in range(8)])
            k += 1

    def describe(self) -> dict[str, Any]:
        return {"source": "colours"}


class Unplugged(Colours):
    """The same, until the 18th batch."""

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        for k, batch in enumerate(super().batches(start), start):
            if k == 17:
                raise ConnectionError
            yield batch


class OneColour(Colours):
    """The same, but for one batch of a single colour."""

    def __init__(self, single: int) -> None:
        super().__init__()
        self.single = single

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        for k, batch in enumerate(super().batches(start), start):
            yield replace(batch, captions=["red"] * 8, positives=torch.zeros(8).long()) if k == self.single else batch


def settings(**changes: Any) -> dict[str, Any]:
    usual = {"threat": ThreatModel("l2", 0.5, 16), "steps": 30, "lr": 1e-2, "weight_decay": 0.0, "warmup": 2}
    return {**usual, "objective": clip(10.0), "ema": 0.5, "channels_last": False, **changes}


def fit(folder: Path, **changes: Any) -> tuple[TwoTower, Run]:
    referee = toy_referee()
    data = changes.pop("data", Colours())
    run = changes.pop("run", None) or Run.create(folder, recipe="test", arguments={})
    return train(referee, data, run=run, **settings(**changes)), run


def weights(referee: TwoTower) -> Tensor:
    return torch.cat([value.flatten() for value in referee.image_tower.state_dict().values()])


def test_loss_falls_on_adversarial_images_and_only_the_image_tower_moves(tmp_path: Path) -> None:
    before = toy_referee()
    referee, run = fit(tmp_path / "run", log_every=1)
    lines = run.metrics()
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["adversarial_similarity"] > lines[0]["adversarial_similarity"] + 0.1
    assert lines[-1]["clean_similarity"] > lines[-1]["adversarial_similarity"]
    assert not torch.equal(weights(referee), weights(before))
    torch.testing.assert_close(referee.embed_texts(["red"]), before.embed_texts(["red"]), rtol=0, atol=0)
    assert not referee.image_tower.training
    assert not any(parameter.requires_grad for parameter in referee.parameters())


def test_a_batch_of_one_concept_is_refused_at_the_start_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"have the same text|show one concept"):
        fit(tmp_path / "first", steps=2, data=OneColour(0))
    fit(tmp_path / "later", steps=2, data=OneColour(1))


def test_the_update_sees_images_inside_the_threat_model_that_raise_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked: list[tuple[Tensor, Tensor]] = []
    pgd = adversarial.pgd

    def watched(images: Tensor, *rest: Any, **options: Any) -> Tensor:
        attacked.append((images, pgd(images, *rest, **options)))
        return attacked[-1][1]

    monkeypatch.setattr(adversarial, "pgd", watched)
    referee, _ = fit(tmp_path / "run", steps=3)
    assert len(attacked) == 3
    texts = referee.embed_texts([*COLOURS] * 2)
    for clean, found in attacked:
        assert ThreatModel("l2", 0.5, 16).contains(found - clean).all()
        similar = [(referee.embed_images(images) * texts).sum(1).mean() for images in (clean, found)]
        assert similar[1] < similar[0]


class Monotone(Colours):
    """Pairs of one text, each a concept of its own."""

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        for batch in super().batches(start):
            yield Batch(batch.images, ["a photo"] * 8, torch.arange(8), batch.ids)


class Seven(Colours):
    """Batches of seven pairs."""

    def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
        for batch in super().batches(start):
            yield Batch(batch.images[:7], batch.captions[:7], batch.positives[:7], batch.ids[:7])


def test_data_without_a_contrast_is_refused_at_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("one_text")):
        fit(tmp_path / "run", data=Monotone())
    with pytest.raises(UsageError, check=coded("one_pair")):
        fit(tmp_path / "parts", accumulate=8, attack_negatives="local", frozen_statistics=True)
    with pytest.raises(UsageError, check=coded("one_pair", part=1)):  # 3, 3 and 1
        fit(tmp_path / "last", data=Seven(), accumulate=3, attack_negatives="local", frozen_statistics=True)
    fit(tmp_path / "fare", data=Monotone(), objective=fare(), steps=1)


def test_no_threat_is_clean_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "pgd", None)  # calling it would fail
    _, run = fit(tmp_path / "run", threat=None, steps=10, log_every=10)
    assert run.metrics()[-1]["clean_similarity"] == run.metrics()[-1]["adversarial_similarity"]


def test_clean_weight_adds_the_clean_loss(tmp_path: Path) -> None:
    losses = [fit(tmp_path / str(w), steps=1, clean_weight=w)[1].metrics()[0]["loss"] for w in (0.0, 1.0)]
    clean = fit(tmp_path / "clean", steps=1, threat=None)[1].metrics()[0]["loss"]
    assert losses[1] == pytest.approx(losses[0] + clean, rel=1e-5)


def test_fare_begins_at_its_target_and_leaves_it_for_robustness(tmp_path: Path) -> None:
    clean = fit(tmp_path / "clean", objective=fare(), threat=None, steps=3, log_every=1)[1].metrics()
    assert [line["loss"] for line in clean] == [0, 0, 0]  # the tower is the original, and nothing pulls it away
    attacked = fit(tmp_path / "attacked", objective=fare(), steps=30, log_every=1)[1].metrics()
    assert attacked[-1]["loss"] < 0.8 * attacked[0]["loss"]


def test_a_resumed_run_keeps_the_original_of_its_start(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole", objective=fare(), checkpoint_every=10)
    broken = Run.create(tmp_path / "broken", recipe="test", arguments={})
    with pytest.raises(ConnectionError):
        fit(tmp_path, run=broken, objective=fare(), checkpoint_every=10, data=Unplugged())
    resumed, _ = fit(tmp_path, run=Run.open(broken.folder), resume=True, objective=fare(), checkpoint_every=10)
    assert torch.equal(weights(resumed), weights(whole))


def test_momentum_and_step_size_reach_the_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    pgd = adversarial.pgd
    monkeypatch.setattr(adversarial, "pgd", lambda *given, **named: told.append(named) or pgd(*given, **named))
    fit(tmp_path / "run", steps=1, attack_momentum=0.9, step_size=0.05)
    assert (told[0]["momentum"], told[0]["step_size"]) == (0.9, 0.05)


def test_a_warm_attack_starts_where_the_sample_s_last_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Tensor, Tensor, Tensor]] = []  # clean, start, end
    pgd = adversarial.pgd

    def watched(images: Tensor, *rest: Any, start: Tensor, **options: Any) -> Tensor:
        found = pgd(images, *rest, start=start, **options)
        told.append((images, start, found))
        return found

    monkeypatch.setattr(adversarial, "pgd", watched)
    batch = next(Colours().batches())

    class Again:
        faults, describe = Colours().faults, Colours().describe

        def batches(self, start: int = 0, position: object = None) -> Any:
            while True:
                yield batch

    fit(tmp_path / "run", steps=3, warm_start=True, data=Again())
    for (clean, _, end), (_, start, _) in pairwise(told):
        torch.testing.assert_close(start, end - clean, rtol=0, atol=1e-3)  # kept in half precision
    assert not torch.allclose(told[0][1], told[1][1], atol=1e-3)


def test_a_resumed_run_remembers_its_warm_starts(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole", warm_start=True, checkpoint_every=10, data=Colours(epoch=3))
    broken = Run.create(tmp_path / "broken", recipe="test", arguments={})
    with pytest.raises(ConnectionError):
        fit(tmp_path, run=broken, warm_start=True, checkpoint_every=10, data=Unplugged(epoch=3))
    settings = {"warm_start": True, "checkpoint_every": 10, "data": Colours(epoch=3)}
    resumed, _ = fit(tmp_path, run=Run.open(broken.folder), resume=True, **settings)
    assert torch.equal(weights(resumed), weights(whole))


def test_the_oldest_warm_starts_are_forgotten_and_a_state_brings_all_back() -> None:
    kept = WarmStarts(most=2)
    for number in range(4):
        kept.keep(torch.full((1, 3, 2, 2), float(number)), [f"sample {number % 3}"])
    assert {one: float(end.mean()) for one, end in kept.ends.items()} == {"sample 2": 2.0, "sample 0": 3.0}
    again = WarmStarts(most=2)
    again.load_state_dict(kept.state_dict())
    assert list(again.ends) == list(kept.ends)
    again.load_state_dict(WarmStarts().state_dict())
    assert not again.ends


def test_warm_starts_are_of_one_process() -> None:
    refuse_warm_starts(1)
    with pytest.raises(UsageError, check=coded("one_process", processes=2)):
        refuse_warm_starts(2)


def test_another_maker_of_gradients_is_asked(tmp_path: Path) -> None:
    """Its images are what the log compares with the clean ones."""

    class Untouched(AdversarialGradients):
        def attacked(self, step: int, batch: Batch, *_: Any) -> Tensor:
            return batch.images

    line = fit(tmp_path / "run", steps=1, log_every=1, gradients_by=Untouched)[1].metrics()[0]
    assert line["clean_similarity"] == line["adversarial_similarity"]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    first, again, other = (fit(tmp_path / name, seed=seed)[0] for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole", checkpoint_every=10)
    broken = Run.create(tmp_path / "broken", recipe="test", arguments={})
    with pytest.raises(ConnectionError):
        fit(tmp_path, run=broken, checkpoint_every=10, data=Unplugged())
    resumed, _ = fit(tmp_path, run=Run.open(broken.folder), resume=True, checkpoint_every=10)
    assert torch.equal(weights(resumed), weights(whole))


def test_no_batch_is_taken_after_the_last_step(tmp_path: Path) -> None:
    _, run = fit(tmp_path / "run", steps=17, data=Unplugged())
    assert run.metrics()[-1]["step"] == 17


def test_a_resumed_run_takes_rate_and_weight_decay_of_its_own_call(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe="test", arguments={})
    with pytest.raises(ConnectionError):
        fit(tmp_path, run=run, checkpoint_every=10, data=Unplugged())
    again = {"lr": 1e-4, "weight_decay": 0.25, "steps": 50, "log_every": 1}
    fit(tmp_path, run=run, resume=True, **again)
    rates = {line["step"]: line["lr"] for line in run.metrics()}
    assert rates[20] == pytest.approx(1e-4 * 0.5 * (1 + math.cos(math.pi * 17 / 48)))  # of update 20, warm-up 2 steps
    last = checkpoint.load(checkpoint.checkpoints(run.checkpoints)[-1])
    assert [group["weight_decay"] for group in last["optimizer"]["param_groups"]] == [0.25, 0.0]

    def moved(lr: float) -> float:
        resumed = Run.create(tmp_path / f"{lr}", recipe="test", arguments={})
        before, _ = fit(tmp_path, run=resumed, steps=10, ema=0.0)
        after, _ = fit(tmp_path, run=resumed, steps=11, ema=0.0, resume=True, lr=lr)
        return (weights(after) - weights(before)).abs().max().item()

    assert moved(1e-8) < 1e-8 < 1e-6 < moved(1e-2)  # the first step after the resume, too


def test_a_run_resumes_with_warm_starts_that_are_new_and_not_to_fewer_steps_or_other_weights(tmp_path: Path) -> None:
    _, run = fit(tmp_path / "run", steps=4)
    with pytest.raises(UsageError, check=coded("beyond_steps", step=4, steps=3)):
        fit(tmp_path, run=run, steps=3, resume=True)
    fit(tmp_path, run=run, steps=6, resume=True, warm_start=True)
    assert run.metrics()[-1]["step"] == 6
    tower = toy_referee().image_tower
    next(tower.parameters()).requires_grad_(False)
    optimizer = adamw(tower, 1e-2, 0.0)
    state = TrainingState(tower, None, optimizer, {"schedule": warmup_cosine(optimizer, 2, 6)})
    with pytest.raises(UsageError, check=coded("other_weights")):
        state.restore(run, torch.device("cpu"), 6)


def test_a_resumed_run_draws_the_same_samples(tmp_path: Path) -> None:
    energetic = {"objective": jem(clip(10.0), 10.0, 1.0), "attack_objective": clip(10.0), "random_start": False}
    fit_settings = energetic | {"sampler": NegativeSamples(10.0, steps=2), "checkpoint_every": 4}
    whole, _ = fit(tmp_path / "whole", steps=8, **fit_settings)
    _, run = fit(tmp_path / "halves", steps=8, **fit_settings)
    (run.checkpoints / "checkpoint-00000008.pt").unlink()
    resumed, _ = fit(tmp_path / "halves", run=run, steps=8, resume=True, **fit_settings)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_step_that_is_not_finite_is_left_out_and_told(tmp_path: Path) -> None:
    referee, run = fit(tmp_path / "run", threat=None, data=Colours(poisoned=[0, 17]), log_every=1)
    assert [line["step"] for line in run.metrics() if line["loss"] is None] == [1, 18]
    told = run.record["warnings"]
    assert told[1].startswith("step 18 was skipped: its loss is nan")
    assert told[1].endswith("not finite are the embeddings of 17-0")
    assert run.record["notes"]["skipped_steps"] == 2
    assert weights(referee).isfinite().all()
    assert run.metrics()[-1]["loss"] < 0.7 * run.metrics()[1]["loss"]


def test_running_statistics_do_not_take_what_is_not_finite(tmp_path: Path) -> None:
    referee = toy_referee()
    referee.image_tower.insert(1, torch.nn.BatchNorm2d(8))  # type: ignore[operator]
    run = Run.create(tmp_path / "run", recipe="test", arguments={})
    train(referee, Colours(poisoned=[3]), run=run, **settings(steps=5, threat=None))
    assert weights(referee).isfinite().all()


def test_ten_bad_steps_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, check=coded("bad_steps", step=27, last="checkpoint-00000020.pt")):
        fit(tmp_path / "run", threat=None, data=Colours(poisoned=range(17, 30)), checkpoint_every=10)
    _, run = fit(tmp_path / "every other", threat=None, data=Colours(poisoned=range(0, 30, 2)))
    assert run.record["notes"]["skipped_steps"] == 15
    with pytest.raises(RunError, check=coded("bad_steps", step=10, last=None)):
        fit(tmp_path / "early", threat=None, data=Colours(poisoned=range(10)))


class Full(nn.Module):
    """A tower whose device has no room for the activations of more than `most` images."""

    def __init__(self, tower: nn.Module, most: int, error: Exception) -> None:
        super().__init__()
        self.tower, self.most, self.error = tower, most, error

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most and torch.is_grad_enabled():
            raise self.error
        return self.tower(images)


OF_CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
OF_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [OF_CUDA, OF_CPU], ids=["cuda", "cpu"])
def test_a_lack_of_memory_names_the_share_the_parts_and_what_needs_less(tmp_path: Path, error: Exception) -> None:
    run = Run.create(tmp_path / "run", recipe="clipag-vit-b32", arguments={})
    referee = toy_referee()
    referee.image_tower = Full(referee.image_tower, 3, error)
    with pytest.raises(RunError) as caught:
        train(referee, Colours(), run=run, **settings(accumulate=2, frozen_statistics=True, dtype=torch.float32))
    assert caught.value.code == "out_of_memory"
    assert caught.value.values == {
        "step": 1,
        "share": 8,
        "accumulate": 2,
        "plan": "robustclip plan clipag-vit-b32 --gpu here --count 1 --batch-size 8 --accumulate 4",
    }
    assert caught.value.__cause__ is error
    again = Run.create(tmp_path / "again", recipe="clipag-vit-b32", arguments={})
    train(referee, Colours(), run=again, **settings(accumulate=4, frozen_statistics=True, steps=1))


def test_other_errors_of_torch_pass_as_they_are(tmp_path: Path) -> None:
    referee = toy_referee()
    referee.image_tower = Full(referee.image_tower, 0, RuntimeError("CUDA error: misaligned address"))
    with pytest.raises(RuntimeError, match="misaligned") as caught:
        train(referee, Colours(), run=Run.create(tmp_path / "run", recipe="test", arguments={}), **settings())
    assert not isinstance(caught.value, RunError)


def test_a_probe_is_attacked_in_parts_of_the_trainings_size_to_the_same_numbers(tmp_path: Path) -> None:
    probe = next(Colours().batches(999))
    seen: list[int] = []

    def accuracies(name: str, accumulate: int) -> dict[str, float]:
        referee = toy_referee()
        referee.image_tower.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
        run = Run.create(tmp_path / name, recipe="test", arguments={})
        changes = settings(accumulate=accumulate, steps=1, probe=probe, evaluate_every=1, frozen_statistics=True)
        train(referee, Colours(), run=run, **changes)
        return {key: value for line in run.metrics() for key, value in line.items() if key.endswith("_accuracy")}

    whole = accuracies("whole", 1)
    count = len(seen)
    assert accuracies("parts", 4) == whole
    assert set(whole) == {"clean_accuracy", "weak_accuracy", "strong_accuracy"}
    in_parts = seen[count:]
    assert sum(size == 2 for size in in_parts) >= 4 * (2 + 20) * 2  # the attacks' passes, each with its second one


def test_skipped_samples_are_reported_by_kind(tmp_path: Path) -> None:
    data = Colours()
    data.faults.update({"truncated image": 3, "no caption": 1})
    _, run = fit(tmp_path / "run", steps=1, data=data)
    assert run.record["warnings"] == ["skipped samples: 3 truncated image, 1 no caption"]
    assert run.record["notes"]["skipped_samples"] == {"truncated image": 3, "no caption": 1}


def test_what_other_processes_skip_is_counted_and_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere: dict[str, Any] = {"dict": {"no caption": 2, "empty image": 1}, "list": ["another's"]}
    monkeypatch.setattr(distributed, "listed", lambda own: [own, elsewhere.get(type(own).__name__)])
    data = Colours(poisoned=[0])
    data.faults.update({"no caption": 3})
    _, run = fit(tmp_path / "run", steps=2, threat=None, data=data)
    assert run.record["notes"]["skipped_samples"] == {"no caption": 5, "empty image": 1}
    assert run.record["notes"]["data"]["odd_samples"] == elsewhere["dict"]
    assert run.record["warnings"][0].endswith("not finite are the embeddings of 0-0, another's")


def test_resuming_before_the_first_checkpoint_begins_at_the_first_step(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole")
    broken = Run.create(tmp_path / "broken", recipe="test", arguments={})
    with pytest.raises(ConnectionError):
        fit(tmp_path, run=broken, checkpoint_every=100, log_every=1, data=Unplugged())
    assert broken.metrics()
    resumed, run = fit(tmp_path, run=Run.open(broken.folder), resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert [line["step"] for line in run.metrics()] == [10, 20, 30]


def test_metrics_after_a_resume_are_those_of_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    probe = next(Colours().batches(1000))
    settings = {"checkpoint_every": 10, "log_every": 4, "probe": probe, "evaluate_every": 5}
    _, whole = fit(tmp_path / "whole", **settings)
    broken = Run.create(tmp_path / "broken", recipe="test", arguments={})
    with pytest.raises(ConnectionError):
        fit(tmp_path, run=broken, data=Unplugged(), **settings)
    _, run = fit(tmp_path, run=Run.open(broken.folder), resume=True, **settings)
    assert timeless(run) == timeless(whole)
    saved = [checkpoint.load(checkpoint.checkpoints(each.checkpoints)[-1]) for each in (run, whole)]
    assert saved[0]["alarm"] == saved[1]["alarm"]
    assert saved[0]["alarm"]["best_strong"] > 0
    assert saved[0]["best"] == saved[1]["best"]


def timeless(run: Run) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "data_wait")}
        for line in run.metrics()
    ]


def test_another_tower_cannot_resume_a_run(tmp_path: Path) -> None:
    _, run = fit(tmp_path / "run", steps=3)
    with pytest.raises(UsageError, check=coded("other_tower")):
        train(toy_referee(width=32), Colours(), run=run, **settings(), resume=True)


def test_a_signal_is_answered_with_a_checkpoint(tmp_path: Path) -> None:
    class Signalled(Colours):
        def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
            for k, batch in enumerate(super().batches(start), start):
                if k == 12 and start == 0:
                    signal.raise_signal(signal.SIGTERM)
                yield batch

    run = Run.create(tmp_path / "run", recipe="test", arguments={})
    with pytest.raises(Interrupted, match="stopped at step 13 of 30, after a checkpoint") as stopped:
        fit(tmp_path, run=run, data=Signalled(), checkpoint_every=100)
    assert stopped.value.signal == signal.SIGTERM
    assert [path.name for path in checkpoint.checkpoints(run.checkpoints)] == ["checkpoint-00000013.pt"]
    resumed, _ = fit(tmp_path, run=Run.open(run.folder), resume=True)
    assert torch.equal(weights(resumed), weights(fit(tmp_path / "whole")[0]))


def test_batch_statistics_of_parts_are_refused_and_frozen_ones_are_not(tmp_path: Path) -> None:
    def with_norm() -> TwoTower:
        referee = toy_referee()
        referee.image_tower.insert(1, torch.nn.BatchNorm2d(8))  # type: ignore[operator]
        return referee

    run = Run.create(tmp_path / "run", recipe="test", arguments={})
    with pytest.raises(UsageError, check=coded("batch_statistics")):
        train(with_norm(), Colours(), run=run, **settings(steps=3, accumulate=2))
    results = []
    for accumulate in (1, 2):
        run = Run.create(tmp_path / str(accumulate), recipe="test", arguments={})
        changed = settings(steps=3, accumulate=accumulate, frozen_statistics=True, dtype="float64")
        results.append(weights(train(with_norm(), Colours(), run=run, **changed)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-10)
    assert results[0].dtype == torch.float64


STEMS = {"vit": ["conv1", "class_embedding", "positional_embedding", "ln_pre"], "resnet": ["trunk.conv1", "trunk.bn1"]}


def of_open_clip(kind: str) -> TwoTower:
    """A small tower of open_clip, which has layer groups."""
    vision: dict[str, Any] = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 4, "image_size": 16}
    if kind == "resnet":
        vision = {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = build_image_tower({"embed_dim": 16, "vision_cfg": vision})
    return TwoTower(tower, ToyText(16), toy_referee().preprocess, card=toy_referee().card)


@pytest.mark.parametrize(("kind", "groups"), [("vit", 3), ("resnet", 4)])
def test_locked_groups_stay_as_they_were_and_the_rest_learns(kind: str, groups: int, tmp_path: Path) -> None:
    """In spite of weight decay and the average; also in a run that was resumed."""

    def trained(run: Run, **changes: Any) -> TwoTower:
        changed = settings(steps=6, weight_decay=0.5, locked_groups=groups, checkpoint_every=2, **changes)
        return train(of_open_clip(kind), changed.pop("data", Colours()), run=run, **changed)

    run = Run.create(tmp_path / "run", recipe="test", arguments={})
    before, after = dict(of_open_clip(kind).image_tower.named_parameters()), trained(run).image_tower.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved == {name for name in before if any(name.startswith(stem) for stem in STEMS[kind])}
    assert run.record["notes"]["trained_parameters"] == sum(before[name].numel() for name in moved)

    class Short(Colours):
        def batches(self, start: int = 0, position: dict[str, Any] | None = None) -> Iterator[Batch]:
            yield from islice(super().batches(start), 3)
            raise ConnectionError

    broken = Run.create(tmp_path / "broken", recipe="test", arguments={})
    with pytest.raises(ConnectionError):
        trained(broken, data=Short())
    resumed = trained(Run.open(broken.folder), resume=True).image_tower.state_dict()
    assert all(torch.equal(resumed[name], after[name]) for name in after)


def test_groups_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("no_layer_groups")):
        fit(tmp_path / "toy", locked_groups=1)
    for kind, groups in (("vit", 4), ("resnet", 5)):
        run = Run.create(tmp_path / kind, recipe="test", arguments={})
        with pytest.raises(UsageError, check=coded("all_groups_locked", groups=groups)):
            train(of_open_clip(kind), Colours(), run=run, **settings(locked_groups=groups))


def test_grad_checkpointing_changes_no_number(tmp_path: Path) -> None:
    results = []
    for flag in (False, True):
        run = Run.create(tmp_path / str(flag), recipe="test", arguments={})
        results.append(
            weights(train(of_open_clip("vit"), Colours(), run=run, **settings(steps=3, grad_checkpointing=flag)))
        )
    assert torch.equal(*results)
    with pytest.raises(UsageError, check=coded("no_activation_checkpoints")):
        fit(tmp_path / "toy", grad_checkpointing=True)


def test_float16_is_refused_and_auto_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("float16")):
        fit(tmp_path / "half", dtype="float16")
    run = Run.create(tmp_path / "run", recipe="test", arguments={})
    run.note(dtype="bfloat16")
    fit(tmp_path, run=run, dtype="auto", resume=True, steps=1)
    assert run.record["notes"]["dtype"] == "bfloat16"


def test_the_threat_model_must_be_meant_for_the_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("other_size", size=(16, 16))):
        fit(tmp_path / "run", threat=ThreatModel("l2", 0.5, 224))


def test_the_attack_leaves_batch_statistics_alone(tmp_path: Path) -> None:
    def with_norm() -> TwoTower:
        referee = toy_referee()
        referee.image_tower.insert(1, torch.nn.BatchNorm2d(8))  # type: ignore[operator]
        return referee

    counts = []
    for threat in (None, ThreatModel("l2", 0.5, 16)):
        referee = with_norm()
        run = Run.create(tmp_path / str(threat is None), recipe="test", arguments={})
        train(referee, Colours(), run=run, **settings(threat=threat, steps=5, attack_steps=3))
        counts.append(int(referee.image_tower[1].num_batches_tracked))  # type: ignore[index]
    assert counts[0] == counts[1]


def test_the_probe_is_measured_and_the_alarm_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = next(Colours().batches(1000))
    _, run = fit(tmp_path / "run", probe=probe, evaluate_every=15)
    measured = [line for line in run.metrics() if "strong_accuracy" in line]
    assert [line["step"] for line in measured] == [15, 30]
    assert measured[-1]["clean_accuracy"] >= measured[-1]["weak_accuracy"] >= measured[-1]["strong_accuracy"]
    assert "warnings" not in run.record

    falling = iter([(0.9, 0.8), (0.9, 0.1)])
    monkeypatch.setattr(
        trainer,
        "probe_accuracies",
        lambda *_, **__: dict(
            zip(("weak_accuracy", "strong_accuracy"), next(falling), strict=True), clean_accuracy=1.0
        ),
    )
    _, run = fit(tmp_path / "alarm", probe=probe, evaluate_every=15)
    assert (
        "overfits to its own attack: accuracy on the probe is 90.0% under PGD-2 and 10.0%" in run.record["warnings"][0]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_and_layouts(tmp_path: Path, dtype: torch.dtype) -> None:
    referee, run = fit(tmp_path / "run", dtype=dtype, channels_last=True, log_every=1)
    assert run.metrics()[-1]["loss"] < 0.8 * run.metrics()[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in referee.image_tower.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own imports
def test_a_compiled_tower_trains_to_the_same_weights(tmp_path: Path) -> None:
    plain, compiled = (fit(tmp_path / str(flag), steps=4, compile=flag)[0] for flag in (False, True))
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-3, atol=1e-4)


def test_of_another_size_the_attack_changes_a_pixel_as_much() -> None:
    tower = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pairs = Batch(
        0.3 + 0.4 * torch.rand(6, 3, 48, 48, generator=generator(0, "any size")),
        [""] * 6,
        torch.arange(6),
        list("abcdef"),
    )
    texts = torch.nn.functional.normalize(torch.randn(6, 8, generator=generator(1, "any size")), dim=1)
    settings: dict[str, Any] = {"tower": tower, "embed": tower, "objective": clip(10.0), "attack_steps": 3}
    threat = ThreatModel("l2", 0.5, 32)
    images, _ = AdversarialGradients(**settings, threat=threat, any_size=True)(0, pairs, texts)
    rms = (images - pairs.images).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.full((6,), threat.rms), rtol=0.05, atol=0)
    with pytest.raises(UsageError, check=coded("other_size", size=(48, 48))):
        AdversarialGradients(**settings, threat=threat)(0, pairs, texts)


@pytest.mark.parametrize(("any_size", "side"), [(False, 16), (True, 32)])
def test_images_of_any_size_reach_the_tower_as_they_are(tmp_path: Path, any_size: bool, side: int) -> None:
    referee, seen = toy_referee(), set[int]()
    referee.image_tower = nn.Sequential(nn.Conv2d(3, 16, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    referee.image_tower[0].register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].shape[-1]))
    run = Run.create(tmp_path / "run", recipe="test", arguments={})
    train(referee, Colours(32), run=run, **settings(steps=1, any_size=any_size, threat=ThreatModel("linf", 0.1, 16)))
    assert seen == {side}
