"""Referees' folders: the toy's, with one thing of its card or its weights changed."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from robustclip.referees.folder import IMAGE_TOWER, save_referee
from robustclip.referees.toy import toy_referee
from robustclip.runs.files import sha256

from .things import TERA, Maker, made, maker


def referee(
    folder: Path,
    *,
    card: Callable[[dict[str, Any]], Any] | None = None,
    weights: bytes | Mapping[str, Tensor] | None = None,
) -> Path:
    """A toy referee's folder whose card went through `card`, or with other weights that the card vouches for."""
    save_referee(toy_referee(name="toy"), folder)
    values = json.loads((folder / "card.json").read_text())
    if weights is not None:
        content = weights if isinstance(weights, bytes) else save(dict(weights))
        (folder / IMAGE_TOWER).write_bytes(content)
        values["weights"][IMAGE_TOWER] = sha256(folder / IMAGE_TOWER)
    changed = values if card is None else card(values)
    (folder / "card.json").write_text(json.dumps(changed))
    return folder


def toy_weights(**changes: Tensor | None) -> dict[str, Tensor]:
    """The toy's tensors; `w0_weight` stands for "0.weight", None takes it away."""
    weights = dict(toy_referee().image_tower.state_dict())
    for name, value in changes.items():
        key = name.removeprefix("w").replace("_", ".", 1)
        weights.pop(key, None)
        if value is not None:
            weights[key] = value
    return weights


def card_with(**changes: Any) -> Maker:
    """A referee whose card has these values."""
    return lambda folder: referee(folder, card=lambda values: values | changes)


