"""BLIP-2's first stage in LAVIS' layout: every key has its place, and numbers come through."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.cli import main
from robustclip.errors import RunError, UsageError, coded
from robustclip.referees.blip2 import Blip2
from robustclip.referees.blip2_full import bert_tokenizer, build_full, preprocess_state
from robustclip.referees.card import Card
from robustclip.referees.lavis import convert, renamed, sizes_of
from robustclip.referees.pair_readers import is_pair_reader, load_pair_reader
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.weights import check_fit

from .lavis_layout import FULL_EVA, FULL_QFORMER, TINY_EVA, TINY_QFORMER, Shape, eva, qformer
from .tiny_blip2 import tiny_blip2

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TEXTS = ["a red fish", "a much longer text of a blue hat"]


def drawn(names: dict[str, Shape]) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(0)
    found = {name: 0.3 * torch.randn(shape, generator=stream) for name, shape in names.items()}
    if "temp" in found:
        found["temp"] = torch.tensor(0.05)
    return found


def tiny() -> dict[str, Tensor]:
    tower = {f"visual_encoder.{name}": shape for name, shape in eva(**TINY_EVA)}
    return drawn({**tower, **dict(qformer(**TINY_QFORMER))})


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return tiny()


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lavis")
    torch.save({"model": state}, path / "blip2.pth")
    found = convert(path / "blip2.pth", out=path / "out")
    assert found.sizes["vision"]["num_hidden_layers"] == 2
    assert found.dropped == {"position ids": 1, "a duplicate of the decoder's bias": 1}
    assert "converted" in str(found)
    return path / "out"


@pytest.fixture(scope="module")
def reader(folder: Path) -> Blip2:
    return load_pair_reader(folder)


def test_every_key_of_the_published_size_has_its_place() -> None:
    names = {f"visual_encoder.{name}": shape for name, shape in eva(**FULL_EVA)} | dict(qformer(**FULL_QFORMER))
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in names.items()}
        weights, dropped = renamed(state, "blip2_pretrained.pth")
        assert sum(dropped.values()) == 2
        sizes = sizes_of(weights, "blip2_pretrained.pth")
        assert [sizes["vision"][name] for name in SIZES] == [1408, 6144, 39, 16]  # EVA's ViT-g but its last block
        assert [sizes["qformer"][name] for name in SIZES] == [768, 3072, 12, 12]  # BERT-base
        assert (sizes["queries"], sizes["shared"], sizes["captions"]) == (32, 256, True)
        card = Card("full", "blip2", {}, Preprocess(224).config(), 1.0)
        model = build_full(sizes, bert_tokenizer(), Preprocess(224), card)
        check_fit(model, weights | preprocess_state(model), source="blip2_pretrained.pth")
    tower = sum(weight.numel() for name, weight in weights.items() if name.startswith("vision."))
    assert tower == pytest.approx(985.95e6, rel=1e-3)


@torch.no_grad()
def test_the_image_tower_is_evas(state: dict[str, Tensor], reader: Blip2) -> None:
    """Pre-norm blocks with biases of queries and values alone, in plain torch."""
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    get = {name.removeprefix("visual_encoder."): value for name, value in state.items()}.__getitem__
    seen = reader.preprocess(pixels)
    x = F.conv2d(seen, get("patch_embed.proj.weight"), get("patch_embed.proj.bias"), stride=8).flatten(2).mT
    x = torch.cat([get("cls_token").expand(2, -1, -1), x], 1) + get("pos_embed")
    for block in range(2):
        stem = f"blocks.{block}"
        normed = F.layer_norm(x, (16,), get(f"{stem}.norm1.weight"), get(f"{stem}.norm1.bias"), 1e-6)
        bias = torch.cat([get(f"{stem}.attn.q_bias"), torch.zeros(16), get(f"{stem}.attn.v_bias")])
        query, key, value = F.linear(normed, get(f"{stem}.attn.qkv.weight"), bias).chunk(3, -1)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + F.linear(attended, get(f"{stem}.attn.proj.weight"), get(f"{stem}.attn.proj.bias"))
        normed = F.layer_norm(x, (16,), get(f"{stem}.norm2.weight"), get(f"{stem}.norm2.bias"), 1e-6)
        inner = F.gelu(F.linear(normed, get(f"{stem}.mlp.fc1.weight"), get(f"{stem}.mlp.fc1.bias")))
        x = x + F.linear(inner, get(f"{stem}.mlp.fc2.weight"), get(f"{stem}.mlp.fc2.bias"))
    expected = F.layer_norm(x, (16,), get("ln_vision.weight"), get("ln_vision.bias"), 1e-5)
    torch.testing.assert_close(reader.image_tokens(pixels), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_matching_and_captions_work_on_what_was_converted(reader: Blip2, state: dict[str, Tensor]) -> None:
    images = torch.rand(2, 3, 16, 16)
    assert reader.can_caption
    assert reader.pair_losses(images, TEXTS).isfinite().all()
    assert reader.temperature.item() == pytest.approx(0.05)
    head = reader.lm_head
    assert head is not None
    torch.testing.assert_close(head.decoder.weight, state["Qformer.cls.predictions.decoder.weight"])
    together, alone = reader.pair_losses(images, TEXTS), reader.pair_losses(images[1:], TEXTS[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_tower_in_its_own_file(state: dict[str, Tensor], folder: Path, tmp_path: Path) -> None:
    """EVA's has a classifier too."""
    tower = {name.removeprefix("visual_encoder."): value for name, value in state.items() if "visual_encoder" in name}
    torch.save(tower | {"norm.weight": torch.ones(16), "head.bias": torch.ones(5)}, tmp_path / "eva.pth")
    rest = {name: value for name, value in state.items() if "visual_encoder" not in name}
    torch.save({"model": rest}, tmp_path / "blip2.pth")
    with pytest.raises(UsageError, check=coded("no_image_tower"), match=r"--vision eva_vit_g.pth"):
        convert(tmp_path / "blip2.pth", out=tmp_path / "without")
    convert(tmp_path / "blip2.pth", vision=tmp_path / "eva.pth", out=tmp_path / "out")
    images = torch.rand(2, 3, 16, 16)
    one, other = (load_pair_reader(path).pair_losses(images, TEXTS) for path in (folder, tmp_path / "out"))
    torch.testing.assert_close(one, other)


