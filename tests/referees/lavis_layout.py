"""Names and shapes of BLIP-2's first stage as LAVIS publishes it: blip2_qformer.py, Qformer.py, eva_vit.py."""

from __future__ import annotations

from collections.abc import Iterator

Shape = tuple[int, ...]


def eva(width: int, inner: int, blocks: int, patch: int, cells: int) -> Iterator[tuple[str, Shape]]:
    """EVA-CLIP's image tower, as its own file names it; without its classifier."""
    yield "cls_token", (1, 1, width)
    yield "pos_embed", (1, cells + 1, width)
    yield "patch_embed.proj.weight", (width, 3, patch, patch)
    yield "patch_embed.proj.bias", (width,)
    for block in range(blocks):
        stem = f"blocks.{block}"
        for norm in ("norm1", "norm2"):
            yield f"{stem}.{norm}.weight", (width,)
            yield f"{stem}.{norm}.bias", (width,)
        yield f"{stem}.attn.q_bias", (width,)
        yield f"{stem}.attn.v_bias", (width,)
        yield f"{stem}.attn.qkv.weight", (3 * width, width)
        yield f"{stem}.attn.proj.weight", (width, width)
        yield f"{stem}.attn.proj.bias", (width,)
        yield f"{stem}.mlp.fc1.weight", (inner, width)
        yield f"{stem}.mlp.fc1.bias", (inner,)
        yield f"{stem}.mlp.fc2.weight", (width, inner)
        yield f"{stem}.mlp.fc2.bias", (width,)


def qformer(
    width: int, hidden: int, inner: int, layers: int, queries: int, shared: int, vocabulary: int, positions: int
) -> Iterator[tuple[str, Shape]]:
    """All the rest."""
    yield "query_tokens", (1, queries, hidden)
    yield "temp", ()
    for name, size in (("ln_vision", width), ("Qformer.bert.embeddings.LayerNorm", hidden)):
        yield f"{name}.weight", (size,)
        yield f"{name}.bias", (size,)
    yield "Qformer.bert.embeddings.position_ids", (1, positions)
    yield "Qformer.bert.embeddings.word_embeddings.weight", (vocabulary, hidden)
    yield "Qformer.bert.embeddings.position_embeddings.weight", (positions, hidden)
    for layer in range(layers):
        stem = f"Qformer.bert.encoder.layer.{layer}"
        for kind in ("attention", *(["crossattention"] if layer % 2 == 0 else [])):
            for part in ("query", "key", "value"):
                seen = width if kind == "crossattention" and part != "query" else hidden
                yield f"{stem}.{kind}.self.{part}.weight", (hidden, seen)
                yield f"{stem}.{kind}.self.{part}.bias", (hidden,)
            yield f"{stem}.{kind}.output.dense.weight", (hidden, hidden)
            yield f"{stem}.{kind}.output.dense.bias", (hidden,)
            yield f"{stem}.{kind}.output.LayerNorm.weight", (hidden,)
            yield f"{stem}.{kind}.output.LayerNorm.bias", (hidden,)
        for suffix in ("", "_query"):
            yield f"{stem}.intermediate{suffix}.dense.weight", (inner, hidden)
            yield f"{stem}.intermediate{suffix}.dense.bias", (inner,)
            yield f"{stem}.output{suffix}.dense.weight", (hidden, inner)
            yield f"{stem}.output{suffix}.dense.bias", (hidden,)
            yield f"{stem}.output{suffix}.LayerNorm.weight", (hidden,)
            yield f"{stem}.output{suffix}.LayerNorm.bias", (hidden,)
    head = "Qformer.cls.predictions"
    yield f"{head}.bias", (vocabulary,)
    for name in ("transform.dense", "transform.LayerNorm"):
        yield f"{head}.{name}.weight", (hidden, hidden) if name.endswith("dense") else (hidden,)
        yield f"{head}.{name}.bias", (hidden,)
    yield f"{head}.decoder.weight", (vocabulary, hidden)
    yield f"{head}.decoder.bias", (vocabulary,)
    for name, size in (("vision_proj", shared), ("text_proj", shared), ("itm_head", 2)):
        yield f"{name}.weight", (size, hidden)
        yield f"{name}.bias", (size,)


FULL_EVA = {"width": 1408, "inner": 6144, "blocks": 39, "patch": 14, "cells": 256}
FULL_QFORMER = {
    "width": 1408,
    "hidden": 768,
    "inner": 3072,
    "layers": 12,
    "queries": 32,
    "shared": 256,
    "vocabulary": 30523,
    "positions": 512,
}
TINY_EVA = {"width": 16, "inner": 24, "blocks": 2, "patch": 8, "cells": 4}
TINY_QFORMER = {
    **FULL_QFORMER,
    "width": 16,
    "hidden": 8,
    "inner": 12,
    "layers": 2,
    "queries": 3,
    "shared": 4,
    "positions": 40,
}
