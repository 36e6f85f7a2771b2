"""Weight files: safe reading (safetensors, weights_only) and writing as safetensors."""

from __future__ import annotations

import argparse
import hashlib
import logging
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from robustclip.errors import RunError, UsageError
from robustclip.runs.files import atomic_write, is_file, read_json

_log = logging.getLogger(__name__)

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
SUFFIXES = (".safetensors", *PICKLES)
INDEX = ".index.json"
"""How the name of a list of shards ends, as transformers writes it."""
TRAINED = ("vision_encoder_state_dict", "partial_state_dict")
"""What TeCoA's code and its descendants (AdvFLYP, QT-AFT) call the tower that they trained, beside a `state_dict` of
visual prompts, which is usually empty."""
PROMPTS = ("add_prompter", "params")
"""What the same code, and AGFT's, call prompts that were trained beside a tower."""
WRAPPERS = (*TRAINED, "state_dict", "model_state_dict", "model")
MODULES = "modules"
"""Where AGFT's code saves a state dict for each trained module, by the module's name."""
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Keys of moving averages of the weights, which are read if a file has nothing else."""
STATES, DEEPEST = (WRAPPERS, AVERAGED), 4  # levels of such wrappers in each other
WRAPPING = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Name parts added by DataParallel, AveragedModel, torch.compile, FSDP and activation checkpointing."""
COUNTER = "num_batches_tracked"  # of batch norms, which some files omit
LINE = 120  # characters of a name in a message
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "n_averaged")
"""Integers among the weights in OpenAI's archives and torch's AveragedModel."""


def _harmless_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Harmless objects in training checkpoints: numpy numbers (such as open_clip's learning rate) and Namespaces."""
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)
    dtypes = [type(np.dtype(kind)) for kind in kinds]
    return [
        (_scalar, "numpy.core.multiarray.scalar"),  # numpy moved it between versions
        (_scalar, "numpy._core.multiarray.scalar"),
        (np.dtype, "numpy.dtype"),
        *((dtype, f"numpy.dtypes.{dtype.__name__}") for dtype in dtypes),
        (argparse.Namespace, "argparse.Namespace"),
    ]


