"""`robustclip convert lavis-blip2`: convert LAVIS' first-stage BLIP-2 checkpoint to a folder.

The layout is that of LAVIS' blip2_qformer.py (Qformer, ln_vision, heads) and eva_vit.py (visual_encoder).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from pydantic import AfterValidator
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.blip2_full import bert_tokenizer, fill, save_full
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.weights import read_dense_weights, some
from robustclip.runs.files import check_new_folder, is_file, new_folder, sha256
from robustclip.signatures import typed

HEAD_WIDTH: Final = {True: 88, False: 64}  # of EVA's ViT-g (width 1408), and of BERT
EVA: Final = "visual_encoder."
PLACES: Final = [
    # Image tower: EVA's names, and transformers'.
    (r"visual_encoder\.cls_token", "vision.tower.embeddings.class_embedding"),
    (r"visual_encoder\.pos_embed", "vision.tower.embeddings.position_embedding"),
    (r"visual_encoder\.patch_embed\.proj\.(weight|bias)", r"vision.tower.embeddings.patch_embedding.\1"),
    (r"visual_encoder\.blocks\.(\d+)\.norm([12])\.(weight|bias)", r"vision.tower.encoder.layers.\1.layer_norm\2.\3"),
    (r"visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"vision.tower.encoder.layers.\1.self_attn.qkv.\2"),
    (
        r"visual_encoder\.blocks\.(\d+)\.attn\.proj\.(weight|bias)",
        r"vision.tower.encoder.layers.\1.self_attn.projection.\2",
    ),
    (r"visual_encoder\.blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"vision.tower.encoder.layers.\1.mlp.\2.\3"),
    (r"ln_vision\.(weight|bias)", r"vision.tower.post_layernorm.\1"),
    # Q-Former: BERT's names, with transformers' attention inside.
    (r"Qformer\.bert\.embeddings\.LayerNorm\.(weight|bias)", r"qformer.layernorm.\1"),
    (r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight", r"embeddings.\1_embeddings.weight"),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.(.+)",
        r"qformer.encoder.layer.\1.\2.attention.\3",
    ),
    (r"Qformer\.bert\.encoder\.layer\.(.+)", r"qformer.encoder.layer.\1"),
    (r"Qformer\.cls\.predictions\.transform\.dense\.(weight|bias)", r"lm_head.dense.\1"),
    (r"Qformer\.cls\.predictions\.transform\.LayerNorm\.(weight|bias)", r"lm_head.norm.\1"),
    (r"Qformer\.cls\.predictions\.decoder\.(weight|bias)", r"lm_head.decoder.\1"),
    # Heads.
    (r"query_tokens", "query_tokens"),
    (r"vision_proj\.(weight|bias)", r"vision_projection.\1"),
    (r"text_proj\.(weight|bias)", r"text_projection.\1"),
    (r"itm_head\.(weight|bias)", r"itm_head.\1"),
    (r"temp", "temperature"),
]
# EVA has 40 blocks, of which BLIP-2 uses 39 (eva_vit.py, create_eva_vit_g).
LEFT: Final = {
    r"Qformer\.bert\.embeddings\.position_ids": "position ids",
    r"Qformer\.cls\.predictions\.bias": "a duplicate of the decoder's bias",
    r"visual_encoder\.(norm|fc_norm|head)\..*": "a part of EVA's classifier",
    r"visual_encoder\.blocks\.(39|[4-9]\d|\d{3,})\..*": "a part of EVA's last block, which BLIP-2 does not run",
}


@dataclass(frozen=True)
class Converted:
    """Result of a conversion: folder, sizes, number of tensors, and numbers of unused tensors by reason."""

    folder: Path
    sizes: dict[str, Any]
    tensors: int
    dropped: dict[str, int]

    def __str__(self) -> str:
        left = "".join(f"; unused: {count} x {reason}" for reason, count in self.dropped.items())
        vision = self.sizes["vision"]
        return (
            f"converted {self.tensors} tensors to {self.folder}: a tower of {vision['num_hidden_layers']} blocks "
            f"{vision['hidden_size']} wide, {self.sizes['queries']} queries{left}"
        )


def _checkpoint(path: Path | None) -> Path | None:
    if path is not None and not is_file(path):
        raise UsageError("is not a file: give the published checkpoint, e.g. blip2_pretrained.pth")
    return path


@typed
def convert(
    checkpoint: Annotated[Path, AfterValidator(_checkpoint), "LAVIS' blip2_pretrained.pth, or its .safetensors"],
    *,
    vision: Annotated[
        Path | None, AfterValidator(_checkpoint), "eva_vit_g.pth, if the checkpoint lacks the frozen image tower"
    ] = None,
    out: Annotated[Path, AfterValidator(check_new_folder), "output folder, which must not exist"],
) -> Converted:
    """Convert LAVIS' first-stage BLIP-2 to a folder, for `synthesize referee-can-play --referee FOLDER`.

      robustclip convert lavis-blip2 blip2_pretrained.pth --vision eva_vit_g.pth --out blip2

    Sizes are inferred from the shapes. Every tensor is mapped or reported as unused. No code in the file is executed.
    Weights keep their precision. Nothing is downloaded.

    Raises UsageError for other files; RunError for a damaged file.
    """
    original = read_dense_weights(checkpoint)
    if vision is not None:
        original = {name: value for name, value in original.items() if not name.startswith(EVA)} | _eva(
            read_dense_weights(vision)
        )
    weights, dropped = renamed(original, str(checkpoint))
    sizes = sizes_of(weights, str(checkpoint))
    side = sizes["vision"]["image_size"]
    preprocess = Preprocess((side, side), resize_mode="squash")
    tokenizer = bert_tokenizer()
    if len(tokenizer) != sizes["qformer"]["vocab_size"]:
        raise UsageError(
            f"{checkpoint} has a vocabulary of {sizes['qformer']['vocab_size']}, and bert-base-uncased with [DEC] has "
            f"{len(tokenizer)}: give a checkpoint of LAVIS' blip2_qformer"
        )
    card = Card(out.name, "blip2", {}, preprocess.config(), 1.0)
    reader = fill(sizes, weights, tokenizer, preprocess, card, source=str(checkpoint))
    files = [checkpoint, *([] if vision is None else [vision])]
    made_from = [{"file": file.name, "sha256": sha256(file)} for file in files]
    with new_folder(out) as draft:
        save_full(
            reader,
            draft,
            sizes,
            {"made_by": "robustclip convert lavis-blip2", "made_from": made_from, "left_behind": dropped},
            name=out.name,
        )
    return Converted(out, sizes, len(weights), dropped)


def renamed(original: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(weights under our names, numbers of unused tensors by reason).

    EVA has biases of queries and values only; transformers has a joint one with keys. Raises UsageError for unknown
    keys, and if the image tower is missing.
    """
    merged = dict(original)
    for name in [name for name in original if name.endswith(".attn.q_bias")]:
        stem = name.removesuffix("q_bias")
        query, value = merged.pop(name), merged.pop(f"{stem}v_bias", None)
        if value is None or value.shape != query.shape:
            raise UsageError(f"{source} has {name} and no matching {stem}v_bias: it is not EVA's image tower")
        merged[f"{stem}qkv.bias"] = torch.cat([query, torch.zeros_like(value), value])
    weights: dict[str, Tensor] = {}
    dropped: Counter[str] = Counter()
    unknown: list[str] = []
    for name, tensor in merged.items():
        reason = next((reason for pattern, reason in LEFT.items() if re.fullmatch(pattern, name)), None)
        place = next((re.sub(old, new, name) for old, new in PLACES if re.fullmatch(old, name)), None)
        if reason is not None:
            dropped[reason] += 1
        elif place is None:
            unknown.append(name)
        else:
            weights[place] = tensor
    if unknown:
        raise UsageError(
            f"{source} has tensors that BLIP-2's first stage has no place for ({some(sorted(unknown))}): give LAVIS' "
            "blip2_pretrained.pth, not a second stage's",
            "does_not_fit",
            unexpected=sorted(unknown),
        )
    if not any(name.startswith("vision.tower.encoder.") for name in weights):
        raise UsageError(
            f"{source} lacks the frozen image tower: give its file too, --vision eva_vit_g.pth",
            "no_image_tower",
        )
    return weights, dict(dropped)