def test_the_fortieth_block_is_left_behind() -> None:
    """BLIP-2 runs 39 of them (eva_vit.py, create_eva_vit_g), whatever lies beside."""
    with torch.device("meta"):
        tower = {f"visual_encoder.{name}": torch.empty(shape) for name, shape in eva(**{**TINY_EVA, "blocks": 40})}
        state = {name: torch.empty(shape) for name, shape in qformer(**TINY_QFORMER)}
        weights, dropped = renamed(tower | state, "eva.pth")
    assert dropped["a part of EVA's last block, which BLIP-2 does not run"] == 12
    assert sizes_of(weights, "eva.pth")["vision"]["num_hidden_layers"] == 39


@torch.no_grad()
def test_as_published_the_tower_is_in_half_precision_and_the_decoder_shares_its_table(
    state: dict[str, Tensor], folder: Path, tmp_path: Path
) -> None:
    """LAVIS runs the tower in float16 and its last norm in float32; BERT's decoder is its table of words."""
    table = state["Qformer.bert.embeddings.word_embeddings.weight"]
    published = {name: value.half() if "visual_encoder" in name else value for name, value in state.items()}
    published["Qformer.cls.predictions.decoder.weight"] = table
    published["Qformer.cls.predictions.bias"] = torch.zeros(30522)  # of before [DEC] was added: nobody reads it
    torch.save({"model": published}, tmp_path / "blip2.pth")
    convert(tmp_path / "blip2.pth", out=tmp_path / "out")
    found, whole = load_pair_reader(tmp_path / "out"), load_pair_reader(folder)
    assert {value.dtype for value in found.vision.tower.encoder.state_dict().values()} == {torch.float16}  # type: ignore[union-attr,operator]
    assert found.lm_head is not None
    torch.testing.assert_close(found.lm_head.decoder.weight, table)
    images = torch.rand(2, 3, 16, 16)
    tokens = found.image_tokens(images)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, whole.image_tokens(images), atol=2e-2, rtol=2e-2)


def test_a_weight_that_is_no_number_is_told(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": {**state, "itm_head.bias": torch.tensor([0.0, torch.nan])}}, tmp_path / "blip2.pth")
    with pytest.raises(RunError, check=coded("not_finite", names=["itm_head.bias"])):
        convert(tmp_path / "blip2.pth", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_a_first_stage_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": {**state, "t5_proj.weight": torch.ones(2, 2)}}, tmp_path / "second.pth")
    with pytest.raises(UsageError, check=coded("does_not_fit", unexpected=["t5_proj.weight"])):
        convert(tmp_path / "second.pth", out=tmp_path / "out")
    torch.save({"model": {"visual_encoder.blocks.0.norm1.weight": torch.ones(2)}}, tmp_path / "part.pth")
    with pytest.raises(UsageError, check=coded("not_blip2")):
        convert(tmp_path / "part.pth", out=tmp_path / "out")
    broken = {name: value for name, value in state.items() if not name.endswith("blocks.1.attn.v_bias")}
    torch.save({"model": broken}, tmp_path / "bias.pth")
    with pytest.raises(UsageError, match=r"no matching visual_encoder\.blocks\.1\.attn\.v_bias"):
        convert(tmp_path / "bias.pth", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": state}, tmp_path / "blip2.pth")
    with pytest.raises(SystemExit) as ended:
        main(["convert", "lavis-blip2", str(tmp_path / "blip2.pth"), "--out", str(tmp_path / "out")])
    assert not ended.value.code
    assert "2 blocks 16 wide, 3 queries" in capsys.readouterr().out
    assert is_pair_reader(tmp_path / "out")


@torch.no_grad()
def test_a_folder_of_transformers_reads_pairs_and_says_that_it_cannot_caption(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = bert_tokenizer()
    model = tiny_blip2(len(tokenizer))
    model.save_pretrained(tmp_path / "hf")
    tokenizer.tokenizer.save_pretrained(tmp_path / "hf")
    reader = load_pair_reader(tmp_path / "hf")
    assert "no captioning loss" in caplog.text
    assert not reader.can_caption
    images = torch.rand(2, 3, 16, 16)
    ids, mask = reader.tokenizer(TEXTS, torch.device("cpu"))
    theirs = model(
        pixel_values=reader.preprocess(images),
        input_ids=ids,
        attention_mask=mask.long(),
        use_image_text_matching_head=True,
    ).logits_per_image
    torch.testing.assert_close(reader.matching_logits(images, TEXTS), theirs, atol=1e-5, rtol=0)
