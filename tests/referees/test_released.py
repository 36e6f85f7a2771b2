"""Released robust CLIPs: the table, and each layout of their files against open_clip's and transformers' own result."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.factory import get_model_config, list_models
from open_clip.model import CLIP
from open_clip.pretrained import list_pretrained_tags_by_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPConfig, CLIPModel

from robustclip.errors import RunError, UsageError, coded
from robustclip.referees import lora, recognition
from robustclip.referees.base import TwoTower
from robustclip.referees.checkpoints import load_checkpoint
from robustclip.referees.openclip import byte_pairs
from robustclip.referees.recognition import recognise
from robustclip.referees.registry import describe, list_all, load_referee
from robustclip.referees.released import PREFIX, Released, all_released
from robustclip.runs.files import sha256

TEXTS = ["a photo of a cat", "Two dogs on a lawn", ""]


@pytest.mark.parametrize("entry", all_released().values(), ids=str)
def test_an_entry_is_whole(entry: Released) -> None:
    assert entry.looked_up
    assert entry.architecture is None or entry.architecture in list_models()
    assert (entry.quick_gelu is None) == (entry.architecture is None)
    assert entry.layout.endswith("folder") or entry.file or entry.source is None
    assert all(len(digest) == 64 for digest in entry.sha256.values())
    if entry.layout == "LoRA adapter":
        assert PREFIX + str(entry.base) in all_released()
    elif entry.architecture is not None:
        assert entry.base in list_pretrained_tags_by_model(entry.architecture)
        vision: Any = get_model_config(entry.architecture)
        assert vision["vision_cfg"].get("image_size", 224) == entry.image_size
        known = open_clip.get_pretrained_cfg(entry.architecture, entry.base)
        assert bool(known.get("quick_gelu", False)) == entry.quick_gelu  # the activation is the base's
    assert entry.threat_model is None or entry.threat_model.eps in (1 / 255, 2 / 255, 4 / 255)


def test_they_are_listed_and_described() -> None:
    assert {entry.name for entry in list_all()} >= set(all_released())
    assert describe("robust-clip:fare4-vit-l-14")["source"] == "hf-hub:chs20/fare4-clip"
    with pytest.raises(UsageError, check=lambda error: error.code == "unknown_release"):
        load_referee("robust-clip:fare5-vit-l-14")


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("agft-vit-b-32", UsageError, "not_fetched"),
        ("clipag-vit-b-32", UsageError, "not_fetched"),
        ("simclip4-vit-l-14", RunError, "unreachable"),
        ("leaf-vit-l-14-fare2", RunError, "unreachable"),
        ("fare4-vit-l-14", RunError, "unreachable"),
    ],
)
def test_what_is_out_of_reach_says_what_to_do(name: str, kind: type[Any], code: str) -> None:
    call = rf'load_referee\("{PREFIX}{name}", pretrained='
    with pytest.raises(kind, match=call, check=lambda error: error.code == code):
        load_referee(PREFIX + name)


def meta(architecture: str) -> dict[str, Tensor]:
    """The tensors of a full CLIP of open_clip, without values."""
    config: Any = get_model_config(architecture)
    config.pop("custom_text", None)
    with torch.device("meta"):
        return dict(CLIP(**config).state_dict())


@pytest.mark.parametrize(
    "architecture",
    ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "convnext_base_w"],
)
@pytest.mark.parametrize("part", ["full", "image"])
def test_full_size_files_are_recognised_by_keys_and_shapes(architecture: str, part: str, tmp_path: Path) -> None:
    weights = meta(architecture)
    if part == "image":
        weights = {name.removeprefix("visual."): v for name, v in weights.items() if name.startswith("visual.")}
    found = recognition._of(weights, tmp_path)
    assert found.architectures[0] == architecture
    assert ("the text tower" in found.asked) == (part == "image")
    assert ("QuickGELU or not" in found.asked) == (f"{architecture}-quickgelu" in list_models())
    same = {name for name, entry in all_released().items() if entry.architecture == architecture}
    assert set(found.released) <= same
    if architecture == "ViT-L-14":
        assert PREFIX + "fare4-vit-l-14" in found.released


@pytest.mark.parametrize(
    ("architecture", "vision"),
    [
        ("ViT-H-14", {"num_hidden_layers": 32, "hidden_size": 1280, "intermediate_size": 5120}),
        ("ViT-g-14", {"num_hidden_layers": 40, "hidden_size": 1408, "intermediate_size": 6144}),
    ],
)
def test_leafs_keys_at_full_size_are_transformers(architecture: str, vision: dict[str, int]) -> None:
    """The published configs (conversion/convert_2.py) against open_clip's, key by key and shape by shape."""
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    config = CLIPConfig(
        projection_dim=1024,
        text_config=text | {"hidden_act": "gelu", "projection_dim": 1024},
        vision_config=vision
        | {"patch_size": 14, "hidden_act": "gelu", "num_attention_heads": 16, "projection_dim": 1024},
    )
    with torch.device("meta"):
        weights = dict(CLIPModel(config).state_dict())
    found = recognition._of(weights, Path("model.safetensors"))
    assert found.architectures[0] == architecture
    assert "the text tower" not in found.asked


