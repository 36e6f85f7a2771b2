"""Latent diffusion models against diffusers' own pipeline, and against formulas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustclip.diffusion.pipelines import OLD, _like, _renamed, load_diffusion, save_diffusion
from robustclip.diffusion.stable import Conditioning, LatentDiffusion
from robustclip.errors import RunError, UsageError, coded

from .tiny import tiny_pipeline

SIZE = (16, 16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sd") / "tiny"
    return folder, tiny_pipeline(folder)


@pytest.fixture(scope="module")
def model(saved: tuple[Path, Any]) -> LatentDiffusion:
    return load_diffusion(saved[0])


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_pictures_and_latents_are_the_librarys(
    saved: tuple[Path, Any], model: LatentDiffusion, latents: Tensor
) -> None:
    vae = saved[1].vae
    expected = vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(model.decode(latents), expected)
    images = torch.rand(2, 3, *SIZE)
    means = vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(model.encode(images), means)
    assert (model.factor, model.channels, model.steps) == (2, 4, 1000)


@torch.no_grad()
def test_a_shift_is_undone(tmp_path: Path, latents: Tensor) -> None:
    tiny_pipeline(tmp_path / "sd", shift=0.3)
    shifted = load_diffusion(tmp_path / "sd")
    codes = latents / shifted.scale + 0.3
    torch.testing.assert_close(shifted.decode(latents), shifted.vae.decode(codes).sample / 2 + 0.5)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_samples_are_the_librarys(saved: tuple[Path, Any], model: LatentDiffusion, guidance: float) -> None:
    starts = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    theirs = saved[1](
        ["a cat", "a dog"],
        height=16,
        width=16,
        latents=noise,
        num_inference_steps=5,
        guidance_scale=guidance,
        output_type="pt",
    ).images
    ours = model.sample(["a cat", "a dog"], size=SIZE, steps=5, guidance=guidance, generators=starts)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


SPACINGS = ("leading", "trailing", "linspace")


def schedule_of(pipeline: Any, **changed: Any) -> dict[str, Any]:
    """Without diffusers' note of what was left at its default, which would undo a change; None leaves a value out."""
    config = {key: value for key, value in pipeline.scheduler.config.items() if key[0] != "_"} | changed
    return {key: value for key, value in config.items() if value is not None}


