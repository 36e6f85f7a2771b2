"""Read and write mixtures as safetensors files, with validation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustclip.data import embedded
from robustclip.errors import UsageError
from robustclip.inits.mixture import Mixture
from robustclip.runs.files import atomic_write, is_file

SUFFIX: Final = ".safetensors"
FORMAT: Final = "robustclip mixture 1"
LARGEST_SIDE: Final = 256  # pixels, so that covariances fit in memory
LARGEST_VALUE: Final = 1e3  # far above sums of coefficients of pixels in [-1, 1]
TENSORS: Final = ("centre", "means", "factors", "counts", "weights")
Precision = Literal["float", "half", "byte"]
STEPS: Final = 127  # of a byte on each side of zero


def save_mixture(
    mixture: Mixture,
    path: str | os.PathLike[str],
    *,
    precision: Precision = "half",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a mixture as safetensors, atomically, with size, ridge and class names in the file's metadata.

    `precision` is that of means and factors: float32 ("float"), float16 ("half"), or 8 bits ("byte"), with a scale per
    column. `notes`: provenance. Raises UsageError for another precision.
    """
    if precision not in get_args(Precision):
        message = f"precision {precision!r}: use {', '.join(get_args(Precision))}"
        raise UsageError(message, "unknown_choice", argument="precision", given=precision)
    tensors = {"counts": mixture.counts, "centre": mixture.centre.float(), "weights": mixture.weights.float()}
    for name, values in (("means", mixture.means), ("factors", mixture.factors)):
        tensors |= _packed(name, values, precision)
    if mixture.basis is not None:
        tensors["basis"] = mixture.basis.float() if precision == "float" else mixture.basis.half()
    height, width = mixture.size
    about = {"format": FORMAT, "height": height, "width": width, "ridge": mixture.ridge}
    about |= {"class_names": mixture.class_names, "notes": dict(sorted((notes or {}).items()))}
    # One entry, because safetensors writes several in random order, which makes files differ.
    text = json.dumps(about, ensure_ascii=False)
    metadata = {"mixture": text.encode(errors="backslashreplace").decode()}  # folder names can be invalid UTF-8
    with atomic_write(path) as file:
        file.write(save({name: value.contiguous() for name, value in tensors.items()}, metadata=metadata))


def load_mixture(name: str | os.PathLike[str]) -> Mixture:
    """Load an embedded mixture by name (`emoji-guide-styles`), or a file of `robustclip mixture fit`.

    Raises UsageError for an unknown name or path, and for a file that is not a valid mixture.
    """
    root = embedded.root()
    shipped = {} if root is None else {file.stem: file for file in sorted(root.glob(f"mixtures/*{SUFFIX}"))}
    if name in shipped:
        return _read(shipped[str(name)])
    if not is_file(name):
        raise UsageError(
            f"there is no mixture {str(name)[:200]!r}: give {', '.join(shipped) or 'the path of one'}, or a file that "
            f"`robustclip mixture fit DATA --out FILE` wrote{embedded.hint(name)}",
            "unknown_mixture",
            name=name,
        )
    return _read(Path(name))


def _read(path: Path) -> Mixture:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a mixture: {str(error)[:200]}", "not_a_mixture", path=path) from error
    about = _about(path, metadata.get("mixture", ""))
    try:
        return _checked(tensors, about)
    except UsageError as error:
        message = f"{path} is not a mixture: {error}. Fit it again: robustclip mixture fit DATA --out FILE"
        raise UsageError(message, "not_a_mixture", faults=[error]) from None


