"""Folders of open_clip and transformers: pickles, archives and configs that mean harm."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from .referees import deep
from .things import PWNED, TERA, Maker, Payload, made, maker

VISION = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}
CLIP: dict[str, Any] = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
"""A plain CLIP of open_clip, as small as they come."""


def open_clip_folder(folder: Path, config: object, weights: Callable[[Path], object] | None = None) -> Path:
    text = config if isinstance(config, str) else json.dumps({"model_cfg": config})
    (folder / "open_clip_config.json").write_text(text)
    if weights is not None:
        weights(folder / "open_clip_pytorch_model.bin")
    return folder


def clip_weights() -> dict[str, Tensor]:
    """Of both towers of CLIP."""
    return dict(open_clip.CLIP(**copy.deepcopy(CLIP)).state_dict())


def pickled(content: Callable[[], object] | object, **options: Any) -> Maker:
    def write(path: Path) -> None:
        torch.save(content() if callable(content) else content, path, **options)

    return lambda folder: open_clip_folder(folder, CLIP, write)


def raw(content: bytes | Callable[[Path], object]) -> Maker:
    def write(path: Path) -> object:
        return path.write_bytes(content) if isinstance(content, bytes) else content(path)

    return lambda folder: open_clip_folder(folder, CLIP, write)


def zip_bomb(path: Path) -> None:
    """A checkpoint of kilobytes that unpacks to a quarter of a gigabyte."""
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in members.items():
            if name.endswith("data/0"):
                with archive.open(name, "w") as file:
                    for _ in range(16):
                        file.write(bytes(2**24))
            else:
                archive.writestr(name, content)


def legacy_claim(path: Path) -> None:
    """torch's format of before 1.6, with a storage that claims 40 TB."""
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(987_654)}, file, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    size = struct.pack("<i", 987_654)
    assert b"J" + size in content  # pickle's four-byte integer
    path.write_bytes(content.replace(b"J" + size, b"\x8a\x06" + TERA.to_bytes(6, "little"))[:4096])


def numpy_claim() -> object:
    """A number of numpy, without a value, of a type that claims 400 MB."""

    class Kind:
        def __reduce__(self) -> Any:
            return np.dtype, ("V400000000",)

    class Scalar:
        def __reduce__(self) -> Any:
            return np.float64(0).__reduce__()[0], (Kind(),)

    return {"a": torch.zeros(1), "lr": Scalar()}


def scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and lies on many a disk
        torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)).save(str(path))


made("pickle_payload", pickled(lambda: {"state_dict": Payload()}))
made("pickle_payload_legacy", pickled(lambda: Payload(), _use_new_zipfile_serialization=False))
made("pickle_bare", raw(pickle.dumps(Payload())))
made("pickle_of_a_module", pickled(lambda: torch.nn.Linear(1, 1)))
made("pickle_of_a_number", pickled(3))
made("pickle_of_a_list", pickled([torch.zeros(1)]))
made("pickle_empty_dict", pickled({}))
made("pickle_of_texts", pickled({"visual.a": "b"}))
made("pickle_numpy_claim", pickled(numpy_claim))
made("pickle_truncated", raw(lambda path: (torch.save(clip_weights(), path), os.truncate(path, 2000))))
made("pickle_empty", raw(b""))
made("pickle_random", raw(bytes(range(256)) * 16))
made("pickle_zip_bomb", raw(zip_bomb))
made("pickle_legacy_claim", raw(legacy_claim))
made("pickle_stretched", pickled(lambda: clip_weights() | {"visual.proj": torch.zeros(1).expand(TERA)}))
made("pickle_nan", pickled(lambda: clip_weights() | {"visual.proj": torch.full((16, 12), float("nan"))}))
made("pickle_sparse", pickled(lambda: clip_weights() | {"visual.proj": torch.zeros(16, 12).to_sparse()}))
made("pickle_meta", pickled(lambda: clip_weights() | {"visual.proj": torch.zeros(16, 12, device="meta")}))
made("pickle_no_scale", pickled(lambda: {k: v for k, v in clip_weights().items() if k != "logit_scale"}))
made("pickle_two_models", pickled(lambda: {f"{part}.{k}": v for part in "ab" for k, v in clip_weights().items()}))
made("pickle_scale_nan", pickled(lambda: clip_weights() | {"logit_scale": torch.tensor(float("nan"))}))
made("pickle_scale_shape", pickled(lambda: clip_weights() | {"logit_scale": torch.zeros(3)}))
made("torch_script", raw(scripted))
made("open_clip_config_text", lambda folder: open_clip_folder(folder, "{"))
made("open_clip_config_list", lambda folder: open_clip_folder(folder, "[]"))
made("open_clip_config_number", lambda folder: open_clip_folder(folder, 3))
made("open_clip_config_deep", lambda folder: open_clip_folder(folder, deep(100_000)))
made("open_clip_no_weights", lambda folder: open_clip_folder(folder, CLIP))


