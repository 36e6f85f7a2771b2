"""Blocks of flags that recipes share. A parameter whose default is a block stands for the block's fields:

    def recipe(*, steps: PositiveInt = 500, common: CommonFlags = CommonFlags(dtype="float32")) -> dict[str, Any]:
        device, arguments = pick_device(common.device), flat(locals())

takes --steps, --resume, --device and so on, and from Python steps=, resume=, device=. This module imports no torch, so
that help stays fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from robustclip.runs.folder import ResumeFrom, RunFolder

R = TypeVar("R")
Enlarge = Literal["nearest", "bicubic"]


class FlagBlock(BaseModel):
    """Base of the blocks. Each flag is a field with a type, as a parameter has, and a default."""

    model_config = ConfigDict(frozen=True)


class CommonFlags(FlagBlock):
    """Flags of every recipe."""

    resume: ResumeFrom | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    out: RunFolder | None = None
    quick: bool = False

    @property
    def where(self) -> dict[str, Any]:
        """Device and dtype, for a call of another recipe."""
        return {"device": self.device, "dtype": self.dtype}


class ComputeFlags(CommonFlags):
    """Flags of trainings whose --dtype is that of the computation alone."""

    dtype: Annotated[str, "dtype of computation; weights stay float32"] = "float32"


class TableFlags(CommonFlags):
    """Flags of `reproduce`, which counts its seeds from this one."""

    seed: NonNegativeInt = 0


class SynthesisFlags(CommonFlags):
    """Flags of recipes that take several seeds."""

    seed: Annotated[NonNegativeInt | None, "alias of --seeds with one number"] = None  # type: ignore[assignment]


class LoopFlags(FlagBlock):
    """Flags of a training loop: memory layout, compilation, intervals of evaluation and checkpoints."""

    channels_last: bool = False
    compile: bool = False
    evaluate_every: NonNegativeInt = 500
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 2


class PictureFlags(FlagBlock):
    """Flags of synthesis: batches, film strips and GIFs, memory layout, compilation."""

    batch_size: PositiveInt = 16
    save_frames: Annotated[bool | None, "save film strips and GIFs; default: for up to 16 pictures"] = None
    enlarge: Annotated[Enlarge, "interpolation of small pictures in GIFs, strips and the contact sheet"] = "nearest"
    channels_last: bool = True
    compile: bool = False


def flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call as a run records them: a block's fields in its place, and `seed` as its alias `seeds`,
    alone, so that a resumed run may be given others."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        found |= vars(value) if isinstance(value, FlagBlock) else {name: value}
        if isinstance(value, SynthesisFlags) and value.seed is not None:
            found |= {"seeds": [value.seed], "seed": None}
    return found


def flat_signature(signature: inspect.Signature) -> inspect.Signature:
    """A signature of evaluated annotations with a block's fields in its place."""
    parameters: list[inspect.Parameter] = []
    for one in signature.parameters.values():
        fields = vars(one.default) if isinstance(one.default, FlagBlock) else {one.name: one.default}
        kinds = get_type_hints(type(one.default), include_extras=True) if isinstance(one.default, FlagBlock) else {}
        for name, value in fields.items():
            parameters.append(one.replace(name=name, annotation=kinds.get(name, one.annotation), default=value))
    return signature.replace(parameters=parameters)


def flattened(function: Callable[..., R]) -> Callable[..., R]:
    """A function that takes the fields of its blocks."""
    signature = inspect.signature(function, eval_str=True)
    blocks = {name: one.default for name, one in signature.parameters.items() if isinstance(one.default, FlagBlock)}

    @wraps(function)
    def call(**arguments: Any) -> R:
        for name, block in blocks.items():
            fields = vars(block).keys() & arguments.keys()
            arguments[name] = block.model_copy(update={field: arguments.pop(field) for field in fields})
        return function(**arguments)

    call.__signature__ = flat_signature(signature)  # type: ignore[attr-defined]
    return call