def _about(path: Path, text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UsageError(
            f"{path} is not a mixture: it has no such metadata. `robustclip mixture fit DATA --out FILE` writes one",
            "not_a_mixture",
            path=path,
            part="metadata",
        )
    return about


def _checked(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Mixture:
    if missing := [name for name in TENSORS if name not in tensors]:
        raise UsageError(f"{', '.join(missing)} missing", "missing", tensors=missing)
    height, width, ridge, names = (about.get(key) for key in ("height", "width", "ridge", "class_names"))
    if not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in (height, width)):
        message = f"height {str(height)[:20]} and width {str(width)[:20]} are not pixels from 1 to {LARGEST_SIDE}"
        raise UsageError(message, "not_a_size", height=height)
    if not isinstance(ridge, float) or not 0 <= ridge <= 1:
        raise UsageError(
            f"ridge {str(ridge)[:20]} is not a number from 0 to 1", "out_of_range", argument="ridge", given=ridge
        )
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise UsageError("class_names is not a list of names", "not_names")
    assert isinstance(height, int)
    assert isinstance(width, int)
    basis = _numbers(tensors, "basis", 2) if "basis" in tensors else None
    pixels = 3 * height * width
    directions = pixels if basis is None else len(basis)
    counts = tensors["counts"]
    factors = _unpacked(tensors, "factors")
    if counts.dtype != torch.int64 or counts.shape != (len(names),):
        raise UsageError(
            f"counts are {counts.dtype} of shape {tuple(counts.shape)} for {len(names)} classes",
            "wrong_shape",
            tensor="counts",
            shape=tuple(counts.shape),
            dtype=counts.dtype,
            classes=len(names),
        )
    if int(counts.min()) < 0 or int(counts.max()) > len(factors) or int(counts.sum()) != len(factors):
        raise UsageError(
            f"counts do not add up to the {len(factors)} rows of the factors", "other_sum", tensor="counts"
        )
    mixture = Mixture(
        centre=_numbers(tensors, "centre", 1),
        means=_unpacked(tensors, "means"),
        factors=factors,
        counts=counts,
        weights=_numbers(tensors, "weights", 1),
        size=(height, width),
        class_names=names,
        basis=basis,
        ridge=ridge,
    )
    _check_shapes(mixture, pixels, directions)
    if not (mixture.weights >= 0).all() or not 0.99 < float(mixture.weights.sum()) < 1.01:
        raise UsageError("weights are not shares that add up to 1", "other_sum", tensor="weights")
    return mixture


def _check_shapes(mixture: Mixture, pixels: int, directions: int) -> None:
    wanted = {
        "centre": (pixels,),
        "means": (len(mixture.class_names), directions),
        "factors": (len(mixture.factors), directions),
        "weights": (len(mixture.class_names),),
        "basis": (directions, pixels),
    }
    for name, shape in wanted.items():
        value = getattr(mixture, name)
        if value is not None and value.shape != shape:
            message = f"{name} has shape {tuple(value.shape)}, not {shape}"
            raise UsageError(message, "wrong_shape", tensor=name, shape=tuple(value.shape), expected=shape)


def _packed(name: str, values: Tensor, precision: Precision) -> dict[str, Tensor]:
    if precision != "byte":
        return {name: values.float() if precision == "float" else values.half()}
    largest = values.abs().amax(0) if len(values) else torch.zeros(values.shape[1])
    scale = largest.clamp(min=torch.finfo(torch.float32).tiny) / STEPS
    return {name: (values / scale).round().clamp(-STEPS, STEPS).to(torch.int8), f"{name}_scale": scale.float()}


def _unpacked(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if tensors[name].dtype != torch.int8:
        return _numbers(tensors, name, 2)
    if f"{name}_scale" not in tensors:
        raise UsageError(f"{name}_scale missing", "missing", tensors=[f"{name}_scale"])
    values, scale = tensors[name], _numbers(tensors, f"{name}_scale", 1)
    if values.ndim != 2 or scale.shape != values.shape[1:]:
        message = f"{name} has shape {tuple(values.shape)} and scales {tuple(scale.shape)}"
        raise UsageError(message, "wrong_shape", tensor=name, shape=tuple(values.shape), scales=tuple(scale.shape))
    return _within(name, values.float() * scale)


def _numbers(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> Tensor:
    values = tensors[name]
    if values.dtype not in (torch.float16, torch.float32) or values.ndim != dimensions:
        message = f"{name} is {values.dtype} of {values.ndim} dimensions, not floats of {dimensions}"
        raise UsageError(message, "wrong_type", tensor=name, dtype=values.dtype, dimensions=values.ndim)
    return _within(name, values.float())


def _within(name: str, values: Tensor) -> Tensor:
    if not (values.abs() <= LARGEST_VALUE).all():  # false for NaN
        raise UsageError(f"{name} holds NaN or numbers beyond {LARGEST_VALUE:g}", "not_finite", tensor=name)
    return values