def sizes_of(weights: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Sizes for `blip2_full.build_full`, inferred from the shapes. Raises UsageError for other weights."""
    try:
        width, _, patch, _ = weights["vision.tower.embeddings.patch_embedding.weight"].shape
        cells = weights["vision.tower.embeddings.position_embedding"].shape[1] - 1
        vocabulary, hidden = weights["embeddings.word_embeddings.weight"].shape
        vision = {
            "hidden_size": width,
            "intermediate_size": weights["vision.tower.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _blocks(weights, "vision.tower.encoder.layers."),
            "num_attention_heads": max(1, width // HEAD_WIDTH[width % 88 == 0]),
            "patch_size": patch,
            "image_size": patch * round(cells**0.5),
        }
        layers = _blocks(weights, "qformer.encoder.layer.")
        crossing = sum(name.endswith(".crossattention.attention.query.weight") for name in weights)
        qformer = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": max(1, hidden // HEAD_WIDTH[False]),
            "intermediate_size": weights["qformer.encoder.layer.0.intermediate_query.dense.weight"].shape[0],
            "max_position_embeddings": weights["embeddings.position_embeddings.weight"].shape[0],
            "cross_attention_frequency": -(-layers // max(crossing, 1)),
        }
        queries, shared = weights["query_tokens"].shape[1], weights["vision_projection.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            f"{source} is not a first stage of BLIP-2 ({error}): give LAVIS' blip2_pretrained.pth",
            "not_blip2",
        ) from error
    captions = "lm_head.decoder.weight" in weights
    return {"vision": vision, "qformer": qformer, "queries": queries, "shared": shared, "captions": captions}


def _eva(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name if name.startswith(EVA) else f"{EVA}{name}": value for name, value in weights.items()}


def _blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))
