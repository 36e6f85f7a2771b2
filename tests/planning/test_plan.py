"""The plan as its caller meets it: flags, faults, the table, the numbers and the command."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import robustclip
from robustclip.cli import app
from robustclip.errors import UsageError, coded
from robustclip.planning import costs, towers
from robustclip.planning.plan import Estimate
from robustclip.planning.settings import GPUS, PRICES_OF, count_of, known_gpu
from robustclip.planning.towers import blueprint

CHEAP = {"gpu": "a100", "samples": "128k"}


def plan(recipe: str = "emoji", **arguments: Any) -> Estimate:
    return robustclip.plan(recipe, **(CHEAP | arguments))


def shown(estimate: Estimate) -> str:
    console = Console(width=1000, file=io.StringIO(), record=True)
    console.print(estimate.table())
    return console.export_text()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("100M", 10**8),
        ("5k", 5000),
        ("1.2B", 1_200_000_000),
        ("4.1M", 4_100_000),
        ("4096", 4096),
        ("20_000", 20_000),
        (7, 7),
        (" 2 m", None),
    ],
)
def test_samples_as_people_write_them(text: object, number: int | None) -> None:
    if number is None:
        with pytest.raises(ValueError, match="as in 100M"):
            count_of(text)
    else:
        assert count_of(text) == number


@pytest.mark.parametrize("text", ["", "0", "-5", "1.5", "1e9", "nan", "9" * 40, "100MB", "١٠M", "1.2345k", "2 m"])
def test_what_is_no_number_of_samples(text: str) -> None:
    with pytest.raises(ValueError, match="whole number above 0"):
        count_of(text)


@pytest.mark.parametrize(
    ("written", "name"), [("H100", "h100"), ("a100", "a100-80gb"), ("RTX 4090", "rtx4090"), ("here", "here")]
)
def test_gpus_by_what_people_call_them(written: str, name: str) -> None:
    assert known_gpu(written) == name


def test_the_table_of_gpus_is_of_plausible_numbers() -> None:
    for name, gpu in GPUS.items():
        assert 1.5 < gpu.half / gpu.single < 40, name
        assert 10 < gpu.memory < 300, name
        assert 0.1 < gpu.price < 10, name


def test_hours_and_cost_are_what_the_table_says() -> None:
    found = plan(count=2, mfu=0.5, price=3.0, frozen_statistics=True)
    assert found.settings.steps == 1000
    assert found.total_flops == pytest.approx(found.step.total * 1000)
    sent = found.sent.total / 300e9  # bytes per second of an A100's NVLink
    assert 0 < sent < 1e-3
    expected = (found.total_flops / (312e12 * 0.5 * 2) + 1000 * sent) / 3600
    assert found.hours == pytest.approx(expected)
    assert found.cost == pytest.approx(expected * 2 * 3.0)
    assert found.images_per_second == pytest.approx(128 / (expected * 3600 / 1000))


def test_what_is_sent_is_in_the_table_and_takes_time() -> None:
    alone, slow = plan(count=1), plan(count=2, frozen_statistics=True, bandwidth=0.001)
    assert alone.sent.total == 0
    assert "sent per step" not in shown(alone)
    assert slow.sent.gradients == 4 * slow.trained_parameters
    assert slow.seconds_per_step > slow.sent.total / 1e6
    assert "0.001 GB/s (--bandwidth)" in " ".join(slow.assumptions())
    assert "sent per step" in shown(slow)


def test_captions_are_read_in_float32() -> None:
    found = plan(objective="clip", mfu=0.5)
    gpu = GPUS["a100-80gb"]
    images = (found.step.total - found.step.captions) / (gpu.half * 0.5e12)
    assert found.seconds_per_step == pytest.approx(images + found.step.captions / (gpu.single * 0.7e12))
    assert found.step.captions > 0


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_cfg": {}}', '{"model_cfg": {"vision_cfg": 3}}'])
def test_a_folder_whose_config_is_none_of_open_clip_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(UsageError, check=coded("not_open_clip")):
        blueprint(str(tmp_path))


def test_a_config_without_preprocessing_has_the_size_of_its_tower(tmp_path: Path) -> None:
    config = {"model_cfg": {"vision_cfg": {"image_size": 64}}, "preprocess_cfg": None}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert blueprint(str(tmp_path)).size == (64, 64)


def test_a_gpu_without_bfloat16_computes_in_float32() -> None:
    found = plan(gpu="v100")
    assert found.dtype == "float32"
    assert found.flops_per_second == pytest.approx(0.7 * 15.7e12)


def test_flags_of_the_recipe_change_the_plan() -> None:
    few, many = plan(attack_steps=1), plan(attack_steps=4)
    assert many.step.attack == 4 * few.step.attack
    assert plan(batch_size=256).step.update == 2 * few.step.update
    assert plan(samples=None, steps=7).settings.samples == 7 * 128


def test_locked_groups_cost_no_gradients_and_no_moments() -> None:
    whole, shallow = plan(), plan(locked_groups=4)
    assert whole.trained_parameters == whole.parameters == shallow.parameters
    assert shallow.trained_parameters == 100_216  # of resnet10t's stem and first stage
    assert shallow.memory.held["moments of AdamW"] == 8 * 100_216
    assert shallow.step.attack == whole.step.attack
    assert shallow.step.update < 0.9 * whole.step.update
    assert "0.10M of them trained" in shown(shallow)


def test_an_ablation_is_planned_as_what_it_varies() -> None:
    found = plan("clipag-linf", samples="1M", count=8)
    assert found.settings.start == "ViT-B-32:laion2b_s34b_b79k", "a default of the recipe it varies"
    assert found.settings.evaluate_every == 500
    assert found.size == (224, 224)


@pytest.mark.slow
def test_grouped_convolutions_are_told() -> None:
    found = plan("clipag-convnext", samples="1M", count=8)
    assert found.settings.start == "convnext_base_w:laion2b_s13b_b82k", "what the ablation changes"
    assert found.size == (256, 256)
    assert "grouped convolutions" in " ".join(found.assumptions())


@pytest.mark.slow
def test_a_tower_far_too_large_is_planned_without_its_weights() -> None:
    found = plan("clipag-vit-b32", start="ViT-bigG-14:laion2b_s39b_b160k", batch_size=4096, count=8, evaluate_every=0)
    assert found.parameters > 1.8e9
    assert not found.fits
    assert found.enough_accumulation is not None
    assert f"does NOT fit: --accumulate {found.enough_accumulation}, or --batch-size" in shown(found)
    again = plan(
        "clipag-vit-b32",
        start="ViT-bigG-14:laion2b_s39b_b160k",
        batch_size=4096,
        count=8,
        evaluate_every=0,
        accumulate=found.enough_accumulation,
    )
    assert again.fits
    assert again.step.recomputed > 0


BIG = {"gpu": "t4", "frozen_statistics": True}


def test_the_largest_batch_that_fits_is_named_and_the_next_one_does_not_fit() -> None:
    found = plan(batch_size=2**17, **BIG)
    assert not found.fits
    assert found.largest_batch > 0
    assert f"--batch-size {found.largest_batch} ({found.largest_batch:,} on each GPU)" in shown(found)
    at_most = plan(batch_size=found.largest_batch, **BIG)
    assert at_most.fits
    assert at_most.largest_batch == found.largest_batch
    assert f"fits, as does --batch-size {found.largest_batch} (" in shown(at_most)
    assert not plan(batch_size=found.largest_batch + 1, **BIG).fits


def test_parts_fit_larger_batches_over_all_gpus() -> None:
    found = plan(batch_size=2**22, count=4, **BIG)
    assert found.enough_accumulation is None
    batch, parts = found.largest_in_parts
    assert batch > found.largest_batch
    assert batch % 4 == found.largest_batch % 4 == 0
    assert f"--batch-size {batch} --accumulate {parts} ({batch // 4:,} on each GPU)" in shown(found)
    assert plan(batch_size=batch, accumulate=parts, count=4, **BIG).fits


def test_gpus_share_the_probe_of_a_large_batch() -> None:
    few, many = (plan("clipag-vit-b32", gpu="h100", count=count, batch_size=8192) for count in (8, 64))
    assert many.fits
    assert many.step.watching < 1.1 * few.step.watching  # each computes the N x N products


def test_the_table_says_what_is_assumed_and_how_to_run_it() -> None:
    found = plan(count=2, attack_steps=3, frozen_statistics=True)
    text = shown(found)
    for sentence in found.assumptions():
        assert sentence in text.replace("\n", " ")
    assert "indicative" in text
    assert PRICES_OF in text
    assert found.command in text


def test_the_command_is_one_that_the_command_line_takes() -> None:
    found = plan(count=16, attack_steps=3, frozen_statistics=True, batch_size=256, name="a-name")
    words = shlex.split(found.command)
    launcher, run = words[: words.index("-m")], words[words.index("robustclip") + 1 :]
    assert launcher[:4] == ["accelerate", "launch", "--num_processes", "16"]
    assert launcher[launcher.index("--num_machines") + 1] == "2"
    context = app.make_context("robustclip", run[:1], resilient_parsing=True)
    group = app.get_command(context, "robustify")
    command = group.get_command(context, run[1])  # type: ignore[attr-defined]
    bound = command.make_context(run[1], run[2:]).params["arguments"]
    assert bound["steps"] == found.settings.steps == 500
    assert (bound["attack_steps"], bound["frozen_statistics"], bound["name"]) == (3, True, "a-name")


def test_json_holds_every_number(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    flags = ["--gpu", "l40s", "--samples", "1M", "--json", str(file)]
    done = CliRunner().invoke(app, ["plan", "emoji", *flags], catch_exceptions=False)
    assert done.exit_code == 0
    assert "time of the run" in done.stdout
    numbers = json.loads(file.read_text())
    assert numbers["settings"]["steps"] == 7813
    assert numbers["memory"]["peak"] == pytest.approx(
        sum(numbers["memory"]["held"].values())
        + sum(numbers["memory"]["moments"][numbers["memory"]["fullest"]].values())
    )
    for name in ("total_flops", "hours", "cost", "fits", "command", "assumptions"):
        assert numbers[name] is not None


def test_here_a_step_is_measured() -> None:
    found = plan(gpu="here", device="cpu", dtype="float32", batch_size=4, samples="4k", attack_steps=1)
    assert found.measured is not None
    assert found.measured.images == 4
    assert found.flops_per_second == found.measured.flops_per_second > 1e8
    assert found.cost is None
    assert "Measured here: 4 images per step on cpu" in shown(found)
    assert (
        plan(gpu="here", device="cpu", dtype="float32", batch_size=4, samples="4k", attack_steps=1, price=0.5).cost
        is not None
    )


@pytest.mark.parametrize("recipe", ["emoji", "emoji-trades", "emoji-fare", "emoji-agft", "emoji-jem"])
def test_speed_is_that_of_the_passes_that_are_timed(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "_fastest", lambda step, _: costs.counted(step) or 1)  # a FLOP takes a second
    found = plan(recipe, gpu="here", device="cpu", dtype="float32", batch_size=2, samples="4k", attack_steps=1)
    assert found.flops_per_second == pytest.approx(1)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        plan(gpu="h1000", samples="many", count=0, mfu=1.5, attack_steps=-1, stpes=3)
    said = str(caught.value)
    for fault in ("6 faults", "gpu= 'h1000'", "h100", "samples= 'many'", "count= 0", "mfu= 1.5", "attack_steps= -1"):
        assert fault in said
    assert "stpes=: unknown argument" in said


@pytest.mark.parametrize(
    ("arguments", "check"),
    [
        ({"quick": True}, coded("no_plan")),
        ({"samples": 0}, lambda error: "samples= 0" in str(error)),
        ({"fsdp": True}, coded("one_gpu")),
        ({"gpu": "t4", "dtype": "bfloat16"}, coded("unsupported_dtype", dtype="bfloat16", gpu="t4")),
        ({"dtype": "float16"}, coded("unknown_dtype", dtype="float16")),
        ({"count": 3, "frozen_statistics": True}, coded("not_divisible", argument="batch_size", given=128)),
        ({"count": 2}, coded("batch_statistics")),
        ({"accumulate": 2}, coded("batch_statistics")),
        ({"start": "hf-hub:some/model"}, coded("unknown_architecture", start="hf-hub:some/model")),
        ({"start": "nowhere"}, coded("unknown_architecture", start="nowhere")),
        ({"start": "ViT-B-32:nothing"}, coded("unknown_weights", start="ViT-B-32:nothing")),
        ({"start": "ViT-Z-32:openai"}, coded("unknown_architecture", architecture="ViT-Z-32")),
    ],
)
def test_what_cannot_be_planned_says_why(arguments: dict[str, Any], check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        plan(**arguments)


def test_a_recipe_without_a_start_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="--start"):
        plan("pretrain/emoji-vanilla")
    assert plan("pretrain/emoji-vanilla", start="emoji-vanilla").step.attack == 0


def test_a_checkpoint_is_planned_by_its_architecture() -> None:
    assert blueprint("gone.pt", "ViT-B-32").size == (224, 224)
    assert blueprint("ViT-B-32:openai").width == 512
    assert blueprint("emoji-robust").size == (64, 64)


def test_the_help_shows_both_kinds_of_flags() -> None:
    text = CliRunner().invoke(app, ["plan", "clipag-vit-b32", "--help"]).stdout
    for flag in ("--gpu", "--count", "--samples", "--mfu", "--price", "--fsdp", "--attack-steps", "--accumulate"):
        assert flag in text


def test_listing_recipes_to_plan_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
        "from robustclip.cli import main; main(['plan', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "clipag-vit-b32" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
    assert torch.backends.mha.get_fastpath_enabled()


def test_recipes_without_a_plan_are_not_listed() -> None:
    group = app.commands["plan"]
    assert isinstance(group, click.Group)
    listed = group.list_commands(click.Context(group))
    assert {"emoji", "clipag-vit-b32", "mi-tune", "doodl"} <= set(listed)
    assert not {"leaf", "distance"} & set(listed)
    for name in ("leaf", "distance"):
        with pytest.raises(UsageError, check=coded("no_plan")):
            robustclip.plan(name)
