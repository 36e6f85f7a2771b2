"""Blocks of flags that recipes share. A parameter whose type is a block stands for the block's fields:

    def recipe(*, steps: PositiveInt = 500, usual: Usual = Usual(dtype="float32")) -> dict[str, Any]:
        device, asked = pick_device(usual.device), flat(locals())

takes --steps, --resume, --device and so on, and from Python steps=, resume=, device=. `flat` makes the call's arguments
of it, as a run records them. This module imports no torch, so that help stays fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import NonNegativeInt, PositiveInt

from robustclip.runs.folder import ResumeFrom, RunFolder

R = TypeVar("R")
Enlarge = Literal["nearest", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Flags that stand together. Each is a field with a type, as a parameter has, and a default."""

    def arguments(self) -> dict[str, Any]:
        """Their values, by name."""
        return {**vars(self)}


@dataclass(frozen=True, kw_only=True)
class Usual(Block):
    """What every recipe takes."""

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


@dataclass(frozen=True, kw_only=True)
class Computed(Usual):
    """Of a training whose computation alone has a dtype."""

    dtype: Annotated[str, "dtype of computation; weights stay float32"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Seeded(Usual):
    """Of a table: seeds are counted from this one."""

    seed: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True)
class Painting(Usual):
    """Of a recipe with `seeds`."""

    seed: Annotated[NonNegativeInt | None, "alias of --seeds with one number"] = None  # type: ignore[assignment]

    def arguments(self) -> dict[str, Any]:
        return {**vars(self)} | ({} if self.seed is None else {"seeds": [self.seed]})


@dataclass(frozen=True, kw_only=True)
class Loop(Block):
    """Of a training: memory layout and compilation, and how often it is measured and saved."""

    channels_last: bool = False
    compile: bool = False
    evaluate_every: NonNegativeInt = 500
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 2


@dataclass(frozen=True, kw_only=True)
class Pictures(Block):
    """Of a synthesis: batches, what is written of a picture's making, memory layout and compilation."""

    batch_size: PositiveInt = 16
    save_frames: Annotated[bool | None, "save film strips and GIFs; default: for up to 16 pictures"] = None
    enlarge: Annotated[Enlarge, "interpolation of small pictures in GIFs, strips and the contact sheet"] = "nearest"
    channels_last: bool = True
    compile: bool = False


def flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with the fields of blocks in their place."""
    each = (value.arguments() if isinstance(value, Block) else {name: value} for name, value in arguments.items())
    return {name: value for part in each for name, value in part.items()}


def flat_signature(signature: inspect.Signature) -> inspect.Signature:
    """A signature with the fields of blocks in their place; its annotations are evaluated."""
    parameters: list[inspect.Parameter] = []
    for one in signature.parameters.values():
        if isinstance(one.default, Block):
            kinds = get_type_hints(type(one.default), include_extras=True)
            fields = vars(one.default).items()
            parameters += [one.replace(name=name, annotation=kinds[name], default=value) for name, value in fields]
        else:
            parameters.append(one)
    return signature.replace(parameters=parameters)


def flattened(function: Callable[..., R]) -> Callable[..., R]:
    """A function that takes the fields of its blocks."""
    signature = inspect.signature(function, eval_str=True)
    blocks = {name: one.default for name, one in signature.parameters.items() if isinstance(one.default, Block)}

    @wraps(function)
    def call(**arguments: Any) -> R:
        for name, block in blocks.items():
            given = {field: arguments.pop(field) for field in vars(block).keys() & arguments.keys()}
            arguments[name] = replace(block, **given)
        return function(**arguments)

    call.__signature__ = flat_signature(signature)  # type: ignore[attr-defined]
    return call
