"""What was tried on `convert lavis-blip2` and the training of a BLIP-2: as in `cases`; more in `inversion_cases`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from .things import TERA, Payload, made, maker
from .vqgan_cases import ENDLESS, NUL, pickled, written


def small(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """The beginning of a first stage."""
    tower, layer = "visual_encoder", "Qformer.bert.encoder.layer.0"
    return {
        f"{tower}.patch_embed.proj.weight": torch.ones(16, 3, 8, 8),
        f"{tower}.pos_embed": torch.ones(1, 5, 16),
        f"{tower}.blocks.0.mlp.fc1.weight": torch.ones(24, 16),
        "Qformer.bert.embeddings.word_embeddings.weight": torch.ones(30523, 1),
        "Qformer.bert.embeddings.position_embeddings.weight": torch.ones(40, 1),
        f"{layer}.intermediate_query.dense.weight": torch.ones(12, 1),
        f"{layer}.crossattention.self.query.weight": torch.ones(1, 1),
        "query_tokens": torch.ones(1, 3, 1),
        "vision_proj.weight": torch.ones(4, 1),
        **more,
    }


DEEP = "Qformer.bert.encoder.layer.1000000000.output.dense.bias"
made("lavis_payload", pickled(lambda: {"model": small(), "config": Payload()}))
made("lavis_stretched", pickled(lambda: {"model": small(temp=torch.ones(1).expand(TERA))}))
made("lavis_half", pickled(lambda: {"model": small()}))
made("lavis_number", pickled(lambda: 3))
made("lavis_deep", pickled(lambda: {"model": small(**{DEEP: torch.ones(1)})}))
made("lavis_flat", pickled(lambda: {"model": small(**{"visual_encoder.patch_embed.proj.weight": torch.ones(16)})}))
made("lavis_nothing", pickled(lambda: {"model": small(query_tokens=torch.ones(1, 3, 0))}))
made("lavis_words", pickled(lambda: {"model": small(**{f"Qformer.{'x' * 10**5}": torch.ones(1)})}))
made("lavis_second", pickled(lambda: {"model": small(**{"llm_proj.weight": torch.ones(1, 1)})}))
made("lavis_cut", written("blip2.pth", b"PK\x03\x04" + bytes(100)))
made("lavis_claim", written("blip2.safetensors", b"\xff" * 16))


@maker
def pair_reader_card(folder: Path) -> Path:
    """A card of a pair reader, and nothing of what it names."""
    preprocess = {"size": [64, 64], "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3}
    preprocess |= {"interpolation": "bicubic", "resize_mode": "squash", "fill_color": 0}
    card = {"name": "x", "family": "blip2-mini", "architecture": {}, "preprocess": preprocess, "logit_scale": 1.0}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@maker
def transformers_pair_reader(folder: Path) -> Path:
    """A config of transformers' BLIP-2 for retrieval, and no weights."""
    (folder / "config.json").write_text(json.dumps({"architectures": ["Blip2ForImageTextRetrieval"]}))
    return folder


def conversions() -> Iterator[tuple[str, str | list[str], int, str]]:
    for given, code, words in (
        ("{folder}", 2, "is not a file"),
        (ENDLESS, 2, "is not a file"),
        (NUL, 2, "is not a file"),
        ("", 2, "is not a file"),
        ("{taming_text}", 2, "weights are read from .safetensors"),
        ("{lavis_payload}", 2, "could run code when opened"),
        ("{lavis_stretched}", 2, "stretches few numbers to large tensors (temp)"),
        ("{lavis_half}", 2, "missing ("),
        ("{lavis_number}", 2, "holds int, not weights"),
        ("{lavis_deep}", 2, "num_hidden_layers 1000000001, larger than any known model"),
        ("{lavis_flat}", 2, "is not a first stage of BLIP-2"),
        ("{lavis_nothing}", 2, "of another shape"),
        ("{lavis_words}", 2, "has no place for ("),
        ("{lavis_second}", 2, "no place for (llm_proj.weight)"),
        ("{lavis_cut}", 1, "truncated or damaged"),
        ("{lavis_claim}", 1, "truncated or damaged"),
    ):
        yield "a checkpoint", ["convert", "lavis-blip2", given, "--out", "{out}"], code, words
    for flags, words in (
        ("", "--out is missing"),
        ("--out {folder}", "exists: write elsewhere"),
        ("--out {file}", "is not a folder"),
        ("--out {out} --vision nowhere.pth", "is not a file"),
        ("--out {out} --vision {pipe}", "is not a file"),
        ("--out {out} --vision {lavis_payload}", "could run code when opened"),
        ("--out {out} --vision {lavis_stretched}", "stretches few numbers"),
        ("--out {out} --vison x", "did you mean --vision"),
    ):
        yield "a checkpoint", f"convert lavis-blip2 {{lavis_half}} {flags}", 2, words


def trainings() -> Iterator[tuple[str, str | list[str], int, str]]:
    for flags, words in (
        ("--batch-size 1", "greater than or equal to 2"),
        ("--lr nan", "finite number"),
        ("--name ../x", "cannot name a referee"),
        ("--tower nobody", "there is no referee 'nobody'"),
        ("--tower emoji-vit-vanilla", "no intermediate stages"),
        ("--tower {pair_reader_card}", "its card names no weights"),
        ("--tower {transformers_pair_reader}", "reads image and text together"),
        ("--unseen nowhere", 'no split "nowhere"'),
        ("--unseen judge-heldback", "has no drawing of anchor"),
    ):
        code = 1 if "names no weights" in words else 2
        yield (
            "a training of a pair reader",
            f"robustify pretrain/emoji-blip2 --quick {flags} --out {{out}}",
            code,
            words,
        )


BLIP2 = [*conversions(), *trainings()]
