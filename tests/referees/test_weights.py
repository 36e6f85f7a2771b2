from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robustclip.errors import RunError, UsageError, coded
from robustclip.referees.folder import Towers, join_towers, split_towers
from robustclip.referees.weights import digest, load_strictly, read_weights, write_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}
ONE = torch.ones(1)


class Evil:
    """Makes a folder when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"module." + name: value for name, value in WEIGHTS.items()},
        {"state_dict": {"module._orig_mod." + name: value for name, value in WEIGHTS.items()}},
        {"_orig_mod.module." + name: value for name, value in WEIGHTS.items()},
        {"a._orig_mod." + name.removeprefix("a."): value for name, value in WEIGHTS.items()},
        {"_fsdp_wrapped_module.a._checkpoint_wrapped_module." + name[2:]: value for name, value in WEIGHTS.items()},
        {"module." + name: value for name, value in WEIGHTS.items()} | {"n_averaged": torch.tensor(5)},
        {"model_ema": WEIGHTS, "epoch": 3},
        {"model": {"state_dict": {"module." + name: value for name, value in WEIGHTS.items()}}},
        WEIGHTS | {"input_resolution": torch.tensor(224), "vocab_size": torch.tensor(9)},
        {
            "state_dict": WEIGHTS,
            "optimizer": {"lr": np.float64(1e-4), "step": np.int64(7)},
            "args": argparse.Namespace(lr=np.float32(1)),
        },
    ],
)
def test_wrappers_prefixes_and_a_trainers_numbers_do_not_matter(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert same(read_weights(tmp_path / "model.pt"))


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert same(read_weights(tmp_path / "model.safetensors"))


def test_written_weights_come_back_and_halves_are_halves(tmp_path: Path) -> None:
    strided = {"a.weight": WEIGHTS["a.weight"].t().contiguous().t(), "a.count": WEIGHTS["a.count"]}
    write_weights(tmp_path / "full.safetensors", strided)
    write_weights(tmp_path / "half.safetensors", strided, half=True)
    assert same(read_weights(tmp_path / "full.safetensors"))
    assert load_file(tmp_path / "half.safetensors")["a.weight"].dtype == torch.float16
    assert load_file(tmp_path / "half.safetensors")["a.count"].dtype == torch.int64
    with pytest.raises(UsageError, check=coded("beyond_half", names=["variance"])):
        write_weights(tmp_path / "lost.safetensors", {"variance": torch.tensor([1.0, 1e5])}, half=True)
    assert not (tmp_path / "lost.safetensors").exists()


def test_an_unsafe_pickle_is_refused_unopened_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "extra": Evil(tmp_path / "mark")}, tmp_path / "model.pt")
    with pytest.raises(UsageError, check=coded("unsafe_pickle"), match=r"(posix|nt).mkdir"):
        read_weights(tmp_path / "model.pt")
    assert not (tmp_path / "mark").exists()


class Holder(nn.Module):
    """A model as a trainer pickles it whole, with a tensor that two of its names share."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2, bias=False)
        self.a.weight = nn.Parameter(WEIGHTS["a.weight"].clone())
        self.a.register_buffer("count", WEIGHTS["a.count"].clone())


