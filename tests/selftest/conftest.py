"""A simulated accelerator: tensors that compute on the CPU, and that refuse what tensors on a GPU refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from robustclip.runs import devices

CARD = torch.device("lazy")  # a type without kernels, whose gradients autograd computes in the calling thread
COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
INDEXED = ("aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
LACKING: set[torch.dtype] = set()
"""Dtypes that the card does not have."""
GENERATORS: dict[int, torch.Generator] = {}
"""The card's generators by address. Kept, so that no other takes one's address."""


class MixedDevices(RuntimeError):
    """An operation has tensors on the card and on the CPU, or a generator of the other device."""


class OnCard(Tensor):
    """A tensor on the card; `data_on_cpu` holds its numbers."""

    data_on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: Tensor) -> OnCard:
        self: OnCard = torch.Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            layout=data.layout,
            device=CARD,
        )
        self.data_on_cpu = data
        return self

    def tolist(self) -> Any:
        return self.data_on_cpu.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.data_on_cpu.untyped_storage()  # safetensors compares addresses

    def __deepcopy__(self, memo: dict[int, Any]) -> OnCard:
        copied = OnCard(self.data_on_cpu.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied._is_param = True  # type: ignore[attr-defined]  # what makes a tensor of another class a parameter
        memo[id(self)] = copied
        return copied

    def __repr__(self, **_: object) -> str:
        return f"OnCard({self.data_on_cpu!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, with its result on the device that it has on a machine with a GPU."""
    leaves = tree_leaves((args, kwargs))
    cards = [one for one in leaves if isinstance(one, OnCard)]
    if cards and func not in COPIES:
        _refuse_mixed(func, args, leaves)
    named = kwargs.get("device")
    if func is COPIES[0]:
        on_card = isinstance(args[0], OnCard)
    else:
        on_card = bool(cards) if named is None else torch.device(named) == CARD
    for generator in (one for one in leaves if isinstance(one, torch._C.Generator)):
        if (generator._cdata in GENERATORS) != on_card:
            raise MixedDevices(f"{func}: its generator is of the other device")

    def on_cpu(one: Any) -> Any:
        if isinstance(one, OnCard):
            return one.data_on_cpu
        return torch.device("cpu") if isinstance(one, torch.device) and one == CARD else one

    result = func(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
    if not on_card:
        return args[0] if func is COPIES[0] else result
    if any(isinstance(one, Tensor) and one.dtype in LACKING for one in tree_leaves(result)):
        raise TypeError(f"{func}: the card does not have this dtype")
    result = tree_map(lambda one: OnCard(one) if isinstance(one, Tensor) else one, result)
    return return_and_correct_aliasing(func, args, kwargs, result)


def _refuse_mixed(func: Any, args: Any, leaves: list[Any]) -> None:
    """Raise MixedDevices where CUDA raises. Tensors of no dimensions may be on the CPU, and so may indices."""
    tensors = [one for one in leaves if isinstance(one, Tensor) and one.ndim]
    if func.name() in INDEXED:
        tensors = [one for one in (args[0], *args[2:3]) if isinstance(one, Tensor) and (one is args[0] or one.ndim)]
        if isinstance(args[0], OnCard) and all(isinstance(one, OnCard) for one in tensors):
            return
    elif all(isinstance(one, OnCard) for one in tensors):
        return
    where = [f"{tuple(one.shape)} {one.device}" for one in tensors]
    raise MixedDevices(f"{func}: tensors on several devices: {', '.join(where)}")


class Card(TorchDispatchMode):
    """Mode for operations that name the card and take no tensor on it, such as `torch.rand(2, device=card)`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Lists(TorchFunctionMode):
    """Mode for lists as tensors and as indices, which torch copies to a device without its dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            func in (torch.tensor, torch.as_tensor, torch.asarray)
            and torch.device(kwargs.get("device") or "cpu") == CARD
        ):
            return func(*args, **kwargs | {"device": None}).to(CARD)
        if func is Tensor.new_tensor and isinstance(args[0], OnCard):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | kwargs).to(CARD)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnCard):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(_listed(one) for one in index), *args[2:])
        return func(*args, **kwargs)


def _listed(index: Any) -> Any:
    if not isinstance(index, (list, range)):
        return index
    return torch.tensor(list(index)) if len(index) else torch.zeros(0, dtype=torch.int64)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The simulated accelerator, which `--device` then knows by its name."""

    class Generator(torch._C.Generator):
        def __new__(cls, device: Any = "cpu") -> Generator:
            self = super().__new__(cls)
            if torch.device(device) == CARD:
                GENERATORS[self._cdata] = self
            return self

        @property
        def device(self) -> torch.device:
            return CARD if self._cdata in GENERATORS else torch.device("cpu")

    class Autocast(torch.autocast):
        def __new__(cls, device_type: str, *args: Any, **kwargs: Any) -> Any:
            return nullcontext() if device_type == CARD.type else super().__new__(cls)

    enabled: Callable[..., bool] = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: kind != (CARD.type,) and enabled(*kind))
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr(torch, CARD.type, torch.cpu, raising=False)
    monkeypatch.setattr(devices, "KINDS", (*devices.KINDS, CARD.type))
    with Card(), Lists():
        yield CARD
    GENERATORS.clear()


@pytest.fixture
def card_without_float64(card: torch.device) -> Iterator[torch.device]:
    """The simulated accelerator without float64, as MPS."""
    LACKING.add(torch.float64)
    yield card
    LACKING.clear()