def both_samples(
    saved: tuple[Path, Any], model: LatentDiffusion, **changed: Any
) -> tuple[Tensor, Callable[[], Tensor]]:
    """diffusers' sample of 5 steps from a tiny pipeline whose scheduler is changed, and ours when called."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    config = schedule_of(saved[1], **changed)
    parts = {name: getattr(saved[1], name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    theirs = StableDiffusionPipeline(**parts, **absent, scheduler=DDIMScheduler.from_config(config))
    theirs.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    kwargs = {"latents": start, "num_inference_steps": 5, "guidance_scale": 5.0, "height": 16, "width": 16}
    expected = torch.as_tensor(theirs(["a cat"], output_type="pt", **kwargs).images)
    ours = LatentDiffusion(model.vae, model.unet, DDIMScheduler.from_config(config), model.texts)

    def sample() -> Tensor:
        noise = [torch.Generator().manual_seed(3)]
        return ours.sample(["a cat"], size=SIZE, steps=5, guidance=5.0, generators=noise)

    return expected, sample


@torch.no_grad()
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_samples_are_the_librarys_for_every_schedule(
    prediction: str, spacing: str, rescale: bool, saved: tuple[Path, Any], model: LatentDiffusion
) -> None:
    changed = {"prediction_type": prediction, "timestep_spacing": spacing, "rescale_betas_zero_snr": rescale}
    expected, sample = both_samples(saved, model, **changed)
    if (prediction, rescale) == ("epsilon", True) and spacing != "leading":
        assert not bool(expected.isfinite().any()), "diffusers gives NaN: no signal is left where noise is predicted"
        with pytest.raises(UsageError, check=coded("no_signal")):
            sample()
        return
    torch.testing.assert_close(sample(), expected, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")  # the pipeline sets steps_offset and clip_sample itself
@pytest.mark.parametrize(
    "changed",
    [
        {"steps_offset": 0},
        {"clip_sample": True, "clip_sample_range": 0.5},
        {"set_alpha_to_one": True},
        {"beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=str,
)
def test_samples_are_the_librarys_for_other_settings(
    changed: dict[str, Any], saved: tuple[Path, Any], model: LatentDiffusion
) -> None:
    expected, sample = both_samples(saved, model, prediction_type="v_prediction", **changed)
    torch.testing.assert_close(sample(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_schedule_has_so_many_steps(steps: int, model: LatentDiffusion) -> None:
    with pytest.raises(UsageError, check=coded("out_of_range", argument="steps", given=steps, most=1000)):
        model.sample(["a"], size=SIZE, steps=steps, guidance=1.0, generators=[torch.Generator()])


@pytest.mark.parametrize(("steps", "first", "last"), [(1000, 999, 0), (600, 600, 1), (500, 999, 1)])
def test_all_steps_of_a_schedule_can_be_sampled(
    steps: int, first: int, last: int, model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def guided(_: LatentDiffusion, noisy: torch.Tensor, times: torch.Tensor, *__: Any) -> torch.Tensor:
        seen.append(int(times[0]))
        return torch.zeros_like(noisy)

    monkeypatch.setattr(LatentDiffusion, "_guided", guided)
    assert model.sample(["a"], size=SIZE, steps=steps, guidance=1.0, generators=[torch.Generator()]).isfinite().all()
    assert (len(seen), seen[0], seen[-1]) == (steps, first, last)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_noise_is_found_at_a_step_without_signal(
    prediction: str, saved: tuple[Path, Any], model: LatentDiffusion, latents: Tensor
) -> None:
    """At zero terminal SNR the noisy latents are the noise itself, whatever the UNet says."""
    from diffusers import DDIMScheduler

    config = schedule_of(saved[1], prediction_type=prediction, rescale_betas_zero_snr=True)
    rescaled = LatentDiffusion(model.vae, model.unet, DDIMScheduler.from_config(config), model.texts)
    given, last = rescaled.embed_prompts(["a", "b"]), torch.tensor([999, 999])
    torch.testing.assert_close(rescaled.predict_noise(latents, last, given, given, 1.0), latents)


def test_guidance_leads_from_no_text_to_the_text(model: LatentDiffusion, latents: Tensor) -> None:
    """u + g (c - u), and at 1 the text alone, at 0 none."""
    times, given, empty = torch.tensor([100, 700]), model.embed_prompts(["a cat", "a dog"]), model.embed_prompts([""])
    none = model.predict_noise(latents, times, given, empty, 0.0)
    text = model.predict_noise(latents, times, given, empty, 1.0)
    strong = model.predict_noise(latents, times, given, empty, 30.0)
    assert not torch.allclose(none, text, atol=1e-4)
    torch.testing.assert_close(strong, none + 30 * (text - none), atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, check=coded("out_of_range", argument="guidance", given=-1)):
        model.predict_noise(latents, times, given, empty, -1.0)


def test_velocity_is_read_as_noise(tmp_path: Path, latents: Tensor) -> None:
    """noise = sqrt(a) v + sqrt(1 - a) x: as diffusers' scheduler finds the same signal in both."""
    pipeline = tiny_pipeline(tmp_path / "sd", prediction="v_prediction")
    model = load_diffusion(tmp_path / "sd")
    times, given = torch.tensor([300, 300]), model.embed_prompts(["a cat", "a dog"])
    found = model.predict_noise(latents, times, given, model.embed_prompts([""]), 1.0)
    velocity = pipeline.unet(latents, times, given.states).sample
    kept = pipeline.scheduler.alphas_cumprod[300]
    signal = kept.sqrt() * latents - (1 - kept).sqrt() * velocity
    torch.testing.assert_close(kept.sqrt() * signal + (1 - kept).sqrt() * found, latents, atol=1e-5, rtol=1e-5)
    noise = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    start = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    theirs = pipeline(
        ["a", "b"], height=16, width=16, latents=start, num_inference_steps=4, guidance_scale=3.0, output_type="pt"
    ).images
    ours = model.sample(["a", "b"], size=SIZE, steps=4, guidance=3.0, generators=noise)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_memory_savers_change_no_number(saved: tuple[Path, Any], model: LatentDiffusion, latents: Tensor) -> None:
    saving = load_diffusion(saved[0], slicing=True, checkpointing=True)
    found = []
    for one in (model, saving):
        given = latents.clone().requires_grad_()
        image = one.decode(given)
        (image**2).sum().backward()
        found.append((image.detach(), given.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, torch.float32), ("auto", torch.float32), ("measure", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_a_dtype_without_a_name_is_float32(saved: tuple[Path, Any], dtype: str | None, expected: torch.dtype) -> None:
    assert load_diffusion(saved[0], dtype=dtype).dtype == expected
    with pytest.raises(UsageError, match="fp32"):
        load_diffusion(saved[0], dtype="fp32")


def test_half_precision_keeps_float32_answers(saved: tuple[Path, Any], model: LatentDiffusion, latents: Tensor) -> None:
    half = load_diffusion(saved[0], dtype=torch.bfloat16)
    half.unet.to(torch.bfloat16)
    times = torch.tensor([100, 700])
    answers = []
    for one in (model, half):
        given = one.embed_prompts(["a cat", "a dog"])
        answers.append(one.predict_noise(latents, times, given, one.embed_prompts([""]), 1.0))
    assert half.unet.dtype == torch.bfloat16
    assert answers[1].dtype == torch.float32
    assert half.decode(latents).dtype == torch.float32
    torch.testing.assert_close(answers[0], answers[1], atol=0.1, rtol=0.1)


def test_the_packages_text_tower_is_named_by_the_card(saved: tuple[Path, Any], tmp_path: Path) -> None:
    pipeline = saved[1]
    from diffusers import UNet2DConditionModel

    config = {**pipeline.unet.config, "cross_attention_dim": 384}
    save_diffusion(
        tmp_path / "own",
        pipeline.vae,
        UNet2DConditionModel.from_config(config),
        pipeline.scheduler.config,
        {"name": "x"},
    )
    own = load_diffusion(tmp_path / "own")
    states = own.embed_prompts(["a red fish", ""])
    assert states.states.shape == (2, 24, 384)
    assert states.mask is not None
    assert states.mask.sum(1).tolist() == [5, 2]
    with pytest.raises(UsageError, check=coded("exists", path=tmp_path / "own")):
        save_diffusion(tmp_path / "own", pipeline.vae, pipeline.unet, pipeline.scheduler.config, {})


def test_what_padding_holds_changes_nothing(saved: tuple[Path, Any], model: LatentDiffusion, latents: Tensor) -> None:
    states = model.embed_prompts(["a cat", "a dog"]).states
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, 6:] = False
    other = states.clone()
    other[:, 6:] = 100.0
    times = torch.tensor([100, 700])
    empty = Conditioning(states[:1], mask[:1])
    found = [model.predict_noise(latents, times, Conditioning(one, mask), empty, 3.0) for one in (states, other)]
    torch.testing.assert_close(*found)


def test_long_texts_are_cut_and_that_is_said_once(model: LatentDiffusion, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        model.embed_prompts(["a b c d e f g h i j k l m n o p q r s t u v", "a cat"])
    assert caplog.text.count("has 24 tokens, of which this diffusion model reads 20") == 1


def _scheduler(folder: Path, **changes: Any) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def _weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def _config(folder: Path, part: str, **changes: Any) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BROKEN: dict[str, tuple[Callable[[Path], object], type[Exception], Callable[[BaseException], bool]]] = {
    "no vae": (lambda f: shutil.rmtree(f / "vae"), UsageError, coded("missing_part", part="vae")),
    "no index": (lambda f: (f / "model_index.json").unlink(), UsageError, coded("unknown_diffusion_model")),
    "no text": (lambda f: shutil.rmtree(f / "text_encoder"), UsageError, coded("missing_part", part="text_encoder")),
    "no schedule": (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), UsageError, coded("missing_file")),
    "pickles": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").rename(f / "unet" / "weights.bin"),
        UsageError,
        coded("no_weights"),
    ),
    "another class": (
        lambda f: _config(f, "vae", _class_name="VQModel"),
        UsageError,
        coded("other_class", found="VQModel"),
    ),
    "other sizes": (
        lambda f: _config(f, "unet", block_out_channels=[8, 32]),
        UsageError,
        coded("does_not_fit", missing=[], unexpected=[]),
    ),
    "odd config": (lambda f: _config(f, "unet", block_out_channels="x"), UsageError, coded("not_a_config")),
    "one weight less": (
        lambda f: _weights(f, lambda w: w.pop("conv_in.weight")),
        UsageError,
        coded("does_not_fit", missing=["conv_in.weight"]),
    ),
    "NaN": (
        lambda f: _weights(f, lambda w: w["conv_in.bias"].fill_(torch.nan)),
        RunError,
        coded("not_finite", names=["conv_in.bias"]),
    ),
    "other channels": (
        lambda f: _config(f, "vae", latent_channels=8),
        UsageError,
        coded("does_not_fit", missing=[], unexpected=[]),
    ),
    "flow": (
        lambda f: _scheduler(f, prediction_type="flow"),
        UsageError,
        coded("unknown_prediction", prediction="flow"),
    ),
    "odd betas": (lambda f: _scheduler(f, beta_schedule="x"), UsageError, coded("not_a_config")),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_told(fault: str, saved: tuple[Path, Any], tmp_path: Path) -> None:
    breaking, kind, check = BROKEN[fault]
    shutil.copytree(saved[0], tmp_path / "sd")
    breaking(tmp_path / "sd")
    with pytest.raises(kind, check=check):
        load_diffusion(tmp_path / "sd")


def test_without_a_stated_prediction_it_is_epsilon(saved: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(saved[0], tmp_path / "silent")
    _scheduler(tmp_path / "silent", prediction_type=None)
    assert load_diffusion(tmp_path / "silent").prediction == "epsilon"


def test_sides_that_are_not_whole_in_cells(model: LatentDiffusion) -> None:
    with pytest.raises(UsageError, check=coded("size_not_divisible", size=(15, 16), fit="16x16")):
        model.encode(torch.rand(1, 3, 15, 16))


def published() -> dict[str, Any]:
    """Stable Diffusion 1.5 at its own size, on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(cross_attention_dim=768),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                sample_size=512,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
            ),
        }


def test_stable_diffusion_at_its_own_size_has_a_place_for_every_key_of_its_layout() -> None:
    """859.5, 83.7 and 123.1 million parameters; names as in the published folder, whose autoencoder has the names of
    2022, and whose text tower has a row of positions and a prefix that this version of transformers may not have."""
    parts = published()
    counts = {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()}
    assert counts == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    vae = parts["vae"].state_dict()
    old = {new: old for old, new in OLD.items()}
    layout = {_old(key, old): value for key, value in vae.items()}
    assert sum("mid_block.attentions.0.query" in key for key in layout) == 4
    assert {_renamed(key): value.shape for key, value in layout.items()} == {key: one.shape for key, one in vae.items()}
    text = parts["text_encoder"].state_dict()
    bare = {key.removeprefix("text_model."): value for key, value in text.items()}
    prefixed = {f"text_model.{key}": value for key, value in bare.items()}
    for found in (bare, prefixed):
        assert _like(found, text).keys() == text.keys()
    assert {"embeddings.token_embedding.weight", "encoder.layers.11.mlp.fc2.bias"} <= bare.keys()
    unet = parts["unet"].state_dict()
    assert len(unet) == 686
    assert unet["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 768)
    assert unet["up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight"].shape == (2560, 320)


def _old(key: str, names: dict[str, str]) -> str:
    """A name of the autoencoder's attention, as folders of 2022 have it."""
    for new, name in names.items():
        if ".attentions." in key and f".{new}." in key:
            return key.replace(f".{new}.", f".{name}.")
    return key