def card_text(text: str | bytes) -> Maker:
    """A referee whose card is this text."""

    def make(folder: Path) -> Path:
        referee(folder)
        (folder / "card.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return make


def in_card(path: str, value: Any) -> Maker:
    """A referee whose card has `value` at a dotted path."""

    def change(values: dict[str, Any]) -> dict[str, Any]:
        *way, last = path.split(".")
        place = values
        for key in way:
            place = place[key]
        place[last] = value
        return values

    return lambda folder: referee(folder, card=change)


def weights_with(**changes: Tensor | None) -> Maker:
    return lambda folder: referee(folder, weights=toy_weights(**changes))


def weight_bytes(content: bytes | Callable[[bytes], bytes]) -> Maker:
    """A referee whose weight file holds these bytes, or these made of the good ones."""
    return lambda folder: referee(
        folder, weights=content if isinstance(content, bytes) else content(save(toy_weights()))
    )


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor_entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def deep(levels: int, text: str = "") -> str:
    return "[" * levels + text + "]" * levels


made("toy", lambda folder: referee(folder))
made("no_card", card_text(b""))
made("card_not_json", card_text("{'name': 'toy'"))
made("card_not_utf8", card_text(b'{"name": "\xff\xfe"}'))
made("card_a_list", card_text("[1, 2, 3]"))
made("card_null", card_text("null"))
made("card_deep", card_text(deep(100_000)))
made("card_deep_inside", in_card("provenance", {"a": json.loads(deep(60))}))
made("card_huge_integer", card_text('{"name": ' + "9" * 10_000 + "}"))
made("card_many_megabytes", card_text('{"name": "' + "x" * 40_000_000 + '"}'))
made("card_missing_keys", card_text('{"name": "toy"}'))
made("card_unknown_keys", card_with(on_load="import os"))
made("card_name_number", card_with(name=7))
made("card_name_empty", card_with(name=""))
made("card_name_escapes", card_with(name="\x1b[2Jtoy\r\n"))
made("card_name_turned", card_with(name="toy \u202efdp.exe"))
made("card_name_html", card_with(name="<img src=x onerror=alert(1)>"))
made("card_name_path", card_with(name="../../etc"))
made("card_name_code", card_with(name='x"); import os; os.system("id"); ("'))
made("card_name_long", card_with(name="x" * 100_000))
made("card_name_markup", card_with(name="[/bold]"))
made("card_family_list", card_with(family=["toy"]))
made("card_family_unknown", card_with(family="../../toy"))
made("card_scale_text", card_with(logit_scale="100"))
made("card_scale_nan", card_with(logit_scale=float("nan")))
made("card_scale_inf", card_with(logit_scale=float("inf")))
made("card_scale_negative", card_with(logit_scale=-1.0))
made("card_scale_true", card_with(logit_scale=True))
made("card_bias_list", card_with(logit_bias=[1]))
made("card_provenance_nan", in_card("provenance.loss", float("nan")))
made("card_provenance_huge", in_card("provenance.steps", 2**1024))
made("card_weights_list", card_with(weights=["image_tower.safetensors"]))
made("card_weights_none", card_with(weights={}))
made("card_weights_path", card_with(weights={"../../../../../../etc/passwd": "0" * 64}))
made("card_weights_absolute", card_with(weights={"/etc/passwd": "0" * 64}))
made("card_weights_windows", card_with(weights={"..\\..\\secrets.safetensors": "0" * 64}))
made("card_weights_nul", card_with(weights={"image_tower\x00.safetensors": "0" * 64}))
made("card_weights_dots", card_with(weights={"..": "0" * 64}))
made("card_weights_missing_file", card_with(weights={"open_clip_model.safetensors": "0" * 64}))
made("card_hash_short", card_with(weights={IMAGE_TOWER: "abc"}))
made("card_hash_number", card_with(weights={IMAGE_TOWER: 12}))
made("card_hash_wrong", card_with(weights={IMAGE_TOWER: "0" * 64}))
made("card_other_text_tower", card_with(text_tower={"name": "toy 16", "sha256": "0" * 64}))
made("card_text_tower_list", card_with(text_tower=["toy"]))
made("card_size_negative", in_card("preprocess.size", [-16, 16]))
made("card_size_zero", in_card("preprocess.size", 0))
made("card_size_huge", in_card("preprocess.size", [1_000_000, 1_000_000]))
made("card_size_text", in_card("preprocess.size", "big"))
made("card_size_three", in_card("preprocess.size", [16, 16, 16]))
made("card_mean_short", in_card("preprocess.mean", [0.5]))
made("card_mean_text", in_card("preprocess.mean", "grey"))
made("card_std_zero", in_card("preprocess.std", [0.0, 0.5, 0.5]))
made("card_std_huge", in_card("preprocess.std", [1e300, 0.5, 0.5]))
made("card_interpolation", in_card("preprocess.interpolation", "nearest-ish"))
made("card_fill_colour", in_card("preprocess.fill_color", -1e9))
made("card_preprocess_list", card_with(preprocess=[]))
made("card_toy_huge", in_card("architecture.width", 10**12))
made("card_toy_negative", in_card("architecture.width", -3))
made("card_toy_text", in_card("architecture.size", "16; rm -rf /"))
made("card_toy_bare", card_with(architecture={}))
made("card_threat_text", card_with(threat="l2"))
made("card_threat_keys", card_with(threat={"norm": "l2"}))
made("card_threat_norm", card_with(threat={"norm": ["l2"], "eps": 1.0, "size": [16, 16]}))
made("card_threat_eps", card_with(threat={"norm": "l2", "eps": "much", "size": [16, 16]}))
made("card_threat_huge", card_with(threat={"norm": "l2", "eps": 10**400, "size": [10**400, 16]}))
made("card_threat_size", card_with(threat={"norm": "l2", "eps": 1.0, "size": None}))
CLAIM = {
    "name": "top-1",
    "value": 0.5,
    "low": 0.4,
    "high": 0.6,
    "n": 4,
    "seed": 0,
    "data": "emoji/unseen-styles",
    "attack": None,
    "date": "2025-01-31",
}
made("card_claims_number", card_with(claims=3))
made("card_claim_bare", card_with(claims=[{}]))
made("card_claim_text", card_with(claims=["top-1 is 99%"]))
made("card_claim_value", card_with(claims=[CLAIM | {"value": "all"}]))
made("card_claim_nan", card_with(claims=[CLAIM | {"low": float("nan")}]))
made("card_claim_n", card_with(claims=[CLAIM | {"n": -4}]))
made("card_claim_attack", card_with(claims=[CLAIM | {"attack": "l2:1@" + "9" * 9000}]))
made("card_claim_data", card_with(claims=[CLAIM | {"data": "/"}]))


@maker
def card_is_a_folder(folder: Path) -> Path:
    (folder / "card.json").mkdir(parents=True)
    return folder


@maker
def card_is_a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "card.json")
    return folder


@maker
def card_is_zeros(folder: Path) -> Path:
    (folder / "card.json").symlink_to("/dev/zero")
    return folder


@maker
def card_is_unreadable(folder: Path) -> Path:
    (folder / "card.json").symlink_to("/proc/self/mem")  # reading it fails, also for root
    return folder


@maker
def card_is_a_loop(folder: Path) -> Path:
    (folder / "card.json").symlink_to(folder / "card.json")
    return folder


# Weights that the card vouches for.