def _scalar(dtype: np.dtype[Any], content: bytes) -> Any:
    """Rebuild a numpy scalar as numpy does, but only of numeric types of the content's size."""
    if dtype.kind not in "fiub" or len(content) != dtype.itemsize:
        raise pickle.UnpicklingError(f"a number of numpy of the type {str(dtype)[:40]}")
    return np.frombuffer(content, dtype)[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors on the CPU, unwrapping `{"state_dict": ...}` and the key prefixes of DataParallel,
    torch.compile, AveragedModel and FSDP, in any nesting.

    Safetensors, a pickle under torch's weights-only reader, or the index of shards of either (`*.index.json`). Of
    weights and their moving average the former are read, with a note. Claimed sizes are checked against the file's size
    before allocating memory. Raises UsageError for a missing file, another kind of file, an unsafe pickle, a
    TorchScript archive and tensors that are not dense; RunError for a truncated or damaged file.
    """
    path = Path(path)
    if not path.is_file():
        message = f"there is no checkpoint {path}: give the path of a .safetensors or .pt file"
        raise UsageError(message, "missing_file", path=str(path))
    if path.name.endswith(INDEX):
        return _of_shards(path)
    if path.suffix == ".safetensors":
        try:
            return _unwrapped(load_file(path), path)
        except (SafetensorError, OSError) as error:
            raise RunError(_broken(path, error), "damaged", path=str(path)) from error
    return _unwrapped(read_pickle(path), path)


def read_pickle(path: Path) -> Any:
    """The content of a pickle under torch's weights-only reader, on the CPU. Raises as `read_weights`."""
    if not path.name.endswith(PICKLES):
        message = f"{path} ends in {path.suffix or 'nothing'}; weights are read from {', '.join(SUFFIXES)}"
        raise UsageError(message, "other_format", path=str(path))
    _check_archive(path)
    try:
        with safe_globals(_harmless_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles; errors are reported below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(_unsafe(path), "unsafe_pickle", path=str(path)) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise RunError(_broken(path, error), "damaged", path=str(path)) from error


def read_dense_weights(path: Path) -> dict[str, Tensor]:
    """`read_weights`; also raises UsageError for expanded tensors, which are larger than their stored data."""
    weights = read_weights(path)
    stretched = [
        name for name, tensor in weights.items() if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes()
    ]
    if stretched:
        message = f"{path} is refused: it stretches few numbers to large tensors ({some(sorted(stretched))})"
        raise UsageError(message, "stretched", names=sorted(stretched))
    return weights


def weights_file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    """A folder's weight file for `read_weights`, with one of the stems: safetensors first, a single file or an
    index."""
    files = (f"{stem}{suffix}{index}" for suffix in SUFFIXES for stem in stems for index in ("", INDEX))
    return next((folder / file for file in files if is_file(folder / file)), None)


def _of_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards of an index. Raises UsageError for a shard outside its folder, RunError for a missing
    shard or tensor."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise UsageError(
            f"{index} has no weight_map, which says in which file each tensor lies: download it again",
            "no_weight_map",
        )
    files = set(places.values())
    if not all(isinstance(file, str) and Path(file).name == file and not file.endswith(INDEX) for file in files):
        raise UsageError(f"{index} names files outside its folder: download it again", "outside_folder")
    missing = sorted(file for file in files if not is_file(index.parent / file))
    if missing:
        raise RunError(f"{index.parent} lacks {some(missing)}, which {index.name} names: copy the whole folder again")
    weights: dict[str, Tensor] = {}
    for file in sorted(files):
        weights |= read_weights(index.parent / file)
    lost = sorted(set(map(_unwrapped_name, places)) - set(weights))
    if lost:
        message = f"the files that {index} names do not hold {some(lost)}: copy the whole folder again"
        raise RunError(message, "missing_weights", names=lost)
    return weights


def _check_archive(path: Path) -> None:
    """Check a zip archive of torch (the format since 1.6). Raises UsageError for a compressed one, which torch does not
    write, and for TorchScript; RunError for a damaged one."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # a damaged archive may raise anything
        raise RunError(_broken(path, error), "damaged", path=str(path)) from error
    if any("/code/" in member.filename or member.filename.endswith("/constants.pkl") for member in members):
        raise UsageError(_scripted(path))
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    unpacked = sum(member.file_size for member in members)
    if packed or unpacked > path.stat().st_size:
        raise UsageError(
            f"{path} is refused: it is a packed archive, {path.stat().st_size} bytes that unpack to {unpacked}, "
            "and torch.save packs nothing. Save the weights again: torch.save(model.state_dict(), PATH)"
        )


def write_weights(path: Path, weights: Mapping[str, Tensor], *, half: bool = False) -> None:
    """Write tensors as safetensors, atomically; `half` rounds the floating ones to float16. Raises UsageError for
    numbers beyond float16."""
    ready = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for key, value in weights.items()
    }
    if lost := [key for key, value in ready.items() if half and value.isinf().any() and weights[key].isfinite().all()]:
        message = f"{some(lost)}: numbers beyond 65504, the largest of float16: write float32, without --half"
        raise UsageError(message, "beyond_half", names=lost)
    with atomic_write(path) as file:
        file.write(save(ready, metadata={"format": "pt"}))


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], *, source: str, hint: str = "") -> None:
    """Load every tensor of `weights` into `module`.

    Raises UsageError naming missing and unexpected tensors and those of other shape or type, and RunError naming
    tensors with NaN or infinity.
    """
    check_fit(module, weights, source=source, hint=hint)
    module.load_state_dict({**module.state_dict(), **weights})
    check_finite(module, source=source)


def check_finite(module: nn.Module, *, source: str) -> None:
    """Raise RunError naming the tensors of `module` that hold NaN or infinity."""
    lost = [name for name, value in module.state_dict().items() if not value.isfinite().all()]
    if lost:
        raise RunError(
            f"{source} holds NaN or infinity in {some(sorted(lost))}: take an earlier checkpoint, or get the file "
            "again",
            "not_finite",
            source=source,
            names=sorted(lost),
        )


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], *, source: str, hint: str = "") -> None:
    """Raise UsageError, with all differences, unless `weights` match `module` in names, shapes and dtypes.

    Only names, shapes and types are compared, so `module` may be on the meta device.
    """
    own = module.state_dict()
    counters = {name for name in own if name.endswith(COUNTER)}
    faults = {
        "missing": sorted(set(own) - set(weights) - counters),
        "unexpected": sorted(set(weights) - set(own)),
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
        "of another type": [
            f"{name} {str(weights[name].dtype).removeprefix('torch.')}"
            for name in own
            if name in weights and _kind(weights[name]) != _kind(own[name])
        ],
    }
    if any(faults.values()):
        lines = [f"{len(names)} {kind} ({some(names)})" for kind, names in faults.items() if names]
        raise UsageError(
            f"{source} does not fit the architecture: {'; '.join(lines)}{'. ' + hint if hint else ''}",
            "does_not_fit",
            source=source,
            missing=faults["missing"],
            unexpected=faults["unexpected"],
            shapes=faults["of another shape"],
            types=faults["of another type"],
        )


def _kind(value: Tensor) -> str:
    """The kind of dtype: any integer type, or any floating-point type."""
    if value.is_complex() or value.dtype == torch.bool:
        return str(value.dtype)
    return "fractions" if value.is_floating_point() else "integers"


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, equal for a float32 file and its half-precision copy.

    Values are rounded to float16 first, so that an export in half precision has the same digest.
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu()
        value = value.half() if value.is_floating_point() else value
        total.update(f"{name} {tuple(value.shape)} ".encode())
        total.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    content = _state(content, path)
    if not isinstance(content, Mapping) or not content:
        message = f"{path} holds {type(content).__name__}, not weights: save the model's state_dict()"
        raise UsageError(message, "not_weights", path=str(path), given=type(content).__name__)
    if not all(isinstance(name, str) for name in content):
        raise UsageError(
            f"{path} has keys that are not text: save the model's state_dict()", "not_weights", path=str(path)
        )
    weights = {name: value for name, value in content.items() if name not in NOT_WEIGHTS}
    others = sorted(name for name, value in weights.items() if not isinstance(value, Tensor))
    bare = sorted(name for name, value in weights.items() if isinstance(value, Tensor) and not _is_dense(value))
    if bare:
        message = f"{path} holds {some(bare)} sparse, quantised or without values: save dense tensors"
        raise UsageError(message, "not_dense", names=bare)
    if others:
        message = f"{path} is not a state dict ({some(others)}: not tensors): save the model's state_dict()"
        raise UsageError(message, "not_tensors", names=others)
    plain = {_unwrapped_name(name): value for name, value in weights.items()}
    if len(plain) < len(weights):
        raise UsageError(
            f"{path} holds weights twice, with and without {' or '.join(sorted(WRAPPING))} in their names",
            "weights_twice",
        )
    return plain


def _unwrapped_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPING)


def _state(content: object, path: Path) -> object:
    """The innermost state dict of a trainer's checkpoint; weights rather than their moving average."""
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            return content
        plain, averaged = ([key for key in keys if isinstance(content.get(key), Mapping)] for keys in STATES)
        if plain and averaged:
            _log.warning(
                f"{path} also holds a moving average of its weights ({averaged[0]}), which is left out. To take it: "
                f"torch.save(torch.load({str(path)!r}, weights_only=True)[{averaged[0]!r}], 'averaged.pt')"
            )
        if any(isinstance(content.get(key), Mapping) and content[key] for key in (*TRAINED, MODULES)):
            _refuse_prompts(content, path)
        if isinstance(modules := content.get(MODULES), Mapping):
            return {f"{module}.{name}": value for module, state in modules.items() for name, value in _items(state)}
        if not plain and not averaged:
            return content
        content = content[(plain or averaged)[0]]
    return content


def _items(state: object) -> Iterable[tuple[object, object]]:
    return state.items() if isinstance(state, Mapping) else ()


def _refuse_prompts(content: Mapping[str, object], path: Path) -> None:
    """Raise UsageError where a tower was trained beside prompts, without which it is another model."""
    found = [key for key in PROMPTS if isinstance(content.get(key), Mapping) and content[key]]
    if found:
        raise UsageError(
            f"{path} holds visual prompts beside the tower ({', '.join(found)}), and the tower was trained to see "
            "images through them: open_clip has no place for prompts. Take a checkpoint that was trained without",
            "visual_prompts",
            path=str(path),
        )


def _is_dense(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def some(names: list[str], shown: int = 5) -> str:
    """The first names of a list, truncated, and the number of the rest."""
    brief = [name if len(name) <= LINE and name.isprintable() else f"{name[:LINE]!r}..." for name in names[:shown]]
    return ", ".join(brief) + (f", and {len(names) - shown} more" if len(names) > shown else "")


def _broken(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    return f"{path} is truncated or damaged ({size} bytes; {error}): get it again, and compare its sha256"


def _unsafe(path: Path) -> str:
    try:
        needed = some(sorted(get_unsafe_globals_in_checkpoint(path)))
    except Exception:  # the list only serves the message
        needed = ""
    reason = f"it asks for {needed}" if needed else "torch's weights-only reader cannot read it"
    return (
        f"{path} is refused: beside weights, or instead of them, it holds a pickle that could run code when opened "
        f"({reason}). Convert it on a machine you trust, and give the result:\n"
        "import torch; from safetensors.torch import save_file\n"
        f"weights = torch.load({path.name!r}, map_location='cpu', weights_only=False)\n"
        "while not (isinstance(weights, dict) and any(map(torch.is_tensor, weights.values()))):\n"
        f"    names = {(*WRAPPERS, *AVERAGED)}\n"
        "    weights = next(weights[k] for k in names if k in weights) if isinstance(weights, dict) else "
        "weights.state_dict()\n"
        "weights = {k: v.contiguous().clone() for k, v in weights.items() if torch.is_tensor(v)}\n"
        f"save_file(weights, {path.with_suffix('.safetensors').name!r})"
    )


def _scripted(path: Path) -> str:
    return (
        f"{path} is a TorchScript archive, which holds code beside its weights, and is refused. Convert it on a "
        "machine you trust, and give the result:\n"
        "import torch; from safetensors.torch import save_file\n"
        f"weights = torch.jit.load({path.name!r}, map_location='cpu').state_dict()\n"
        f"save_file({{k: v.contiguous().clone() for k, v in weights.items()}}, "
        f"{path.with_suffix('.safetensors').name!r})"
    )