Layout = Callable[[Mapping[str, Tensor]], Any]


def trained(visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"visual.{name}": value for name, value in visual.items()}


LAYOUTS: dict[str, tuple[str, Layout]] = {
    "FARE, TeCoA, Sim-CLIP": (".pt", dict),
    "DataParallel": (".pt", lambda visual: {f"module.{name}": value for name, value in visual.items()}),
    "wrapped twice": (".pt", lambda v: {"state_dict": {f"module.model.{name}": value for name, value in v.items()}}),
    "AdvFLYP": (
        ".pth.tar",
        lambda visual: {
            "epoch": 3,
            "state_dict": {},
            "add_prompter": {},
            "partial_state_dict": trained(visual),
            "best_acc1": 40.5,
            "optimizer": {"state": {}, "param_groups": []},
        },
    ),
    "QT-AFT": (
        ".pt",
        lambda visual: {"epoch": 1, "step": 9, "state_dict": {}, "vision_encoder_state_dict": dict(visual)},
    ),
    "AGFT": (".pth", lambda visual: {"modules": {"clip.visual": dict(visual)}, "params": {}}),
    "with the arguments": (".pt", lambda visual: {"state_dict": dict(visual), "args": argparse.Namespace(eps=4.0)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_tower_in_each_published_layout_embeds_bit_by_bit_as_in_open_clip(
    layout: str, quick_gelu: bool, open_clip_model: Any, architecture: str, images: Tensor, tmp_path: Path
) -> None:
    base, twin = tmp_path / "base.pt", architecture + ("-quickgelu" if quick_gelu else "")
    torch.save(open_clip_model.state_dict(), base)
    robust = {name: value + 0.01 for name, value in open_clip_model.visual.state_dict().items()}
    suffix, wrap = LAYOUTS[layout]
    path = tmp_path / f"tower{suffix}"
    torch.save(wrap(robust), path)
    referee = load_checkpoint(path, quick_gelu=quick_gelu, pretrained=str(base))

    theirs: Any = open_clip.create_model(twin).eval()  # as RobustVLM's README loads it
    theirs.load_state_dict(open_clip_model.state_dict())
    theirs.visual.load_state_dict(robust)
    same_as_open_clip(referee, theirs, images)


def same_as_open_clip(referee: TwoTower, theirs: Any, images: Tensor) -> None:
    theirs.requires_grad_(False)  # as the referee is: torch has another kernel for attention that is frozen
    with torch.no_grad():
        expected = theirs.encode_image(referee.preprocess(images))
        texts = theirs.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS))
    assert torch.equal(referee.embed_images(images, normalize=False), expected)
    assert torch.equal(referee.embed_texts(TEXTS, normalize=False), texts)


def test_a_hub_folder_as_chs20_wrote_it(open_clip_model: Any, tiny_cfg: Any, images: Tensor, tmp_path: Path) -> None:
    """Both towers in a pickle beside a config in which quick_gelu is the text "TRUE"."""
    torch.save(open_clip_model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    config = {"model_cfg": tiny_cfg | {"quick_gelu": "TRUE"}, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    referee = load_referee("robust-clip:fare4-vit-l-14", pretrained=str(tmp_path))
    assert str(referee.card.threat).startswith("L-inf eps 0.01569")
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    same_as_open_clip(referee, theirs, images)
    assert referee.card.provenance["released as"] == "robust-clip:fare4-vit-l-14"


def test_a_folder_with_a_word_piece_tokenizer_of_its_own_as_delta_clip(
    tiny_cfg: Any, images: Tensor, tmp_path: Path
) -> None:
    """CLIPA's towers (mean pooling, no causal mask, the last token) and BERT's tokenizer, with its files in the folder:
    `hf_tokenizer_name` is a name on the hub, which is not asked."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "two", "dog", "##s", "on", "lawn"]
    tokens: Any = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
    tokens.save_pretrained(tmp_path)
    vision = tiny_cfg["vision_cfg"] | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    text = tiny_cfg["text_cfg"] | {
        "context_length": 9,
        "vocab_size": 32,
        "hf_tokenizer_name": "some/bert-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True},
        "pool_type": "last",
        "no_causal_mask": True,
    }
    config = {"model_cfg": tiny_cfg | {"vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {"size": 32}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model = CLIP(**config["model_cfg"])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    referee = load_referee(f"local-dir:{tmp_path}")

    theirs: Any = open_clip.create_model(f"local-dir:{tmp_path}").eval().requires_grad_(False)
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    assert ids[1].tolist() == [2, 9, 10, 11, 12, 5, 13, 0, 0]  # [CLS] two dog ##s on a lawn; [SEP] became 0
    with torch.no_grad():
        assert torch.equal(
            referee.embed_images(images, normalize=False), theirs.encode_image(referee.preprocess(images))
        )
        assert torch.equal(referee.embed_texts(TEXTS, normalize=False), theirs.encode_text(ids))
    assert len(referee.embed_texts(TEXTS).unique(dim=0)) == 3
    named = load_referee("robust-clip:delta-clip-vit-l-14", pretrained=str(tmp_path))
    assert torch.equal(named.embed_texts(TEXTS), referee.embed_texts(TEXTS))


@pytest.mark.parametrize("quick_gelu", ["FALSE", "false", "no", ""])
def test_a_text_other_than_true_is_no_activation(
    quick_gelu: str, open_clip_model: Any, tiny_cfg: Any, tmp_path: Path
) -> None:
    """open_clip would read it as true, against what its author wrote."""
    torch.save(open_clip_model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    config = {"model_cfg": tiny_cfg | {"quick_gelu": quick_gelu}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, check=coded("quick_gelu_text")):
        load_referee(tmp_path)


# One process for all: each start costs seconds.
HUB = """
from robustclip.errors import RunError, UsageError
from robustclip.referees.registry import load_referee

for name in ("tecoa2-vit-l-14", "fare4-vit-l-14", "tecoa4-vit-l-14"):
    try:
        print(load_referee(f"robust-clip:{name}").card.name)
    except (RunError, UsageError) as error:
        print(error.code)
"""


def test_files_from_the_hub_are_checked(open_clip_model: Any, tiny_cfg: Any, tmp_path: Path) -> None:
    """Repositories in the hub's cache, with the configs of the released models and other weights."""
    for of, quick_gelu, named in (
        ("tecoa2", True, "open_clip_pytorch_model.bin"),  # with a published hash
        ("fare4", "FALSE", "open_clip_pytorch_model.bin"),
        ("tecoa4", True, "open_clip_model.safetensors"),  # without
    ):
        repository = tmp_path / "hub" / f"models--chs20--{of}-clip"
        folder = repository / "snapshots" / "0"
        for path in (folder, repository / "refs"):
            path.mkdir(parents=True)
        (repository / "refs" / "main").write_text("0")
        save: Any = save_file if named.endswith("safetensors") else torch.save
        save({name: value.contiguous() for name, value in open_clip_model.state_dict().items()}, folder / named)
        config = {"model_cfg": tiny_cfg | {"quick_gelu": quick_gelu}, "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.stdout.split() == ["other_hash", "quick_gelu_text", "tecoa4-vit-l-14"], done.stderr


def test_a_hub_folder_of_transformers_without_tokenizer_as_leaf_wrote_it(images: Tensor, tmp_path: Path) -> None:
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = tower | {"image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu", "projection_dim": 12}
    config = CLIPConfig(
        text_config=tower | {"hidden_act": "quick_gelu", "projection_dim": 12}, vision_config=vision, projection_dim=12
    )
    model = CLIPModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    referee = load_referee("robust-clip:leaf-vit-l-14-fare2", pretrained=str(tmp_path))
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    assert len(byte_pairs()[0]) == model.config.text_config.vocab_size
    with torch.no_grad():
        pixels = model.vision_model(pixel_values=referee.preprocess(images)).pooler_output
        assert torch.equal(referee.embed_images(images, normalize=False), model.visual_projection(pixels))
        longest = int((tokens > 0).sum(1).max())
        ids = torch.where(tokens == 0, 49407, tokens)[:, :longest]  # transformers pads by the closing token
        mask = (tokens > 0)[:, :longest].long()
        states = model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        assert torch.equal(referee.embed_texts(TEXTS, normalize=False), model.text_projection(states))
    file = load_checkpoint_of_transformers(tmp_path / "model.safetensors", vision, tower)
    torch.testing.assert_close(file.embed_images(images), referee.embed_images(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(file.embed_texts(TEXTS), referee.embed_texts(TEXTS), atol=1e-5, rtol=1e-5)


def load_checkpoint_of_transformers(path: Path, vision: Any, text: Any) -> TwoTower:
    """The same weights by their file alone, as a model of open_clip."""
    cfg = {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "mlp_ratio": 1.5, "patch_size": 8, "image_size": 32},
        "text_cfg": {"layers": 2, "width": 16, "heads": 2, "mlp_ratio": 1.5},
    }
    (path.parent / "configs").mkdir()
    (path.parent / "configs" / "tiny-leaf.json").write_text(json.dumps(cfg))
    open_clip.add_model_config(path.parent / "configs")
    return load_checkpoint(path, quick_gelu=True)


class Wrapped(nn.Module):
    """A tower below `model`, as DreamSim and R-CLIP wrap it for PEFT."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)


@pytest.fixture
def base(open_clip_model: Any, tmp_path: Path) -> Path:
    torch.save(open_clip_model.state_dict(), tmp_path / "base.pt")
    return tmp_path / "base.pt"


@pytest.fixture
def adapter(open_clip_model: Any, architecture: str, tmp_path: Path) -> tuple[Path, nn.Module]:
    """An adapter as PEFT writes it, and the adapted tower of PEFT."""
    peft: Any = pytest.importorskip("peft")
    tower: Any = open_clip.create_model(architecture).visual
    tower.load_state_dict(open_clip_model.visual.state_dict())
    targets = [f"model.transformer.resblocks.{block}.mlp.{name}" for block in (0, 1) for name in ("c_fc", "c_proj")]
    config = peft.LoraConfig(r=4, lora_alpha=3, lora_dropout=0.3, target_modules=targets)
    model = peft.get_peft_model(Wrapped(tower), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora", model.eval()


def test_an_adapter_is_merged_as_peft_merges_it(
    adapter: tuple[Path, Any], base: Path, architecture: str, images: Tensor
) -> None:
    folder, model = adapter
    referee = load_referee(folder, quick_gelu=False, pretrained=str(base))
    plain = load_checkpoint(base, quick_gelu=False)
    pixels = referee.preprocess(images)
    with torch.no_grad():
        torch.testing.assert_close(referee.image_tower(pixels), model(pixels), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(referee.image_tower(pixels), plain.image_tower(pixels), atol=1e-2)
        merged = model.merge_and_unload().model
        assert torch.equal(referee.image_tower(pixels), merged(pixels))
    assert torch.equal(referee.embed_texts(TEXTS), plain.embed_texts(TEXTS))


def test_an_adapter_in_dinos_names_is_that_of_the_renamed_layers(base: Path, tmp_path: Path) -> None:
    """R-CLIP's layout: the attention's projections, by the names that utils_lora.py gives them."""
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(16, 16, generator=draw), torch.randn(48, 16, generator=draw)
    layer = "base_model.model.model.blocks.1.attn.qkv"
    folder = tmp_path / "r-clip"
    folder.mkdir()
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16, "lora_alpha": 0.5}')
    plain = load_checkpoint(base, quick_gelu=False).image_tower.state_dict()
    found = load_referee(folder, quick_gelu=False, pretrained=str(base)).image_tower.state_dict()
    name = "transformer.resblocks.1.attn.in_proj_weight"
    assert torch.equal(found[name], plain[name] + 0.5 / 16 * (up @ down))
    assert all(torch.equal(found[other], plain[other]) for other in plain if other != name)


def test_an_adapter_alone_names_what_it_fits(adapter: tuple[Path, Any], architecture: str) -> None:
    with pytest.raises(UsageError, check=coded("adapter_without_base")) as found:
        load_referee(adapter[0])
    fits: Any = found.value.values["fits"]
    assert architecture in fits
    assert "ViT-B-32" not in fits
    described = describe(str(adapter[0]))
    assert architecture in described["architectures"]
    assert described["asked"] == ("the model it was trained from",)


def test_an_adapter_of_another_width_without_scale_or_of_more_than_layers(
    adapter: tuple[Path, Any], base: Path, tmp_path: Path
) -> None:
    folder = adapter[0]
    wide = lora.find(folder)
    assert wide is not None
    other = replace(wide, factors={name: (a, torch.cat([b, b])) for name, (a, b) in wide.factors.items()})
    with pytest.raises(UsageError, check=coded("adapter_of_another_model")):
        lora.merge(other, load_checkpoint(base, quick_gelu=False).image_tower.state_dict(), "base")
    config = json.loads((folder / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"c_fc": 2}}):
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(UsageError, check=coded("strange_adapter")):
            load_referee(folder, quick_gelu=False, pretrained=str(base))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, check=coded("no_adapter_config")):
        load_referee(folder, quick_gelu=False, pretrained=str(base))


@pytest.mark.parametrize("key", ["add_prompter", "params"])
def test_prompts_beside_a_tower_are_refused(key: str, open_clip_model: Any, tmp_path: Path) -> None:
    visual = open_clip_model.visual.state_dict()
    content = {"modules": {"clip.visual": visual}} if key == "params" else {"partial_state_dict": trained(visual)}
    torch.save(content | {key: {"token_prompt": torch.ones(1, 2, 16)}}, tmp_path / "prompted.pth")
    with pytest.raises(UsageError, check=coded("visual_prompts")):
        load_checkpoint(tmp_path / "prompted.pth", quick_gelu=True)


def test_a_file_that_is_not_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path, architecture: str
) -> None:
    name = PREFIX + "advflyp-vit-b-32"
    mine = replace(
        all_released()[name], architecture=architecture, quick_gelu=False, base=None, layout="open_clip file"
    )
    monkeypatch.setitem(all_released(), name, mine)
    path = tmp_path / str(mine.file)
    path.write_bytes(base.read_bytes())
    with pytest.raises(RunError, check=lambda error: error.code == "other_hash"):
        load_referee(name, pretrained=str(path))
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(base.read_bytes())
    with pytest.raises(RunError, check=lambda error: error.code == "other_hash"):
        load_referee(PREFIX + "tecoa4-vit-l-14", pretrained=str(tmp_path))
    load_referee(name, pretrained=str(base))  # of another name: noted, and loaded
    monkeypatch.setitem(all_released(), name, replace(mine, sha256={path.name: sha256(path)}))
    assert load_referee(name, pretrained=str(path)).card.name == "advflyp-vit-b-32"


def test_what_was_given_is_of_another_layout(tmp_path: Path, base: Path) -> None:
    for name, path in (("delta-clip-vit-l-14", base), ("clipag-vit-b-32", tmp_path)):
        with pytest.raises(UsageError, check=coded("other_layout")):
            load_referee(PREFIX + name, pretrained=str(path))
    with pytest.raises(UsageError, check=coded("missing_file")):
        load_referee(PREFIX + "clipag-vit-b-32", pretrained=str(tmp_path / "nothing.pt"))


def test_a_file_of_another_width_says_which_and_what_fits(base: Path, architecture: str) -> None:
    with pytest.raises(
        UsageError,
        check=coded("does_not_fit", shapes=["proj (16, 12) for (16, 24)"]),
        match=rf"shapes: .*{architecture}",
    ):
        load_checkpoint(base, f"{architecture}-wide", quick_gelu=False)
    found = recognise(base)
    assert found.architectures[0] == architecture
    assert found.dtype == "float32"