made("weights_nan", weights_with(w0_weight=torch.full((8, 3, 4, 4), float("nan"))))
made("weights_one_nan", weights_with(w3_bias=torch.tensor([0.0] * 15 + [float("nan")])))
made("weights_inf", weights_with(w3_bias=torch.full((16,), float("inf"))))
made("weights_beyond_float32", weights_with(w3_bias=torch.full((16,), 1e300, dtype=torch.float64)))
made("weights_shape", weights_with(w3_weight=torch.zeros(16, 127)))
made("weights_transposed", weights_with(w3_weight=torch.zeros(128, 16)))
made("weights_scalar", weights_with(w3_weight=torch.zeros(())))
made("weights_missing", weights_with(w3_bias=None))
made("weights_extra", weights_with(w9_weight=torch.zeros(3)))
made("weights_integers", weights_with(w3_bias=torch.ones(16, dtype=torch.int64)))
made("weights_bytes", weights_with(w3_weight=torch.ones(16, 32, dtype=torch.uint8).repeat(1, 4)))
made("weights_booleans", weights_with(w3_bias=torch.ones(16, dtype=torch.bool)))
made("weights_complex", weights_with(w3_bias=torch.ones(16, dtype=torch.complex64)))
made("weights_strange_names", weights_with(**{"w../../../tmp/x\u202e": torch.ones(1), "w💣": torch.ones(1)}))
made("weights_long_name", weights_with(**{"w" + "a" * 1_000_000: torch.ones(1)}))
made("weights_variance", weights_with(w3_bias=torch.full((16,), 3e38)))
made("weights_empty", weight_bytes(b""))
made("weights_truncated", weight_bytes(lambda good: good[:-5]))
made("weights_padded", weight_bytes(lambda good: good + b"\0" * 100))
made("weights_random", weight_bytes(bytes(range(256)) * 8))
made("weights_no_header", weight_bytes(safetensors(b"")))
made("weights_header_of_2_to_the_60", weight_bytes(struct.pack("<Q", 1 << 60) + b"{}"))
made("weights_header_not_json", weight_bytes(safetensors(b"{" * 64)))
made("weights_header_deep", weight_bytes(safetensors(b'{"a":' * 5000 + b"1" + b"}" * 5000)))
made("weights_claim_10_tb", weight_bytes(safetensors({"0.weight": tensor_entry([TERA // 4], 0, TERA)})))
made("weights_claim_shape", weight_bytes(safetensors({"0.weight": tensor_entry([TERA // 4], 0, 4)}, b"\0" * 4)))
made("weights_overflow", weight_bytes(safetensors({"a": tensor_entry([2**32, 2**32, 2**32], 0, 4)}, b"\0" * 4)))
made("weights_negative_offsets", weight_bytes(safetensors({"a": tensor_entry([1], -4, 0)}, b"\0" * 4)))
made("weights_backwards", weight_bytes(safetensors({"a": tensor_entry([1], 4, 0)}, b"\0" * 4)))
made(
    "weights_overlapping",
    weight_bytes(safetensors({"a": tensor_entry([2], 0, 8), "b": tensor_entry([2], 4, 12)}, b"\0" * 12)),
)
made("weights_dtype", weight_bytes(safetensors({"a": tensor_entry([1], 0, 4, "F31")}, b"\0" * 4)))
made("weights_pickle", weight_bytes(pickle.dumps({"a": 1})))


@maker
def weights_are_a_folder(folder: Path) -> Path:
    referee(folder)
    (folder / IMAGE_TOWER).unlink()
    (folder / IMAGE_TOWER).mkdir()
    return folder


@maker
def weights_are_a_pipe(folder: Path) -> Path:
    referee(folder)
    (folder / IMAGE_TOWER).unlink()
    os.mkfifo(folder / IMAGE_TOWER)
    return folder


@maker
def weights_are_zeros(folder: Path) -> Path:
    referee(folder)
    (folder / IMAGE_TOWER).unlink()
    (folder / IMAGE_TOWER).symlink_to("/dev/zero")
    return folder


@maker
def weights_elsewhere(folder: Path) -> Path:
    """The card vouches for one file, and the weights lie in another."""

    def rename(values: dict[str, Any]) -> dict[str, Any]:
        (folder / "model.safetensors").write_bytes((folder / IMAGE_TOWER).read_bytes())
        values["weights"] = {"model.safetensors": values["weights"][IMAGE_TOWER]}
        return values

    referee(folder, card=rename)
    (folder / IMAGE_TOWER).write_bytes(save(toy_weights(w3_bias=torch.ones(16))))
    return folder