def run_way_out(refusal: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code that follows the first line of a refusal, as it stands there."""
    monkeypatch.chdir(folder)
    exec("\n".join(str(refusal).splitlines()[1:]), {})


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": WEIGHTS, "extra": nn.Linear(1, 1)},
        {"model": WEIGHTS, "optimizer": {"state": {}}, "extra": nn.Linear(1, 1), "epoch": 3},
        {**WEIGHTS, "extra": nn.Linear(1, 1)},
        Holder(),
        {"model": Holder(), "epoch": 3},
        {"state_dict_ema": Holder()},
    ],
    ids=["state_dict", "trainer", "bare", "module", "module in a dict", "average"],
)
def test_the_way_out_works(content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UsageError, check=coded("unsafe_pickle")) as refusal:
        read_weights(tmp_path / "model.pt")
    run_way_out(refusal.value, tmp_path, monkeypatch)
    assert same(read_weights(tmp_path / "model.safetensors"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*jit.*:FutureWarning")
def test_the_way_out_of_a_torchscript_archive_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(layer, torch.zeros(1, 2)), tmp_path / "model.pt")
    with pytest.raises(UsageError) as refusal:
        read_weights(tmp_path / "model.pt")
    run_way_out(refusal.value, tmp_path, monkeypatch)
    assert torch.equal(read_weights(tmp_path / "model.safetensors")["weight"], layer.weight)


def test_weights_are_read_rather_than_their_average_and_the_way_to_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    average = {name: value + 1 for name, value in WEIGHTS.items()}
    torch.save({"state_dict_ema": average, "state_dict": WEIGHTS}, tmp_path / "model.pt")
    assert same(read_weights(tmp_path / "model.pt"))
    told = caplog.messages[0]
    assert "also holds a moving average of its weights (state_dict_ema)" in told
    monkeypatch.chdir(tmp_path)
    exec(told.strip().partition("To take it: ")[2], {"torch": torch})
    assert torch.equal(read_weights(tmp_path / "averaged.pt")["a.weight"], average["a.weight"])


def test_names_that_unwrapping_makes_one_are_refused(tmp_path: Path) -> None:
    torch.save({"module.a": ONE, "a": ONE + 1}, tmp_path / "model.pt")
    with pytest.raises(UsageError, check=coded("weights_twice")):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read_by_their_index(suffix: str, tmp_path: Path) -> None:
    index = tmp_path / f"model{suffix}.index.json"
    parts = {f"model-{i}{suffix}": {name: WEIGHTS[name]} for i, name in enumerate(WEIGHTS)}
    for file, part in parts.items():
        save_file(part, tmp_path / file) if suffix == ".safetensors" else torch.save(part, tmp_path / file)
    index.write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    assert same(read_weights(index))
    index.write_text(json.dumps({"weight_map": {"a.weight": next(iter(parts)), "b": next(iter(parts))}}))
    with pytest.raises(RunError, check=coded("missing_weights", names=["b"])):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a.weight": "gone.bin"}}))
    with pytest.raises(RunError, match=r"lacks gone.bin"):
        read_weights(index)
    for wrong in (
        {},
        [],
        {"weight_map": {"a": "../x.bin"}},
        {"weight_map": {"a": 3}},
        {"weight_map": {"a": index.name}},
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(UsageError, match=r"weight_map|outside its folder"):
            read_weights(index)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*jit.*:FutureWarning")
def test_a_torchscript_archive_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "model.pt")
    with pytest.raises(UsageError, match=r"TorchScript archive(.|\n)*torch.jit.load\('model.pt'"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize("kept", [0, 5, 0.5])
def test_truncated_files_are_called_truncated(name: str, kept: float, tmp_path: Path) -> None:
    big = {"a": torch.zeros(1000)}
    path = tmp_path / name
    save_file(big, path) if path.suffix == ".safetensors" else torch.save(big, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(RunError, check=coded("damaged", path=str(path))):
        read_weights(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("missing_file", path=str(tmp_path / "none.pt"))):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "weights.npz").touch()
    with pytest.raises(UsageError, check=coded("other_format", path=str(tmp_path / "weights.npz"))):
        read_weights(tmp_path / "weights.npz")
    (tmp_path / "page.pt").write_text("<html>not found</html>" * 10)
    with pytest.raises(UsageError, check=coded("unsafe_pickle", path=str(tmp_path / "page.pt"))):
        read_weights(tmp_path / "page.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UsageError, check=coded("not_weights", given="list")):
        read_weights(tmp_path / "list.pt")
    torch.save({"weights": 3, "epoch": "last"}, tmp_path / "odd.pt")
    with pytest.raises(UsageError, check=coded("not_tensors", names=["epoch", "weights"])):
        read_weights(tmp_path / "odd.pt")


@pytest.mark.parametrize("custom_text", [True, False])
def test_towers_split_and_join(custom_text: bool) -> None:
    towers = Towers({"conv1.weight": ONE}, {"token_embedding.weight": ONE, "transformer.x": ONE}, {"logit_scale": ONE})
    assert split_towers(join_towers(towers, custom_text=custom_text)) == towers


@pytest.mark.parametrize("prefix", ["", "visual.", "model.", "module.visual.", "model.visual."])
def test_an_image_tower_alone_is_known_by_its_keys(prefix: str) -> None:
    towers = split_towers({f"{prefix}conv1.weight": ONE, f"{prefix}transformer.resblocks.0.ln_1.weight": ONE})
    assert set(towers.image) == {"conv1.weight", "transformer.resblocks.0.ln_1.weight"}
    assert not towers.text


def test_every_key_is_accounted_for() -> None:
    norm = nn.BatchNorm1d(2)
    wrong = {"weight": torch.ones(2), "bias": torch.ones(3), "extra": ONE}
    with pytest.raises(
        UsageError,
        check=coded(
            "does_not_fit",
            source="file",
            missing=["running_mean", "running_var"],
            unexpected=["extra"],
            shapes=["bias (3,) for (2,)"],
        ),
        match=r"Try again$",
    ):
        load_strictly(norm, wrong, source="file", hint="Try again")


def test_nan_and_other_kinds_of_numbers_are_refused_by_name() -> None:
    norm, state = nn.BatchNorm1d(2), dict(nn.BatchNorm1d(2).state_dict())
    bad = {"bias": torch.tensor([0.0, torch.nan]), "running_mean": torch.tensor([torch.inf, 0.0])}
    with pytest.raises(RunError, check=coded("not_finite", source="file", names=["bias", "running_mean"])):
        load_strictly(norm, state | bad, source="file")
    with pytest.raises(UsageError, check=coded("does_not_fit", types=["bias int8"])):
        load_strictly(norm, state | {"bias": torch.ones(2, dtype=torch.int8)}, source="file")
    load_strictly(norm, state | {"bias": torch.ones(2, dtype=torch.bfloat16)}, source="file")


def test_two_text_towers_in_one_file_are_refused() -> None:
    with pytest.raises(UsageError, check=coded("text_tower_twice", names=["ln_final.x"])):
        split_towers({"visual.a": ONE, "text.ln_final.x": ONE, "ln_final.x": ONE})


def test_counters_may_be_missing_and_long_lists_are_cut() -> None:
    norm = nn.BatchNorm1d(2)
    state = {name: value + 1 for name, value in norm.state_dict().items() if name != "num_batches_tracked"}
    load_strictly(norm, state, source="file")
    assert torch.equal(norm.running_mean, torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(UsageError, check=coded("does_not_fit"), match=r"12 unexpected .*7 more"):
        load_strictly(norm, state | {str(i): ONE for i in range(12)}, source="file")


def test_a_digest_sees_values_names_and_shapes_but_not_the_precision() -> None:
    state = {"a": torch.rand(4, 2), "n": torch.tensor(3)}
    assert digest(state) == digest({"n": state["n"], "a": state["a"].half()})
    assert digest(state) != digest(state | {"a": state["a"] + 1})
    assert digest(state) != digest(state | {"a": state["a"].view(2, 4)})
    assert digest(state) != digest({"b": state["a"], "n": state["n"]})
