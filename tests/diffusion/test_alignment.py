"""Adapters and MI-TUNE: what is trained, chosen, saved and read back."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from robustclip.diffusion.adapters import (
    CARD,
    AdapterTrainer,
    AlignmentPool,
    add_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    trainable,
)
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.selection import Selection, chosen_of
from robustclip.diffusion.stable import PREDICTIONS, CLIPStates, LatentDiffusion, base_digest
from robustclip.errors import RunError, UsageError, coded
from robustclip.recipes import find, run
from robustclip.runs.rng import generator
from robustclip.signatures import typed

from .tiny import tiny_pipeline

SMALL: dict[str, Any] = {"samples": 5, "keep": 2, "steps": 3, "guidance": 2.0, "size": (16, 16), "batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline") / "sd"
    tiny_pipeline(path)
    return path


@pytest.fixture
def model(folder: Path) -> LatentDiffusion:
    return load_diffusion(folder)


def drawn_of(model: LatentDiffusion) -> torch.Tensor:
    """All samples of "a cat"."""
    return Selection(**SMALL).drawn(model, "a cat", 0)[0]


def brightness(images: torch.Tensor, _: str) -> torch.Tensor:
    return images.mean((1, 2, 3))


def refuse(_: torch.Tensor, text: str) -> torch.Tensor:
    pytest.fail(f"{text} is sampled again")


def noise_of(model: LatentDiffusion) -> torch.Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = model.embed_prompts(["a cat"])
    return model.predict_noise(latents, torch.tensor([300]), given, model.embed_prompts([""]), 3.0)


def trained(model: LatentDiffusion, steps: int = 3, **settings: Any) -> AdapterTrainer:
    trainer = AdapterTrainer(model, steps=steps, lr=1e-2, **settings)
    pool = AlignmentPool((torch.randn(2, 4, 8, 8, generator=generator(0, "latents")), ["a cat", "a dog"]))
    while trainer.done < steps:
        stream = generator(0, "alignment", trainer.done)
        trainer.step(*pool.batch(4, stream), stream)
    return trainer


@pytest.mark.parametrize(("dora", "text"), [(True, True), (True, False), (False, False)])
def test_an_adapter_changes_nothing_at_first_and_is_all_that_trains(
    model: LatentDiffusion, dora: bool, text: bool
) -> None:
    before, base = noise_of(model), [base_digest(one) for one in (model.unet, model.texts.tower)]
    parameters = add_adapter(model, rank=2, alpha=2, dora=dora, text=text)
    assert torch.allclose(noise_of(model), before, atol=1e-5)
    names = [name for name, _ in trainable(model)]
    assert len(names) == len(parameters)
    assert any("magnitude" in name for name in names) == dora
    states = model.embed_prompts(["a cat"]).states
    trained(model)
    assert not torch.allclose(noise_of(model), before, atol=1e-3)
    assert torch.allclose(model.embed_prompts(["a cat"]).states, states, atol=1e-3) != text
    assert [base_digest(one) for one in (model.unet, model.texts.tower)] == base
    with pytest.raises(UsageError, check=coded("has_adapter")):
        add_adapter(model)


@pytest.mark.parametrize(("dora", "text"), [(True, True), (False, True), (True, False)])
def test_a_saved_adapter_is_read_by_diffusers_by_us_and_merged(
    model: LatentDiffusion, folder: Path, dora: bool, text: bool, tmp_path: Path
) -> None:
    add_adapter(model, rank=2, alpha=2, dora=dora, text=text)
    trained(model)
    expected = noise_of(model)
    save_adapter(model, tmp_path / "adapter", {"recipe": "test"})

    again = load_diffusion(folder)
    load_adapter(again, tmp_path / "adapter")
    assert torch.allclose(noise_of(again), expected, atol=1e-5)
    assert not trainable(again)

    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.load_lora_weights(tmp_path / "adapter")
    again.unet, again.texts = theirs.unet, CLIPStates(theirs.text_encoder, theirs.tokenizer)
    assert torch.allclose(noise_of(again), expected, atol=1e-5)

    merge_adapter(model)
    assert torch.allclose(noise_of(model), expected, atol=1e-5)
    assert not any("lora" in name for name in model.unet.state_dict())


def test_an_adapter_of_another_denoiser_is_refused(model: LatentDiffusion, folder: Path, tmp_path: Path) -> None:
    add_adapter(model, rank=2, alpha=2)
    save_adapter(model, tmp_path / "adapter", {})
    other = load_diffusion(folder)
    with torch.no_grad():
        next(other.unet.parameters()).add_(1)
    with pytest.raises(UsageError, check=coded("adapter_of_another_model", part="denoiser")):
        load_adapter(other, tmp_path / "adapter")
    with pytest.raises(UsageError, check=coded("no_adapter")):
        load_adapter(other, tmp_path)
    card = json.loads((tmp_path / "adapter" / CARD).read_text())
    (tmp_path / "adapter" / CARD).write_text(json.dumps({**card, "weights_sha256": "0" * 64}))
    with pytest.raises(UsageError, check=coded("other_hash")):
        load_adapter(load_diffusion(folder), tmp_path / "adapter")


def test_the_gradient_is_clipped_and_accumulated(model: LatentDiffusion) -> None:
    add_adapter(model, rank=2, alpha=2)
    texts = ["a cat"] * 4
    latents = 10 * torch.randn(4, 4, 8, 8, generator=generator(0, "latents"))
    numbers = {}
    for at_once in (1, 4):
        trainer = AdapterTrainer(model, steps=1, lr=0.0, clip=1e-3, at_once=at_once)
        numbers[at_once] = trainer.step(latents, texts, generator(0, "x"))
        clipped = torch.stack([one.grad.norm() for one in trainer.parameters if one.grad is not None]).norm()
        assert float(clipped) == pytest.approx(1e-3, rel=1e-2)
        assert numbers[at_once]["grad_norm"] > 1e-2
    assert numbers[1] == pytest.approx(numbers[4], rel=1e-4)
    free = AdapterTrainer(model, steps=1, lr=0.0, clip=None)
    free.step(latents, texts, generator(0, "x"))
    whole = torch.stack([one.grad.norm() for one in free.parameters if one.grad is not None]).norm()
    assert float(whole) == pytest.approx(numbers[4]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_of_what_the_denoiser_predicts(prediction: str, model: LatentDiffusion) -> None:
    model.prediction = prediction
    add_adapter(model, rank=2, alpha=2)  # which changes nothing at first
    latents, stream = torch.randn(2, 4, 8, 8, generator=generator(0, "latents")), generator(0, "x")
    noise, times = torch.randn(latents.shape, generator=stream), torch.randint(model.steps, (2,), generator=stream)
    kept = model.alphas_cumprod[times].view(-1, 1, 1, 1)
    signal, deviation = kept.sqrt(), (1 - kept).sqrt()
    wanted = {"epsilon": noise, "sample": latents, "v_prediction": signal * noise - deviation * latents}[prediction]
    with torch.no_grad():
        output = model._run(signal * latents + deviation * noise, times, model.embed_prompts(["a cat"] * 2))
    found = AdapterTrainer(model, steps=1, lr=0.0).step(latents, ["a cat"] * 2, generator(0, "x"))
    assert found["loss"] == pytest.approx(float((output - wanted).square().mean()), rel=1e-4)


def test_training_goes_on_bit_by_bit(folder: Path) -> None:
    whole, part, rest = (load_diffusion(folder) for _ in range(3))
    for one in (whole, part, rest):
        add_adapter(one, rank=2, alpha=2)
    trained(whole, 4)
    state = trained(part, 2).state()
    trainer = AdapterTrainer(rest, steps=4, lr=1e-2)
    trainer.load(state)
    pool = AlignmentPool((torch.randn(2, 4, 8, 8, generator=generator(0, "latents")), ["a cat", "a dog"]))
    while trainer.done < 4:
        stream = generator(0, "alignment", trainer.done)
        trainer.step(*pool.batch(4, stream), stream)
    assert torch.equal(noise_of(rest), noise_of(whole))
    slower = AdapterTrainer(rest, steps=4, lr=1e-5)
    slower.load(state)
    assert [group["lr"] for group in slower.optimiser.param_groups] == [1e-5]
    with pytest.raises(UsageError, check=coded("other_checkpoint")):
        trainer.load({"adapters": {}})


def test_the_best_samples_are_kept_whatever_the_batch(model: LatentDiffusion) -> None:
    latents, scores = Selection(**SMALL).choose(model, "a cat", 0)
    assert latents.shape == (2, 4, 8, 8)
    assert scores.shape == (5,)
    again, same = Selection(**{**SMALL, "batch_size": 5}).choose(model, "a cat", 0)
    assert torch.allclose(scores, same, rtol=1e-4)
    assert torch.allclose(latents, again, atol=1e-4)
    everything, _ = Selection(**{**SMALL, "keep": 5}).choose(model, "a cat", 0)
    assert torch.allclose(everything[:2], latents)
    brightest, found = Selection(**SMALL, by=brightness).choose(model, "a cat", 0)
    assert float(model.decode(brightest[:1]).clamp(0, 1).mean()) == pytest.approx(float(found.max()), abs=1e-4)
    chance = Selection(**SMALL, by="random").choose(model, "a cat", 0)[1]
    assert torch.equal(chance, Selection(**SMALL, by="random").choose(model, "a cat", 0)[1])
    assert Selection(**SMALL, by="gap").choose(model, "a cat", 0)[1].isfinite().all()
    broken = iter([math.nan, 2.0, math.nan, 1.0, 3.0])

    def some(images: torch.Tensor, _: str) -> torch.Tensor:
        return torch.tensor([next(broken) for _ in images])

    assert torch.allclose(Selection(**SMALL, by=some).choose(model, "a cat", 0)[0], drawn_of(model)[[4, 1]], atol=1e-4)


def test_what_was_chosen_is_not_sampled_again(model: LatentDiffusion, tmp_path: Path) -> None:
    first = chosen_of(Selection(**SMALL), model, "a cat", 3, tmp_path)
    (path,) = tmp_path.iterdir()
    assert load_file(path)["scores"].shape == (5,)
    never = Selection(**SMALL, by=refuse)
    assert torch.equal(chosen_of(never, model, "a cat", 3, tmp_path), first)
    path.write_bytes(b"damaged")
    with pytest.raises(RunError, check=coded("damaged", path=path)):
        chosen_of(never, model, "a cat", 3, tmp_path)


def test_samples_of_a_pool_are_shared_by_selections(model: LatentDiffusion, tmp_path: Path) -> None:
    asked = {**SMALL, "pool": tmp_path}
    few = Selection(**{**asked, "samples": 3}).drawn(model, "a cat", 0)
    more = Selection(**asked).drawn(model, "a cat", 0)
    fresh = Selection(**SMALL).drawn(model, "a cat", 0)
    for first, second, third in zip(few, more, fresh, strict=True):
        assert torch.equal(first, second[:3])
        assert torch.allclose(second, third, atol=1e-4)
    (path,) = tmp_path.rglob("*.safetensors")
    before = path.stat().st_mtime_ns
    brightest = [Selection(**one, by=brightness).choose(model, "a cat", 0)[0] for one in (asked, SMALL)]
    assert torch.allclose(*brightest, atol=1e-4)
    assert path.stat().st_mtime_ns == before
    gaps = Selection(**asked, by="gap").choose(model, "a cat", 0)
    (kept,) = tmp_path.rglob("*.gap.safetensors")
    save_file({"scores": gaps[1].flip(0)}, kept)  # so that a second computation would show
    add_adapter(model, rank=2, alpha=2)  # a new one changes nothing: the same pool
    assert torch.equal(Selection(**asked, by="gap").choose(model, "a cat", 0)[1], gaps[1].flip(0))
    kept.unlink()
    Selection(**{**asked, "guidance": 3.0}).drawn(model, "a cat", 0)
    Selection(**asked).drawn(model, "a cat", 0, round_=2)  # of another model by then: not kept
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_pool_mixes_real_pictures_in(model: LatentDiffusion) -> None:
    pool = AlignmentPool((torch.zeros(1, 4, 2, 2), ["a cat"]), (torch.ones(1, 4, 2, 2), ["a dog"]), 0.25)
    latents, prompts = pool.batch(8, generator(0, "x"))
    assert float(latents.mean()) == pytest.approx(0.25)
    assert prompts == ["a cat"] * 6 + ["a dog"] * 2


def test_the_recipe_writes_an_adapter_and_resumes_to_the_same(folder: Path, tmp_path: Path) -> None:
    recipe, run_folder = typed(find("mi-tune", "align").function), tmp_path / "run"
    call = {"model": str(folder), "size": 16, "quick": True, "rounds": 2, "real_share": 0.25, "device": "cpu"}
    numbers = recipe(**call, merge=True, out=run_folder)
    assert len(list((run_folder / "rounds" / "2").glob("*.safetensors"))) == 2
    assert json.loads((run_folder / "rounds" / "1" / "adapter" / CARD).read_text())["steps"] == 2
    assert (run_folder / "pictures.png").is_file()
    assert json.loads((run_folder / "adapter" / CARD).read_text())["steps"] == 4
    assert (run_folder / "unet" / "config.json").is_file()
    adapted = load_diffusion(folder)
    before = noise_of(adapted)
    load_adapter(adapted, run_folder / "adapter")
    assert not torch.equal(noise_of(adapted), before)
    (run_folder / "checkpoints" / "checkpoint-00000004.pt").unlink()  # as if it had been killed in the last round
    again = recipe(**call, resume=run_folder)
    assert again["prompts"] == numbers["prompts"] == 2
    first, second = (load_file(Path(one["adapter"]) / "pytorch_lora_weights.safetensors") for one in (numbers, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({"samples": 2, "keep": 3}, coded("out_of_range", argument="keep", given=3)),
        ({"stop_by": "emoji-judge"}, coded("no_validation")),
        ({"adapt_text": True, "merge": True}, coded("clash")),
        ({"steps": 5, "validate_every": 6, "quick": False}, coded("no_validation", validate_every=6, steps=5)),
        ({"by": "nobody"}, coded("unknown_referee", given="nobody")),
        ({"model": "nowhere"}, coded("unknown_diffusion_model", given="nowhere")),
    ],
)
def test_impossible_calls_are_refused(given: dict[str, Any], check) -> None:
    with pytest.raises(UsageError, check=check):
        run("mi-tune", "align", {"quick": True, "device": "cpu", **given})


def test_the_best_validation_is_taken_back_also_after_a_resume(model: LatentDiffusion, folder: Path) -> None:
    add_adapter(model, rank=2, alpha=2)
    trainer = AdapterTrainer(model, steps=4, lr=1e-2)
    pool = AlignmentPool((torch.randn(2, 4, 8, 8, generator=generator(0, "latents")), ["a cat", "a dog"]))
    noise = {}
    trainer.judge(math.nan)  # never the best
    for score in (1.0, 3.0, 2.0):
        stream = generator(0, "alignment", trainer.done)
        trainer.step(*pool.batch(4, stream), stream)
        trainer.judge(score)
        noise[trainer.done] = noise_of(model)
    again = load_diffusion(folder)
    add_adapter(again, rank=2, alpha=2)
    other = AdapterTrainer(again, steps=4)
    other.load(trainer.state())
    for one, own in ((trainer, model), (other, again)):
        assert one.take_best() == 2
        assert torch.equal(noise_of(own), noise[2])
    trainer.begin(1, 3)  # goes on with this round
    assert trainer.best is not None
    trainer.begin(2, 3)
    assert trainer.best is None


def test_a_stopping_judge_keeps_the_step_it_likes_best(folder: Path, tmp_path: Path) -> None:
    call = {"model": str(folder), "size": 16, "quick": True, "device": "cpu", "validate_every": 1}
    out = tmp_path / "run"
    run("mi-tune", "align", {**call, "stop_by": "emoji-judge", "out": out})
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["validation"] for line in lines if "validation" in line}
    assert list(scores) == [1, 2]
    assert json.loads((out / "adapter" / CARD).read_text())["steps"] == max(scores, key=scores.__getitem__)
    assert len(list((out / "validation").iterdir())) == 2


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(folder: Path, tmp_path: Path) -> None:
    """They share samples and batches; what is drawn does not depend on their number."""
    config = tmp_path / "two.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nuse_cpu: true\nmixed_precision: 'no'\n"
        "num_machines: 1\nnum_processes: 2\nmain_process_port: 0\n"
    )
    call = ["align", "mi-tune", "--model", str(folder), "--size", "16", "--quick", "--device", "cpu", "--by", "mi"]
    two, one = tmp_path / "two", tmp_path / "one"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "robustclip"]
    done = subprocess.run(
        [sys.executable, *launch, *call, "--out", str(two)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run("mi-tune", "align", {"model": str(folder), "size": 16, "quick": True, "device": "cpu", "by": "mi", "out": one})
    for name in (
        "rounds/1/000000.safetensors",
        "rounds/1/000001.safetensors",
        "adapter/pytorch_lora_weights.safetensors",
    ):
        found, expected = (load_file(out / name) for out in (two, one))
        assert found.keys() == expected.keys()
        for key, values in expected.items():  # by norm: a chain and AdamW amplify the rounding of single elements
            difference = (found[key] - values).norm() / values.norm()
            assert difference < 0.05, f"{name} {key}: {difference:.1e}"


def test_the_embedded_text_tower_is_adapted_and_read_back(tmp_path: Path) -> None:
    """Its layers have BERT's names, which diffusers does not read."""
    model, again = load_diffusion("emoji-diffusion"), load_diffusion("emoji-diffusion")
    before = model.embed_prompts(["a cat"]).states
    add_adapter(model, rank=2, alpha=2, text=True)
    with torch.no_grad():
        for name, one in trainable(model):
            one.add_(0.1 * name.startswith("text_encoder"))
    save_adapter(model, tmp_path / "adapter", {})
    load_adapter(again, tmp_path / "adapter")
    states = model.embed_prompts(["a cat"]).states
    assert not torch.allclose(states, before, atol=1e-2)
    assert torch.allclose(again.embed_prompts(["a cat"]).states, states, atol=1e-5)