def clip_config(change: Callable[[dict[str, Any]], object]) -> Maker:
    def make(folder: Path) -> Path:
        config = json.loads(json.dumps(CLIP))
        change(config)
        return open_clip_folder(folder, config, lambda path: torch.save(clip_weights(), path))

    return make


made("open_clip_huge", clip_config(lambda config: config["vision_cfg"].update(width=10**9)))
made("open_clip_large", clip_config(lambda config: config["vision_cfg"].update(width=10**6, head_width=10**5)))
made("open_clip_many_layers", clip_config(lambda config: config["vision_cfg"].update(layers=10**9)))
made("open_clip_negative", clip_config(lambda config: config["vision_cfg"].update(patch_size=-8)))
made("open_clip_zero", clip_config(lambda config: config["vision_cfg"].update(patch_size=0)))
made("open_clip_text_for_number", clip_config(lambda config: config.update(embed_dim="12")))
made("open_clip_unknown_key", clip_config(lambda config: config["vision_cfg"].update(run="me")))
made("open_clip_no_text_cfg", clip_config(lambda config: config.pop("text_cfg")))
made("open_clip_vision_list", clip_config(lambda config: config.update(vision_cfg=[])))
made("open_clip_timm_hub", clip_config(lambda config: config.update(vision_cfg={"timm_model_name": "hf-hub:a/b"})))
made("open_clip_timm_path", clip_config(lambda config: config.update(vision_cfg={"timm_model_name": "../x"})))


@maker
def open_clip_remote_code(folder: Path) -> Path:
    """A config that asks for the folder's own code to be run, as open_clip would."""
    config = json.loads(json.dumps(CLIP))
    config["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    remote_code(folder)
    return open_clip_folder(folder, config, lambda path: torch.save(clip_weights(), path))


def remote_code(folder: Path, **config: object) -> Path:
    """Files of transformers that point to code beside them."""
    (folder / "tokenizer_config.json").write_text(json.dumps(REMOTE))
    described = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Evil"}} | config
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "evil.py").write_text(f"open({PWNED!r}, 'w')\nclass Evil: pass\nclass Config: pass\n")
    return folder


@maker
def open_clip_tokenizer_of_strangers(folder: Path) -> Path:
    """A tokenizer that comes with code, which transformers would ask about at a terminal."""
    remote_code(folder)
    config = CLIP | {"text_cfg": CLIP["text_cfg"] | {"hf_tokenizer_name": "x"}}
    return open_clip_folder(folder, config, lambda path: torch.save(clip_weights(), path))


@maker
def open_clip_text_of_strangers(folder: Path) -> Path:
    """A text tower whose description comes with code."""
    remote_code(folder)
    config = CLIP | {"text_cfg": {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}}
    return open_clip_folder(folder, config, lambda path: torch.save(clip_weights(), path))


def transformers_folder(folder: Path, tokenizer: dict[str, Any] | str) -> Path:
    """A whole CLIPModel, but for its tokenizer."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tower | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    content = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    (folder / "tokenizer_config.json").write_text(content)
    (folder / "evil.py").write_text(f"open({PWNED!r}, 'w')\nclass Evil: pass\n")
    return folder


REMOTE = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
made("transformers_remote_code", lambda folder: transformers_folder(folder, REMOTE))
made("transformers_tokenizer_text", lambda folder: transformers_folder(folder, "{"))
made("transformers_large", lambda folder: config_json(folder, {"model_type": "clip", "vision_config": LARGE}))
LARGE = {"hidden_size": 12 * 2**16, "intermediate_size": 2**20, "num_attention_heads": 12}
made("transformers_bare", lambda folder: config_json(folder, {"model_type": "clip"}))
made(
    "transformers_huge",
    lambda folder: config_json(folder, {"model_type": "clip", "vision_config": {"hidden_size": 10**9}}),
)
made("transformers_wrong_types", lambda folder: config_json(folder, {"model_type": "clip", "vision_config": "x"}))
made("transformers_other_model", lambda folder: config_json(folder, {"model_type": "bert"}))
made("transformers_deep", lambda folder: config_json(folder, deep(100_000)))


def config_json(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (folder / "model.safetensors").write_bytes(save({"logit_scale": torch.tensor(1.0)}))
    return folder
