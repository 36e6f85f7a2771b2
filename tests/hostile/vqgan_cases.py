"""What was tried on `synthesize vqgan` and `convert taming-vqgan`: as in `cases`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .things import TERA, Payload, made

NUL, ENDLESS = "a\0b", "x" * 5000  # as in `cases`, which reads this file


def pickled(content: Callable[[], object]) -> Callable[[Path], Path]:
    """A maker of a checkpoint that holds this."""

    def make(folder: Path) -> Path:
        torch.save(content(), folder / "last.ckpt")
        return folder / "last.ckpt"

    return make


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    """A maker of a file of these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def small() -> dict[str, torch.Tensor]:
    """The beginning of a VQGAN."""
    return {
        "encoder.conv_in.weight": torch.ones(32, 3, 3, 3),
        "encoder.conv_out.weight": torch.ones(4, 32, 3, 3),
        "encoder.down.0.block.0.conv1.weight": torch.ones(32, 32, 3, 3),
        "quantize.embedding.weight": torch.ones(8, 4),
    }


made("taming_payload", pickled(lambda: {"state_dict": small(), "callbacks": Payload()}))
made("taming_bare_payload", written("last.ckpt", pickle.dumps(Payload())))
made("taming_stretched", pickled(lambda: small() | {"quant_conv.bias": torch.ones(1).expand(TERA)}))
made("taming_half", pickled(small))
made("taming_number", pickled(lambda: 3))
made("taming_nan", pickled(lambda: small() | {"quant_conv.bias": torch.tensor([torch.nan])}))
made("taming_deep", pickled(lambda: small() | {f"encoder.down.{10**9}.block.0.norm1.bias": torch.ones(1)}))
made("taming_long_name", pickled(lambda: small() | {"decoder." + "x" * 10**5: torch.ones(1)}))
made("taming_cut", written("last.ckpt", b"PK\x03\x04" + bytes(100)))
made("taming_empty", written("last.ckpt", b""))
made("taming_text", written("last.txt", b"weights"))
made("taming_claim", written("last.safetensors", b"\xff" * 16))


def checkpoints() -> Iterator[tuple[str, str | list[str], int, str]]:
    for given, code, words in (
        ("nowhere.ckpt", 2, "is not a file"),
        ("{folder}", 2, "is not a file"),
        ("{pipe}", 2, "is not a file"),
        ("/dev/zero", 2, "is not a file"),
        (ENDLESS, 2, "is not a file"),
        (NUL, 2, "is not a file"),
        ("", 2, "is not a file"),
        ("{taming_text}", 2, "weights are read from .safetensors"),
        ("{taming_payload}", 2, "could run code when opened"),
        ("{taming_bare_payload}", 2, "could run code when opened"),
        ("{taming_stretched}", 2, "stretches few numbers to large tensors (quant_conv.bias)"),
        ("{taming_half}", 2, "missing ("),
        ("{taming_number}", 2, "holds int, not weights"),
        ("{taming_nan}", 1, "holds NaN or infinity in quant_conv.bias"),
        ("{taming_deep}", 2, "is not a VQGAN of taming-transformers"),
        ("{taming_long_name}", 2, "1 without a place"),
        ("{taming_cut}", 1, "truncated or damaged"),
        ("{taming_empty}", 1, "truncated or damaged"),
        ("{taming_claim}", 1, "truncated or damaged"),
    ):
        yield "a checkpoint", ["convert", "taming-vqgan", given, "--out", "{out}"], code, words
    for flags, words in (
        ("", "--out is missing"),
        ("--out {folder}", "exists: write elsewhere"),
        ("--out {file}", "is not a folder"),
        ("--out {out} --model-yaml nowhere.yaml", "is not a file"),
        ("--out {out} --model-yaml {pipe}", "is not a file"),
        ("--out {out} --model-yaml {file}", "is not a config of a VQGAN"),
        ("--out {out} --model-yml x", "did you mean --model-yaml"),
    ):
        yield "a checkpoint", f"convert taming-vqgan {{taming_half}} {flags}", 2, words
    yield "a conversion of something else", "convert dalle x.ckpt", 2, "No such command"


def flags() -> Iterator[tuple[str, str | list[str], int, str]]:
    for given, words in (
        ("--views 0", "greater than 0"),
        ("--lr nan", "finite number"),
        ("--optimiser sgd", "'adam', 'adamw'"),
        ("--cut-method updated", "'latest' or 'original'"),
        ("--cut-method original --cut-pow 0", "greater than or equal to 0.001"),
        ("--cut-method original --cut-min 99999", "less than or equal to 4096"),
        ("--cut-pow 2", "add --cut-method original"),
        ("--init-weight -1", "greater than or equal to 0"),
        ("--prior end", "'zero' or 'start'"),
        ("--mode true", "'faithful' or 'fixed'"),
        ("--init nowhere.png", "there is no file 'nowhere.png' to start from"),
        ("--init {pipe}", "to start from"),
        ("--size 4", "is not a size of a picture"),
    ):
        yield "a flag of vqgan", f"synthesize vqgan cat {given} --quick", 2, words
    for text, words in (
        ("a cat:1:1e999", "has the stop inf"),
        ("a cat:1:nan", "the weight 'nan' is not a number"),
        ("at 10:30:2", "is 30 a weight?"),
        ("a cat:-1:0.5", "only pushes away"),
    ):
        yield "a stop", ["synthesize", "vqgan", text, "--quick"], 2, words


VQGAN = [*checkpoints(), *flags()]
